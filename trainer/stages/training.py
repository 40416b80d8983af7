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
from trainer.schema.hashing import sha256_code, sha256_json
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
        words = f"{how}, {log.steps} steps, last loss {log.last_loss:.4f}, {log.seconds:.0f} s in the loop"
        return log.targets, "; ".join(filter(None, [words, resumed]))

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
    resumed = forget_others(out, sha256_json(key))
    return job.run.stage("train" if name == "challenger" else "continue", key, start, lambda: read_trained(out), tell)


def forget_others(out: Path, key: str) -> str:
    """Removes the scratch of an attempt with other settings: its shards and its checkpoint must not be gone on from.

    Of an attempt by other code its checkpoint is gone on from, if it still fits (`trainer.fit.run`), because days of training may stand
    behind it; without one nothing is lost, and the shards are encoded again.

    Args:
        out: Folder of what is trained; the scratch lies beside it.
        key: Hash of the settings.

    Returns:
        What is to be told of the checkpoint that is gone on from; empty where nothing is.
    """
    from trainer.fit.run import RESUME

    marker, code, scratch = out.parent / f"{out.name}-key", sha256_code("trainer", "models"), _scratch(out)
    made_for, made_by = (*(marker.read_text().split() if marker.exists() else []), "", "")[:2]
    resume = scratch["fit"] / RESUME
    if made_for == key and made_by != code and resume.is_file():
        return f"resumed from a checkpoint of another version of the code: without {resume} it is trained from the first step"
    for folder in scratch.values() if made_for != key else [scratch["shards"]] if made_by != code else []:
        shutil.rmtree(folder, ignore_errors=True)
    write_text(marker, f"{key}\n{code}\n")
    return ""


def _scratch(out: Path) -> dict[str, Path]:
    return {name: out.parent / f"{out.name}-{name}" for name in ("shards", "fit")}
