"""From verified files to the verdict on a day: counts that reconcile, faults, status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from trainer.config import ScanConfig
from trainer.errors import DataError
from trainer.logs.layout import DayFolder
from trainer.logs.normalise import first_deliveries
from trainer.logs.roles import REQUIRED
from trainer.scan.verify import FileReport
from trainer.schema.health import DayHealth, Fault, HealthMap
from trainer.schema.time import days_between

_HARMLESS = ("count",)
_BUDGET_DAYS = 14


@dataclass(frozen=True)
class Deliveries:
    """What later days need to recognise repeated deliveries: hashes of a day's rows and the times they span."""

    delivery_N: np.ndarray
    event_range: tuple[int, int]

    def overlaps(self, other: tuple[int, int]) -> bool:
        """Tells whether a row of the other range could repeat one of these: the event time is part of what repeats."""
        return self.event_range[0] <= other[1] and other[0] <= self.event_range[1]


def judge_day(
    folder: DayFolder,
    reports: list[FileReport],
    roles: Mapping[str, str],
    earlier: list[Deliveries],
    history: list[int],
    config: ScanConfig,
) -> tuple[DayHealth, Deliveries]:
    """Judges one day.

    Args:
        folder: What lies in the day's folder.
        reports: One a file.
        roles: Source column -> role.
        earlier: Deliveries of earlier, not refused days.
        history: Usable rows of earlier, not refused days.
        config: Policy.

    Returns:
        The verdict, and what later days need.
    """
    day = folder.day
    known_N, row_N, delivery_N, late_N = _joined(reports)
    span = _span(reports)
    before = [past.delivery_N for past in earlier if past.overlaps(span)]
    kept_N = first_deliveries(delivery_N, known_N, row_N, np.concatenate(before) if before else np.zeros(0, np.uint64))
    rows = sum(report.file.rows for report in reports)
    dropped = sum(report.dropped for report in reports)
    used, late = int(kept_N.sum()), int((kept_N & late_N).sum())
    duplicates = len(kept_N) - used
    faults = [fault for report in reports for fault in report.faults]
    faults += _ignored(folder) + _counts(day, duplicates, late, rows)
    masked = _masked_columns(reports, faults)
    refusals = _refusals(folder, rows, used, dropped, faults, roles, history, config)
    if refusals:
        dropped, duplicates, used, late = rows, 0, 0, 0
    status = "refused" if refusals else "ok" if all(fault.action in _HARMLESS for fault in faults) else "masked"
    health = DayHealth(
        status=status, files=[report.file for report in reports], faults=[*faults, *refusals], masked_columns=masked,
        rows=rows, used=used, dropped=dropped, duplicates=duplicates, late=late,
    )  # fmt: skip
    return health, Deliveries(np.zeros(0, np.uint64) if refusals else delivery_N[kept_N], span)


def missing_day(day: str) -> DayHealth:
    """Returns the verdict on a day that was never delivered."""
    fault = Fault(kind="missing_day", day=day, action="refuse_day", evidence="no folder between days that have one")
    return DayHealth(status="refused", files=[], faults=[fault])


def check_budget(health: HealthMap, config: ScanConfig) -> None:
    """Stops the run when too many recent days are refused.

    Raises:
        DataError: If more than `max_refused_days` of the last 14 scanned days are refused, or all days are.
    """
    days = list(health.days)
    refused = [day for day in days if health.days[day].status == "refused"]
    if days and len(refused) == len(days):
        fault = next(fault for fault in health.days[days[0]].faults if fault.action == "refuse_day")
        raise DataError("every day is refused", where=", ".join(days[:5]), got=f"{fault.kind}: {fault.evidence}", remedy="see scan.json")
    recent = [day for day in days[-_BUDGET_DAYS:] if day in refused]
    if len(recent) > config.max_refused_days:
        raise DataError(
            "too many refused days", where=", ".join(recent), got=f"{len(recent)} of the last {_BUDGET_DAYS}",
            expected=f"at most {config.max_refused_days} (scan.max_refused_days)", remedy="repair the days, or raise the limit knowingly",
        )


def gaps(days: list[str], on_disk: list[str]) -> list[str]:
    """Returns the days between the first and last of `days` that have no folder at all."""
    if not days:
        return []
    return [day for day in days_between(min(days), max(days)) if day not in set(on_disk)]


def _joined(reports: list[FileReport]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Concatenates the rows of the day's files; positions go on from file to file."""
    offsets = np.cumsum([0, *(report.file.rows for report in reports)])
    return (
        np.concatenate([np.zeros(0, np.int64), *(report.known_at_N for report in reports)]),
        np.concatenate([np.zeros(0, np.int64), *(report.row_N + offset for report, offset in zip(reports, offsets, strict=False))]),
        np.concatenate([np.zeros(0, np.uint64), *(report.delivery_N for report in reports)]),
        np.concatenate([np.zeros(0, bool), *(report.late_N for report in reports)]),
    )


def _span(reports: list[FileReport]) -> tuple[int, int]:
    ranges = [report.event_range for report in reports if len(report.delivery_N)]
    return (min(first for first, _ in ranges), max(last for _, last in ranges)) if ranges else (0, -1)


def _ignored(folder: DayFolder) -> list[Fault]:
    return [
        Fault(kind="unexpected_file", day=folder.day, file=path, action="count", evidence="a temporary or foreign name; not read")
        for path in folder.ignored
    ]


def _counts(day: str, duplicates: int, late: int, rows: int) -> list[Fault]:
    counts = {
        "duplicate_rows": (duplicates, "repeated deliveries, the first is kept"),
        "late_rows": (late, "known only after the business day of their event"),
    }
    return [
        Fault(kind=kind, day=day, rows=count, action="count", evidence=f"{count} of {rows} rows: {what}")
        for kind, (count, what) in counts.items()
        if count
    ]


def _masked_columns(reports: list[FileReport], faults: list[Fault]) -> list[str]:
    """Returns the columns that no readable file of the day has."""
    readable = sum(not report.file.quarantined for report in reports)
    absent: dict[str, int] = {}
    for fault in faults:
        if fault.kind == "missing_column" and fault.action == "mask" and fault.feature:
            absent[fault.feature] = absent.get(fault.feature, 0) + 1
    return sorted(name for name, files in absent.items() if files == readable)


def _refusals(
    folder: DayFolder,
    rows: int,
    used: int,
    dropped: int,
    faults: list[Fault],
    roles: Mapping[str, str],
    history: list[int],
    config: ScanConfig,
) -> list[Fault]:
    """Returns one fault for every reason to refuse the day."""
    reasons: list[tuple[str, str | None, str]] = []
    if not folder.finished:
        reasons.append(("unfinished_day", None, "no _SUCCESS marker"))
    if not used:
        reasons.append(("empty_day", None, f"no usable row in {len(folder.files)} files"))
    if rows and dropped / rows > config.max_bad_rows_share:
        share = f"{dropped} of {rows} rows set aside, more than {config.max_bad_rows_share:.0%}"
        reasons.append(("too_many_bad_rows", None, share))
    if history and used < config.min_rows_share * median(history):
        reasons.append(("too_few_rows", None, f"{used} usable rows, median of earlier days {median(history):g}"))
    damaged = {fault.feature: fault.kind for fault in faults if fault.action == "mask" and roles.get(fault.feature or "") == REQUIRED}
    reasons += [(kind, name, "a required feature is damaged") for name, kind in sorted(damaged.items(), key=str)]
    return [
        Fault(kind=kind, day=folder.day, feature=feature, rows=rows, action="refuse_day", evidence=evidence)
        for kind, feature, evidence in reasons
    ]
