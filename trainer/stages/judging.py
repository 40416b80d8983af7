"""Stages that judge: evaluate scores the holdout with every model, gate decides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainer.checkpoint import Bundle
from trainer.config import RetrainConfig
from trainer.days import DayPlan
from trainer.job import Job
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest, read_partition, read_tail, vocabulary_path
from trainer.schema.plain import as_plain
from trainer.schema.predictions import unscored
from trainer.schema.verdict import Check, Verdict
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest
    from trainer.stages.delivery import Delivered

_NIGHTS = 7  # the last ones tell how far vectors usually move


def evaluate(job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, continued: Trained | None) -> Evaluation:
    """Scores the holdout with every model, on the same rows."""
    from trainer.evaluate import Holdout, RankerScorer, evaluate, fit_counting, read_evaluation, write_evaluation
    from trainer.fit.train import value_weights

    root, config = Path(job.config.rebuild.root), job.config

    def produce() -> Evaluation:
        earlier = [
            partial(read_partition, root, examples, day, bucket)
            for day in [*days.seen, *days.train]
            for bucket in range(examples.user_buckets)
        ]
        holdout = Holdout(
            [partial(_partition, root, examples, day, bucket) for day in days.holdout for bucket in range(examples.user_buckets)],
            job.known_until_ms,
            _known_ids(root, job, trained.bundle),
        )
        extra = _lightgbm(job, examples, days) if config.evaluation.lightgbm else None
        evaluation = evaluate(
            config.data,
            config.evaluation,
            holdout,
            RankerScorer(trained.bundle),
            production=RankerScorer(job.production) if job.production else None,
            counting=fit_counting(config.data, config.evaluation, earlier, job.known_until_ms),
            weights=value_weights(config),
            continued=RankerScorer(continued.bundle) if continued else None,
            extra=extra,
            reference=RankerScorer(job.reference) if job.reference else None,
            served_as=config.evaluation.served_as or job.live,
            seed=config.seed,
        )
        write_evaluation(evaluation, job.run.path)
        return evaluation

    key = [
        trained.bundle.sha256,
        continued.bundle.sha256 if continued else None,
        job.production.sha256 if job.production else None,
        job.live,  # the release's repair belongs to production's scores
        job.reference.sha256 if job.reference else None,
        as_plain(config.evaluation),
        as_plain(config.value),
        as_plain(examples),
        as_plain(days),
    ]
    return job.run.stage(
        "evaluate", key, produce, lambda: read_evaluation(job.run.path), lambda e: (len(e.predictions), _headline(e, config))
    )


def gate(
    job: Job,
    trained: Trained,
    evaluation: Evaluation,
    delivered: Delivered,
    embeddings: EmbeddingManifest | None,
    downstream: DownstreamReport | None,
    serving: list[Check],
) -> Verdict:
    """Decides: what was found about the scores, and about all that was made with them."""
    from trainer.evaluate import rescoring_checks
    from trainer.gate import conclude, write_verdict

    def produce() -> Verdict:
        live = job.registry.production_path()
        checks = [*delivered.verdict.checks, *rescoring_checks(evaluation.report.get("rescoring"), job.config.evaluation)]
        if embeddings is not None and live is not None and (live / "embeddings").is_dir():
            from trainer.export import compare_exports, earlier_moves

            frequency, earlier = _frequencies(job, trained.bundle), earlier_moves(job.registry.versions()[-_NIGHTS:])
            checks += compare_exports(live / "embeddings", job.run.path / "embeddings", frequency, earlier)
        checks += downstream.replay if downstream is not None else []
        verdict = conclude([*checks, *serving], job.config.gate, delivered.verdict.repair)
        write_verdict(verdict, job.run.path, delivered.repair)
        return verdict

    return job.run.stage("gate", None, produce, None, lambda v: (len(evaluation.predictions), f"{v.verdict}: {v.reason}"))


def _partition(root: Path, examples: ExamplesManifest, day: str, bucket: int) -> tuple[pa.Table, pa.Table]:
    return read_partition(root, examples, day, bucket), read_tail(root, examples, day, bucket)


def _frequencies(job: Job, challenger: Bundle) -> dict[str, Callable[[pa.Array], np.ndarray]]:
    """How many rows of the training days the users and the items of the vocabularies have."""

    def rows(vocabulary: Vocabulary, ids: pa.Array) -> np.ndarray:
        return np.concatenate([np.zeros(RESERVED_ROWS, np.int64), vocabulary.count_V])[vocabulary.lookup(ids)]

    users = Vocabulary.read(vocabulary_path(Path(job.config.rebuild.root), "user"))
    items = challenger.item_ids
    return {"user": partial(rows, users), "item": partial(rows, items)}


def _known_ids(root: Path, job: Job, challenger: Bundle) -> dict[str, pa.Array]:
    """Ids that some training day of the challenger (or of its ancestors) had: the others are new items and new users."""
    items = challenger.item_ids.keys
    users = Vocabulary.read(vocabulary_path(root, "user")).keys
    return {"item": items, "user": users}


def concatenated(job: Job, examples: ExamplesManifest, days: list[str]) -> pa.Table:
    """Reads all partitions of some days, in the order in which evaluate reads them."""
    root = Path(job.config.rebuild.root)
    tables = [read_partition(root, examples, day, bucket) for day in days for bucket in range(examples.user_buckets)]
    return pa.concat_tables(tables, promote_options="default")


def _lightgbm(job: Job, examples: ExamplesManifest, days: DayPlan) -> dict[str, np.ndarray]:
    """LightGBM on the same earlier days and point-in-time features: what the ranker has to beat."""
    from trainer.downstream import baseline
    from trainer.evaluate.counting import ripe_labels

    spec = job.config.data
    actions = {name: "binary" for name in spec.gated_actions if spec.actions[name].kind == "binary"}
    train, holdout = concatenated(job, examples, sorted([*days.seen, *days.train])), concatenated(job, examples, days.holdout)
    for name, label_N in ripe_labels(train, {name: spec.actions[name].maturity_ms for name in actions}, job.known_until_ms).items():
        column = train.column_names.index(LABEL + name)
        train = train.set_column(column, LABEL + name, pa.array(label_N, pa.float64(), from_pandas=True))
    features = [name for name in train.column_names if name.startswith(FEATURE)]
    return baseline(train, holdout, actions, features, job.config.downstream, job.config.seed)


def slice_columns_of(job: Job, evaluation: Evaluation) -> list[str]:
    """Returns the columns of the predictions that are slices."""
    from trainer.evaluate.run import slice_columns

    return slice_columns(evaluation.predictions, job.config.evaluation)


def _headline(evaluation: Evaluation, config: RetrainConfig) -> str:
    action = config.data.gated_actions[0]
    parts = []
    for model in ("challenger", "production", "counting"):
        entry = evaluation.report.get(model, {}).get(action)
        if entry and entry.get("ne") is not None:
            parts.append(f"{model} {entry['ne']:.4f}")
    left_out = int(unscored(evaluation.predictions).sum())
    words = f"; {left_out:,} rows that production did not score left out" if left_out else ""
    return f"NE of {action}: " + ", ".join(parts) + words
