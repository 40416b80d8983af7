"""Stages that ship: embeddings, the model behind them, the release."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trainer.days import DayPlan
from trainer.job import Job
from trainer.schema.examples import ExamplesManifest, read_tail
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.verdict import Verdict
from trainer.stages.judging import concatenated

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest


def export(job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, evaluation: Evaluation) -> EmbeddingManifest | None:
    """Writes embeddings beside the run: staged, visible to nobody before the release."""
    if not job.config.export.enabled:
        return None
    from trainer.evaluate import RankerScorer, RankerVectors
    from trainer.export import export, read_manifest

    root, out = Path(job.config.rebuild.root), job.run.path / "embeddings"

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
            pairs=evaluation.pair,
        )

    key = [trained.bundle.sha256, as_plain(job.config.export), as_plain(days)]
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
    job: Job, examples: ExamplesManifest, days: DayPlan, evaluation: Evaluation, embeddings: EmbeddingManifest | None
) -> DownstreamReport | None:
    """Trains the model behind the embeddings with and without them, on rows whose labels the weights have not seen."""
    if embeddings is None or not job.config.downstream.enabled:
        return None
    from trainer.downstream import assemble, lift
    from trainer.export import lookup
    from trainer.schema.downstream import DownstreamReport

    out = job.run.path / "downstream.json"
    binary = [name for name in job.config.data.gated_actions if job.config.data.actions[name].kind == "binary"]
    action = job.config.downstream.action or binary[0]

    def produce() -> DownstreamReport:
        holdout = concatenated(job, examples, days.holdout).take(pa.array(evaluation.order_N))
        item_ND = lookup(job.run.path / "embeddings", "item", holdout["item"])
        table, features, exported = assemble(holdout, evaluation.predictions, evaluation.pair, evaluation.user_ND, item_ND, action)
        report = lift(table, action, features, exported, job.config.downstream, job.config.seed)
        write_text(out, json.dumps(as_plain(report), indent=1))
        return report

    def tell(report: DownstreamReport) -> tuple[int, str]:
        if not report.lift:
            return report.rows, f"{report.status}: {report.reason}"
        ne = report.lift["ne"]
        return report.rows, f"NE of {action} with embeddings {ne.value:+.4f} [{ne.low:+.4f}, {ne.high:+.4f}] against without"

    def keep() -> DownstreamReport:
        return from_plain(DownstreamReport, json.loads(out.read_text()))

    key = [as_plain(job.config.downstream), as_plain(embeddings), action, as_plain(days)]
    return job.run.stage("downstream", key, produce, keep, tell)


def release(job: Job, asked: str, trained: Trained, verdict: Verdict) -> dict[str, Any]:
    """Seals a challenger that may go live, records the verdict, and moves the pointer if the verdict says so."""
    from trainer.release.stage import stage_release

    def produce() -> dict[str, Any]:
        return stage_release(
            job.registry,
            job.run.path,
            verdict,
            as_of=job.as_of,
            inputs_sha256=asked,
            bundle_sha256=trained.bundle.sha256,
            parent=job.live,
            expected_revision=job.revision,
            auto=job.config.release.auto,
        )

    return job.run.stage("release", None, produce, None, lambda done: (0, done["sentence"]))
