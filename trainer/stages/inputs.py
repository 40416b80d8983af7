"""Stages that read the log: scan, plan the days, rebuild."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.days import DayPlan, plan_days
from trainer.job import Job
from trainer.logs.layout import day_folder
from trainer.rebuild import rebuild as rebuild_examples
from trainer.rebuild.leak_alarm import leak_alarm, refuse_leaks
from trainer.rebuild.plan import content_hash
from trainer.scan import check_budget, write_scan
from trainer.scan import scan as scan_days
from trainer.schema.examples import ExamplesManifest
from trainer.schema.health import HealthMap
from trainer.schema.plain import as_plain, from_plain

if TYPE_CHECKING:
    pass


def scan(job: Job) -> HealthMap:
    """Verifies every day up to as_of and decides what can be trusted."""
    file = job.run.path / "scan" / "health.json"

    def produce() -> HealthMap:
        health = scan_days(job.config.data, job.days, job.config.scan)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(as_plain(health)))
        write_scan(health, job.run.path)
        return health

    def tell(health: HealthMap) -> tuple[int, str]:
        states = [state.status for state in health.days.values()]
        return sum(
            state.rows for state in health.days.values()
        ), f"{len(states)} days, {states.count('masked')} masked, {states.count('refused')} refused"

    # A folder is scanned again when a file of it changed since: name, size or time of change.
    key = [as_plain(job.config.data), as_plain(job.config.scan), job.days, _listing(job)]
    health = job.run.stage("scan", key, produce, lambda: from_plain(HealthMap, json.loads(file.read_text())), tell)
    check_budget(health, job.config.scan)
    return health


def plan(job: Job, health: HealthMap) -> DayPlan:
    """Splits the days into holdout, training days and days production has seen."""
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    trained = job.parent.manifest.trained if job.parent else {}
    return plan_days(job.config.data, health, contents, trained, job.as_of, job.config.evaluation.holdout_days)


def rebuild(job: Job, health: HealthMap, days: DayPlan) -> ExamplesManifest:
    """Rebuilds features as they were known; keeps its own content-addressed tasks, so it is asked every time."""

    def produce() -> ExamplesManifest:
        manifest = rebuild_examples(
            job.config.data,
            job.features,
            health,
            days.usable,
            job.config.rebuild,
            max_history=job.max_history,
            as_of_ms=job.known_until_ms,
            vocabulary_days=days.train,
        )
        if job.config.rebuild.leak_alarm:
            refuse_leaks(leak_alarm(Path(job.config.rebuild.root), manifest, days.train, job.config.data, job.features))
        return manifest

    def tell(manifest: ExamplesManifest) -> tuple[int, str]:
        rows = sum(record.rows for record in manifest.partitions)
        return (
            rows,
            f"{len(manifest.numeric) + len(manifest.categorical)} features, {sum(manifest.duplicates.values()):,} duplicates removed",
        )

    return job.run.stage("rebuild", None, produce, None, tell)


def _listing(job: Job) -> list[list[Any]]:
    root = Path(job.config.data.root)
    files = [root / name for day in job.days for name in day_folder(job.config.data, day).files]
    return [[str(file), (state := file.stat()).st_size, state.st_mtime_ns] for file in files]
