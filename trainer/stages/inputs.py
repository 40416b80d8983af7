"""Stages that read the log: scan, plan the days, rebuild, ask production about the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trainer.days import DayPlan, plan_days
from trainer.errors import DataError
from trainer.job import Job
from trainer.logs.layout import day_folder
from trainer.rebuild import rebuild as rebuild_examples
from trainer.rebuild.leak_alarm import leak_alarm, refuse_leaks
from trainer.rebuild.plan import content_hash
from trainer.scan import check_budget, write_scan
from trainer.scan import scan as scan_days
from trainer.schema.examples import ExamplesManifest, read_partition, read_tail
from trainer.schema.health import HealthMap
from trainer.schema.plain import as_plain, from_plain
from trainer.stages.history import check_past_days

if TYPE_CHECKING:
    from trainer.evaluate.labels import DayRanking

_COMPARED_DAYS = 3  # that production has seen: what its rankings of new days are compared with


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
        words = f"{len(states)} days, {states.count('masked')} masked, {states.count('refused')} refused"
        notices = sum(len(state.notices) for state in health.days.values())
        return sum(state.rows for state in health.days.values()), words + f", {notices} only told" * bool(notices)

    # A folder is scanned again when a file of it changed since: name, size or time of change.
    key = [as_plain(job.config.data), as_plain(job.config.scan), job.days, _listing(job)]
    health = job.run.stage("scan", key, produce, lambda: from_plain(HealthMap, json.loads(file.read_text())), tell)
    check_budget(health, job.config.scan)
    return health


def plan(job: Job, health: HealthMap) -> DayPlan:
    """Splits the days into holdout, training days and days production has seen.

    Raises:
        ConfigError: If ``export.as_of`` names a day that is none of the latter two: said before hours of training, not after.
    """
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    trained = job.parent.manifest.trained if job.parent else {}
    days = plan_days(job.config.data, health, contents, trained, job.as_of, job.config.evaluation.holdout_days)
    check_past_days(job.config.export.as_of, [*days.seen, *days.train])
    return days


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
        words = f"{len(manifest.numeric) + len(manifest.categorical)} features, {sum(manifest.duplicates.values()):,} duplicates removed"
        if other := sum(manifest.other_labels.values()):
            key = "data.event_id" if job.config.data.event_id else "user, item and event time, as data.event_id is not set"
            words += f", {other:,} of them with other labels than the first delivery's, which count (the same {key})"
        return rows, words

    return job.run.stage("rebuild", None, produce, None, tell)


def labels(job: Job, examples: ExamplesManifest, days: DayPlan) -> None:
    """Refuses days whose labels production ranks backwards: they must be told before the first optimizer step.

    Raises:
        DataError: If labels were turned over, unless the policy only counts such days (``scan.actions.label_flip=count``).
    """
    if job.production is None:
        return
    from trainer.evaluate import RankerScorer
    from trainer.evaluate.labels import rank_day, turned_over

    root, scorer = Path(job.config.rebuild.root), RankerScorer(job.production)

    def produce() -> list[DayRanking]:
        found = []
        for day in (*days.seen[-_COMPARED_DAYS:], *days.train, *days.holdout):
            parts = [partial(_with_tail, root, examples, day, bucket) for bucket in range(examples.user_buckets)]
            found += rank_day(job.config.data, scorer, day, parts, job.known_until_ms)
        return found

    def tell(found: Sequence[DayRanking]) -> tuple[int, str]:
        lowest = min(found, key=lambda one: one.auc, default=None)
        worst = f"production ranks {lowest.action} of {lowest.day} worst, AUC {lowest.auc:.3f}" if lowest else "nothing to rank"
        return sum({one.day: one.rows for one in found}.values()), worst

    odd = turned_over(job.run.stage("labels", None, produce, None, tell))
    said = [
        f"{one.action} on {one.day}: production's AUC {one.auc:.3f}, usual {usual:.3f}, {one.base_rate:.1%} positive" for one, usual in odd
    ]
    if said and job.config.scan.actions.get("label_flip") == "count":
        print(f"{'labels':<11}turned over, and let through by scan.actions.label_flip=count: {'; '.join(said)}", flush=True)
    elif said:
        raise DataError(
            "labels are turned over", where=", ".join(sorted({one.day for one, _ in odd})), got="; ".join(said),
            expected="labels that production ranks as it did on the days before",
            remedy="repair the days; or decide otherwise: scan.actions.label_flip=count",
        )  # fmt: skip


def _with_tail(root: Path, examples: ExamplesManifest, day: str, bucket: int) -> tuple[pa.Table, pa.Table]:
    return read_partition(root, examples, day, bucket), read_tail(root, examples, day, bucket)


def _listing(job: Job) -> list[list[Any]]:
    root = Path(job.config.data.root)
    files = [root / name for day in job.days for name in day_folder(job.config.data, day).files]
    return [[str(file), (state := file.stat()).st_size, state.st_mtime_ns] for file in files]
