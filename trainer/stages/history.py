"""The stage that gives the final model a history: features of past days as they would have been exported on those days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainer.checkpoint import Bundle, read_bundle
from trainer.days import DayPlan
from trainer.errors import ConfigError
from trainer.job import Job
from trainer.schema.bundle import seen_until
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest, read_partition, read_tail
from trainer.schema.predictions import WEIGHT
from trainer.schema.repair import Repair

if TYPE_CHECKING:
    from trainer.align import Alignment
    from trainer.evaluate import RankerScorer
    from trainer.export.as_of import AsOfRecord, DayScores, PastDay
    from trainer.fit import Trained
    from trainer.schema.embeddings import EmbeddingManifest
    from trainer.stages.delivery import Delivered


@dataclass(frozen=True)
class _Weights:
    """Weights that can score a past day; `repair` is what the challenger's are delivered behind, a release has its own beside it."""

    bundle: Bundle
    file: str
    seen_until: str
    repair: Repair | None

    @property
    def producer(self) -> str:
        return f"{self.bundle.sha256}/{self.file}"


def as_of(
    job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, delivered: Delivered, embeddings: EmbeddingManifest | None
) -> list[AsOfRecord]:
    """Writes features of the past days of ``export.as_of`` below the staged export, each by weights from before it.

    Raises:
        ConfigError: If a day is no day of the log before the holdout.
        ExportError: If a day has no such weights and in-sample days were not asked for.
    """
    wanted = job.config.export.as_of
    if not wanted or embeddings is None:
        return []
    from trainer.export.as_of import choose, read_records, write_as_of

    check_past_days(wanted, [day for day in (*days.seen, *days.train) if day in examples.source_days])
    folder = job.run.path / "embeddings"
    weights = {found.producer: found for found in _at_hand(job, trained, delivered.repair)}
    chosen = choose(wanted, [(found.seen_until, producer) for producer, found in weights.items()], job.config.export.as_of_in_sample)

    def produce() -> list[AsOfRecord]:
        from trainer.evaluate import RankerScorer
        from trainer.export import read_alignment

        now = RankerScorer(trained.bundle)
        maps = [read_alignment(folder, embeddings, entity) for entity in ("user", "item")]

        def scored() -> Iterator[tuple[PastDay, DayScores]]:
            for past in chosen:
                used = weights[past.producer]
                today = vectors_of_day(job, examples, past.day, now, maps)
                scorer = RankerScorer(used.bundle, used.file, repair=used.repair)
                yield past, score_day(job, examples, past.day, scorer, today)

        return write_as_of(folder, scored())

    key = [[past.producer for past in chosen], wanted, trained.bundle.sha256, delivered.identity]
    return job.run.stage(
        "as_of", key, produce, partial(read_records, folder),
        lambda made: (sum(record.rows for record in made), ", ".join(f"{r.day}{' (in sample)' * r.in_sample}" for r in made)),
    )  # fmt: skip


def check_past_days(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuses days of ``export.as_of`` that no ranker could have exported.

    Args:
        wanted: Days that were asked for.
        known: Days of the log before the holdout.

    Raises:
        ConfigError: If one is not among them.
    """
    if strange := sorted(set(wanted) - set(known)):
        expected = f"{min(known)} to {max(known)}" if known else "a training day"
        raise ConfigError("no day of the log before the holdout", where="export.as_of", got=strange[0], expected=expected)


def _at_hand(job: Job, trained: Trained, repair: Repair | None) -> list[_Weights]:
    """Weights of the challenger and of every release whose vectors are as wide."""
    bundles = [(trained.bundle, repair)]
    for version in job.registry.versions():
        bundle = read_bundle(version / "bundle")
        if bundle.manifest.inputs.actions and bundle.shape.dim == trained.bundle.shape.dim:
            bundles.append((bundle, None))
    return [_Weights(bundle, name, until, own) for bundle, own in bundles for name, until in seen_until(bundle.manifest).items() if until]


def vectors_of_day(job: Job, examples: ExamplesManifest, day: str, now: RankerScorer, maps: Sequence[Alignment]) -> list[np.ndarray]:
    """Returns user and item vectors of a day's rows by today's ranker, as features: float32 [N, D] each.

    Args:
        job: The run.
        examples: Its examples.
        day: The day.
        now: Today's ranker.
        maps: Maps of today's user and item vectors to features.
    """
    parts = [now.vectors(rows, tail, job.known_until_ms) for rows, tail in _partitions(job, examples, day)]
    return [alignment.apply(np.concatenate(blocks)) for alignment, blocks in zip(maps, zip(*parts, strict=True), strict=True)]


def score_day(job: Job, examples: ExamplesManifest, day: str, past: RankerScorer, today: Sequence[np.ndarray]) -> DayScores:
    """Scores a day's rows with the ranker of its time.

    Args:
        job: The run.
        examples: Its examples.
        day: The day.
        past: The ranker of that time; its scores are the delivered ones.
        today: The same rows under today's ranker (`vectors_of_day`).
    """
    from trainer.evaluate.counting import ripe_labels
    from trainer.export.as_of import DayScores

    maturity_ms = {name: action.maturity_ms for name, action in job.config.data.actions.items()}
    scored, tables = [], []
    for rows, tail in _partitions(job, examples, day):
        scored.append(past.score(rows, tail, job.known_until_ms, items=True))
        labels = ripe_labels(rows, maturity_ms, job.known_until_ms)
        tables.append(
            pa.table(
                {"user": rows["user"], "item": rows["item"], "time": rows["request_time"], WEIGHT: rows[WEIGHT]}
                | {LABEL + name: pa.array(label_N, from_pandas=True) for name, label_N in labels.items()}
                | {name: rows[name] for name in rows.column_names if name.startswith(FEATURE)}
            )
        )
    return DayScores(
        rows=pa.concat_tables(tables, promote_options="default").combine_chunks(),
        scores={name: np.concatenate([part.score_N[name] for part in scored]) for name in scored[0].score_N},
        dot_N=np.concatenate([part.dot_N for part in scored]),
        user_ND=np.concatenate([part.user_ND for part in scored]),
        item_ND=np.concatenate([np.asarray(part.item_ND) for part in scored]),
        now_user_ND=today[0],
        now_item_ND=today[1],
        repair=past.repair.sha256 if past.repair is not None else None,
    )


def _partitions(job: Job, examples: ExamplesManifest, day: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields rows and history tails of a day, user bucket by user bucket."""
    root = Path(job.config.rebuild.root)
    for bucket in range(examples.user_buckets):
        yield read_partition(root, examples, day, bucket), read_tail(root, examples, day, bucket)
