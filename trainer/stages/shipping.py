"""Stages that ship: embeddings, the model behind them, the release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.checkpoint import Bundle
from trainer.days import DayPlan
from trainer.errors import CheckpointError
from trainer.job import Job
from trainer.schema.absorb import AbsorbReport
from trainer.schema.downstream import FINAL
from trainer.schema.examples import ExamplesManifest, read_tail
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_json
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.predictions import LABEL, PRODUCTION, WEIGHT
from trainer.schema.verdict import PROMOTE, Verdict
from trainer.stages.judging import concatenated, slice_columns_of
from trainer.stages.training import forget_others

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest
    from trainer.stages.delivery import Delivered

ABSORBED = "absorbed"  # folder of the run with the bundle whose serving copy has learned the holdout too


def export(
    job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, evaluation: Evaluation, delivered: Delivered
) -> EmbeddingManifest | None:
    """Writes embeddings beside the run: staged, visible to nobody before the release."""
    if not job.config.export.enabled:
        return None
    from trainer.evaluate import RankerScorer, RankerVectors
    from trainer.export import export, read_manifest

    root, out = Path(job.config.rebuild.root), job.run.path / "embeddings"
    production = job.registry.production_path()
    live = production / "embeddings" if production is not None and (production / "embeddings").is_dir() else None

    def produce() -> EmbeddingManifest:
        tails = [partial(read_tail, root, examples, examples.final_tail_day, bucket) for bucket in range(examples.user_buckets)]
        manifest = trained.bundle.manifest
        return export(
            RankerVectors(RankerScorer(trained.bundle), tails, job.known_until_ms),
            out,
            job.config.export,
            space_id=manifest.space_id,
            producer=trained.bundle.sha256,
            parent=manifest.parent,
            as_of=job.as_of,
            holdout={"user": evaluation.predictions["user"], "item": evaluation.predictions["item"]},
            pairs=delivered.pair,
            repair=delivered.identity,
            live=live,
        )

    key = [trained.bundle.sha256, delivered.identity, as_plain(job.config.export), as_plain(days), job.live]
    return job.run.stage(
        "export",
        key,
        produce,
        lambda: read_manifest(out),
        lambda m: (
            sum(m.entities.values()),
            ", ".join(f"{count:,} {entity} rows" for entity, count in m.entities.items()) + f", dim {m.dim}",
        ),
    )


def downstream(
    job: Job,
    examples: ExamplesManifest,
    days: DayPlan,
    evaluation: Evaluation,
    delivered: Delivered,
    embeddings: EmbeddingManifest | None,
) -> DownstreamReport | None:
    """Trains the model behind the embeddings with and without them, on rows whose labels the weights have not seen."""
    final = job.run.path / FINAL
    if embeddings is None or not job.config.downstream.enabled:
        shutil.rmtree(final, ignore_errors=True)  # of an earlier attempt with other settings: it must not be sealed
        return None
    from trainer.downstream import assemble, join_tables, lift, read_final, write_final
    from trainer.export import lookup
    from trainer.export.as_of import leak_free, read_as_of
    from trainer.schema.downstream import DownstreamReport

    out, settings = job.run.path / "downstream.json", job.config.downstream
    binary = [name for name in job.config.data.gated_actions if job.config.data.actions[name].kind == "binary"]
    action = settings.action or binary[0]

    def produce() -> DownstreamReport:
        folder = job.run.path / "embeddings"
        holdout = concatenated(job, examples, days.holdout).take(pa.array(evaluation.order_N))
        item_ND = lookup(folder, "item", holdout["item"]) if "item" in embeddings.entities else None
        user_ND, item_ND = _as_features(folder, embeddings, evaluation.user_ND, item_ND)
        table, features, exported = assemble(holdout, evaluation.predictions, delivered.pair, user_ND, item_ND, action)
        table, joined = join_tables(table, settings.tables)
        earlier = leak_free(read_as_of(folder), days.holdout[0])
        if earlier is not None:
            earlier, _ = join_tables(earlier, settings.tables)
        slices = slice_columns_of(job, evaluation)
        for name in slices:
            table = table.append_column(name, evaluation.predictions[name])
        columns, kind, space = [*features, *joined], settings.objective, embeddings.feature_space
        shutil.rmtree(final, ignore_errors=True)
        save = partial(write_final, final, library=settings.library, objective=kind, action=action, feature_space=space)
        saved = save if settings.live is None else None
        report = lift(table, action, columns, exported, settings, job.config.seed, earlier=earlier, slices=slices, keep=saved)
        report = _with_final(job, embeddings, report, table, [*columns, *exported], partial(_before, job, examples, days, evaluation))
        write_text(out, json.dumps(as_plain(report), indent=1))
        return report

    def keep() -> DownstreamReport:
        report = from_plain(DownstreamReport, json.loads(out.read_text()))
        if report.final_sha256 is not None and read_final(final).sha256 != report.final_sha256:
            raise CheckpointError("the run's final model is not the one that was judged", where=final)
        return report

    key = [as_plain(settings), as_plain(embeddings), action, as_plain(days), job.config.export.as_of, job.live]
    return job.run.stage("downstream", key, produce, keep, _told)


def _told(report: DownstreamReport) -> tuple[int, str]:
    """The line of the downstream stage; a model that ranks has no NE."""
    if not report.lift:
        return report.rows, f"{report.status}: {report.reason}"
    metric = next(name for name in ("ne", "ndcg", "auc") if name in report.lift)
    found = report.lift[metric]
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return report.rows, f"{metric.upper()} of {report.action} with embeddings {found.value:+.4f}{ends} against without"


def _as_features(
    folder: Path, manifest: EmbeddingManifest, user_ND: np.ndarray, item_ND: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Brings serving vectors into the feature space of an export; None for an entity that it leaves out, so consumers have none."""
    from trainer.export import read_alignment

    def feature(entity: str, vectors_ND: np.ndarray | None) -> np.ndarray | None:
        if vectors_ND is None or entity not in manifest.entities:
            return None
        return read_alignment(folder, manifest, entity).apply(vectors_ND) if entity in manifest.alignment else vectors_ND

    return feature("user", user_ND), feature("item", item_ND)


