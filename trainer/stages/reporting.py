"""The last stage: `summary.json` and `report.html`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.days import DayPlan
from trainer.job import Job
from trainer.schema.examples import ExamplesManifest
from trainer.schema.health import HealthMap
from trainer.schema.summary import Summary
from trainer.schema.verdict import Verdict

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest


def report(
    job: Job, health: HealthMap, days: DayPlan, examples: ExamplesManifest, trained: Trained, evaluation: Evaluation,
    embeddings: EmbeddingManifest | None = None, downstream: DownstreamReport | None = None, verdict: Verdict | None = None,
    release: dict[str, Any] | None = None,
) -> Summary:  # fmt: skip
    """Writes `summary.json` and `report.html`."""
    from trainer.report import render
    from trainer.summarise import summarise

    summary = summarise(
        job.config,
        as_of=job.as_of,
        stages=job.run.records,
        health=health,
        days=days,
        examples=examples,
        trained=trained,
        report=evaluation.report,
        production=job.production,
        live=job.live,
        embeddings=embeddings,
        downstream=downstream,
        verdict=verdict,
        release=release,
    )
    job.run.finish(summary)
    if verdict is not None:
        from trainer.diagnose import diagnose

        diagnose(job.run.path, evaluation.predictions)
    page = render(job.run.path)
    print(f"{'report':<11}{page}", flush=True)
    return summary
