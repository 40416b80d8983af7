"""Stages that train: the challenger, production continued, and the plan alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint import Bundle
from trainer.config import DistillConfig
from trainer.days import DayPlan
from trainer.job import Job
from trainer.schema.examples import ExamplesManifest
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_json
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.summary import Summary

if TYPE_CHECKING:
    from trainer.fit import Trained


def train(job: Job, examples: ExamplesManifest, days: DayPlan, **options: Any) -> Trained:
    """Trains the challenger; `options` are those of `trainer.fit.train`."""
    from trainer.evaluate import RankerScorer

    if job.config.distill.source == "production" and job.production is not None:
        options = {"teacher": RankerScorer(job.production), **options}
    return _train(job, examples, days, "challenger", job.parent, options)


def continue_production(job: Job, examples: ExamplesManifest, days: DayPlan) -> Trained | None:
    """At a launch, trains production's own shape on the same new days: the baseline that fresh data alone would give."""
    if job.production is None or job.config.gate.name != "launch":
        return None
    from trainer.config import ModelConfig

    model = from_plain(ModelConfig, job.production.manifest.config["model"])
    seen = job.production.manifest.trained
    new = [day for day in [*days.seen, *days.train] if seen.get(day) != examples.source_days[day]]
    return _train(job, examples, replace(days, train=sorted(new)), "continued", job.production, {"model": model})


def dry_run(job: Job, examples: ExamplesManifest, days: DayPlan) -> Summary:
    """Prints the transfer plan and stops before the first step."""
    from trainer.fit.train import plan_only
    from trainer.warm_start.show import show

    transfer = plan_only(job.config, Path(job.config.rebuild.root), examples, days, job.parent)
    show(transfer)
    (job.run.path / "transfer.json").write_text(json.dumps(transfer, indent=1))
    return job.run.finish(Summary(verdict=None, as_of=job.as_of, status="dry run", transfer=transfer, stages=job.run.records))


def _train(job: Job, examples: ExamplesManifest, days: DayPlan, name: str, parent: Bundle | None, options: dict[str, Any]) -> Trained:
    from trainer.fit import read_trained, train
    from trainer.tracking import logger

    out = job.run.path / name
    # Production continued is what fresh data alone would give: nobody teaches it.
    config = job.config if name == "challenger" else replace(job.config, distill=DistillConfig())

    def start() -> Trained:  # the tracker is asked for only where something is trained
        root, tracker = Path(job.config.rebuild.root), logger(job.config.tracking, job.run.path)
        return train(config, root, examples, days, parent, out, logger=tracker, **options)

    def tell(trained: Trained) -> tuple[int, str]:
        log, how = trained.log, "cold" if parent is None else "warm"
        return log.targets, f"{how}, {log.steps} steps, last loss {log.last_loss:.4f}, {log.seconds:.0f} s in the loop"

    key = [
        as_plain(job.config.model),
        as_plain(job.config.optimizer),
        as_plain(job.config.schedule),
        as_plain(job.config.warm_start),
        as_plain(config.distill),
        job.production.sha256 if job.production and config.distill.source == "production" else None,
        as_plain(job.config.fit),
        job.config.seed,
        parent.sha256 if parent else None,
        as_plain(examples),
        as_plain(days),
    ]
    forget_others(out, sha256_json(key))
    return job.run.stage("train" if name == "challenger" else "continue", key, start, lambda: read_trained(out), tell)


def forget_others(out: Path, key: str) -> None:
    """Removes the scratch of an attempt with other settings: its shards and its checkpoint must not be gone on from."""
    marker = out.parent / f"{out.name}-key"
    if not marker.exists() or marker.read_text() != key:
        for scratch in ("shards", "fit"):
            shutil.rmtree(out.parent / f"{out.name}-{scratch}", ignore_errors=True)
    write_text(marker, key)