def _with_final(
    job: Job,
    embeddings: EmbeddingManifest,
    report: DownstreamReport,
    table: pa.Table,
    columns: list[str],
    before: Callable[[Bundle, Path, pa.Table], pa.Table],
) -> DownstreamReport:
    """Judges the final model that is live, or the one to be, on the new features against production's, on the same rows.

    Args:
        job: The run; its folder `FINAL` holds the model trained in this run, and the one to be released afterwards.
        embeddings: The new ones.
        report: Without final model and replay.
        table: The judged rows.
        columns: Features, exported ones included.
        before: Gives the rows what production exports for them.
    """
    from trainer.downstream import choose_final, first_final, replay, used_columns
    from trainer.export import read_manifest

    settings, out, live = job.config.downstream, job.run.path / FINAL, job.registry.production_path()
    if settings.live is not None:
        report = replace(report, final=f"The live final model is {settings.live}; whoever runs it releases it, so none is sealed here.")
        if job.production is None or live is None:
            return report
        model, old = Path(settings.live), before(job.production, live, table)
        return replace(report, replay=replay(model, table, used_columns(model, table, columns), before=old, action=report.action))
    reason = report.reason or "no single model was judged, for want of earlier days (export.as_of)"
    if job.production is None or live is None or not (live / FINAL).is_dir():
        choice = first_final(out, reason)
    else:
        old, live_space = before(job.production, live, table), read_manifest(live / "embeddings").feature_space
        choice = choose_final(
            out, live / FINAL, table, old, report.action, space=embeddings.feature_space, live_space=live_space, reason=reason
        )  # fmt: skip
    return replace(report, replay=choice.checks, final=choice.sentence, final_sha256=choice.sha256)


def _before(
    job: Job, examples: ExamplesManifest, days: DayPlan, evaluation: Evaluation, production: Bundle, live: Path, table: pa.Table
) -> pa.Table:
    """Returns the judged rows with what production (its bundle, its release) exports for them in place of the new columns.

    Its scores are the delivered ones: the scorer of a released bundle puts them behind the release's repair.
    """
    from trainer.downstream.assemble import with_exported
    from trainer.evaluate import RankerScorer
    from trainer.export import read_manifest
    from trainer.fit.train import partition, shard_keys

    scorer, root = RankerScorer(production), Path(job.config.rebuild.root)
    parts = [scorer.score(*partition(root, examples, key), job.known_until_ms, items=True) for key in shard_keys(examples, days.holdout)]
    user_ND, item_ND = (np.concatenate([getattr(part, name) for part in parts])[evaluation.order_N] for name in ("user_ND", "item_ND"))
    features = _as_features(live / "embeddings", read_manifest(live / "embeddings"), user_ND, item_ND)
    scores = {name: np.concatenate([part.score_N[name] for part in parts])[evaluation.order_N] for name in parts[0].score_N}
    dot_N = np.concatenate([part.dot_N for part in parts])[evaluation.order_N]
    return with_exported(table, scores, dot_N, *features)


def absorb(
    job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, evaluation: Evaluation, verdict: Verdict
) -> AbsorbReport | None:
    """After PROMOTE, lets a copy of the judged trunk learn the holdout too, and says whether it may be served."""
    if not job.config.release.absorb or verdict.verdict != PROMOTE:
        return None
    from trainer.evaluate import RankerScorer, compare_copies
    from trainer.fit.absorb import absorb
    from trainer.fit.train import partition, shard_keys
    from trainer.tracking import logger

    out, report = job.run.path / ABSORBED, job.run.path / "absorb.json"
    root = Path(job.config.rebuild.root)

    def scores(bundle: Bundle) -> dict[str, np.ndarray]:
        """Scores of the holdout in the order of the predictions, without repairs: both copies on the ranker's own scale."""
        scorer = RankerScorer(bundle)
        parts = [partition(root, examples, key) for key in shard_keys(examples, days.holdout)]
        scored = [scorer.score(rows, tail, job.known_until_ms).score_N for rows, tail in parts]
        return {name: np.concatenate([part[name] for part in scored])[evaluation.order_N] for name in scored[0]}

    def produce() -> AbsorbReport:
        bundle, steps = absorb(job.config, root, examples, days, trained.bundle, out, logger=logger(job.config.tracking, job.run.path))
        table = evaluation.predictions
        names = [name for name in table.column_names if name.startswith((LABEL, PRODUCTION))]
        columns = {name: np.asarray(pc.fill_null(table[name], np.nan), np.float64) for name in names}
        judged = scores(trained.bundle)
        checks = compare_copies(
            judged,
            scores(bundle),
            {name: columns[LABEL + name] for name in judged},
            {name: columns[PRODUCTION + name] for name in judged if PRODUCTION + name in columns},
            table[WEIGHT].to_numpy(),
            {name: action.kind for name, action in job.config.data.actions.items()},
            job.config.release,
        )
        done = AbsorbReport.of(bundle.manifest.absorbed, steps, trained.bundle.sha256, bundle.sha256, checks)
        write_text(report, json.dumps(as_plain(done), indent=1))
        return done

    key = [trained.bundle.sha256, as_plain(job.config.release), as_plain(job.config.schedule), as_plain(job.config.fit), as_plain(days)]
    resumed = forget_others(out, sha256_json(key))
    return job.run.stage(
        "absorb", key, produce, lambda: from_plain(AbsorbReport, json.loads(report.read_text())),
        lambda done: (done.steps, "; ".join(filter(None, [done.sentence, resumed]))),
    )  # fmt: skip


def release(job: Job, asked: str, trained: Trained, verdict: Verdict, absorbed: AbsorbReport | None = None) -> dict[str, Any]:
    """Seals a challenger that may go live, records the verdict, and moves the pointer if the verdict says so.

    The judged copy goes live, or the one that has absorbed the holdout as well; embeddings stay those that were judged.
    """
    from trainer.release.stage import stage_release

    served = absorbed is not None and absorbed.served
    if served and job.config.serving.enabled:
        from trainer.stages.serving import of_absorbed

        of_absorbed(job, ABSORBED)

    def produce() -> dict[str, Any]:
        done = stage_release(
            job.registry,
            job.run.path,
            verdict,
            as_of=job.as_of,
            inputs_sha256=asked,
            bundle_sha256=absorbed.bundle if absorbed is not None and served else trained.bundle.sha256,
            parent=job.live,
            expected_revision=job.revision,
            auto=job.config.release.auto,
            bundle=ABSORBED if served else "challenger",
        )
        if absorbed is None:
            return done
        return {**done, "absorbed": as_plain(absorbed), "sentence": f"{done['sentence']}; {absorbed.sentence}"}

    return job.run.stage("release", None, produce, None, lambda done: (0, done["sentence"]))
