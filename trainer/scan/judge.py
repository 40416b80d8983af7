"""From verified files and suspicions to the verdict on a day: counts that reconcile, faults, status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from trainer.config import ScanConfig
from trainer.errors import DataError
from trainer.logs.layout import DayFolder
from trainer.logs.normalise import first_deliveries
from trainer.logs.roles import EXTRA, FEATURE, REQUIRED
from trainer.scan.labels import LOST_HOURS
from trainer.scan.respond import COUNT, MASK, REFUSE, STOP, Response, released
from trainer.scan.verify import FileReport
from trainer.schema.expression import columns_of
from trainer.schema.health import DayHealth, Fault, HealthMap
from trainer.schema.time import add_days, days_between, parse_day

_BUDGET_DAYS = 14
_WEEKDAYS, _WEEKS = 2, 4
_REPEATED = 0.95  # a file of which more has been delivered before is a copy
_CELL_KINDS = ("non_finite", "out_of_range", "overflow", "wrong_dtype", "invalid_text", "list_damage", "sentinel_spike", "out_of_range_id")


@dataclass(frozen=True)
class Deliveries:
    """What later days need to recognise repeated deliveries: hashes of a day's rows and the times they span."""

    delivery_N: np.ndarray
    event_range: tuple[int, int]

    def overlaps(self, other: tuple[int, int]) -> bool:
        """Tells whether a row of the other range could repeat one of these: the event time is part of what repeats."""
        return self.event_range[0] <= other[1] and other[0] <= self.event_range[1]


@dataclass(frozen=True)
class Past:
    """Earlier, not refused days.

    Attributes:
        deliveries: Of days whose rows may come again.
        rows: (day, usable rows).
    """

    deliveries: list[Deliveries] = field(default_factory=list)
    rows: list[tuple[str, int]] = field(default_factory=list)


def judge_day(
    folder: DayFolder, reports: Sequence[FileReport], response: Response, roles: Mapping[str, str], past: Past, config: ScanConfig
) -> tuple[DayHealth, Deliveries]:
    """Judges one day.

    Args:
        folder: What lies in the day's folder.
        reports: One a file, treated by the response's rules.
        response: What is done about suspicions.
        roles: Source column -> role.
        past: Earlier, not refused days.
        config: Policy.

    Returns:
        The verdict, and what later days need.
    """
    day, rows = folder.day, sum(report.file.rows for report in reports)
    kept_N, span = _first_deliveries(reports, past), _span(reports)
    used, late = int(kept_N.sum()), int((kept_N & np.concatenate([np.zeros(0, bool), *(report.late_N for report in reports)])).sum())
    dropped, duplicates = sum(report.dropped for report in reports), len(kept_N) - used
    faults = [fault for report in reports for fault in report.faults]
    masked = _masked_columns(reports, faults)
    more = _too_many_cells(day, faults, {*masked, *response.masked}, roles, rows, config)
    masked = sorted({*masked, *response.masked, *(fault.feature for fault in more if fault.action == MASK and fault.feature)})
    faults = [*_without_masked(faults, response.masked), *response.faults, *more, *_told(folder, reports, config)]
    faults += _counts(day, reports, kept_N, late, rows)
    exempt = sum(fault.rows for fault in faults if fault.kind == "bot_user" and fault.action == "quarantine_row")
    refusals = _refusals(folder, rows, used, dropped - exempt, faults, masked, roles, past, config)
    refused = any(fault.action in (REFUSE, STOP) for fault in (*faults, *refusals))
    if refused:
        dropped, duplicates, used, late = rows, 0, 0, 0
    status = "refused" if refused else "ok" if all(fault.action == COUNT for fault in faults) else "masked"
    health = DayHealth(
        status=status, files=[report.file for report in reports], faults=[*faults, *refusals], masked_columns=masked,
        rows=rows, used=used, dropped=dropped, duplicates=duplicates, late=late, rules=response.rules, notices=response.notices,
    )  # fmt: skip
    deliveries = np.concatenate([np.zeros(0, np.uint64), *(report.delivery_N for report in reports)])
    return health, Deliveries(deliveries[:0] if refused else deliveries[kept_N], span)


def missing_day(day: str) -> DayHealth:
    """Returns the verdict on a day that was never delivered."""
    fault = Fault(kind="missing_day", day=day, action=REFUSE, evidence="no folder between days that have one")
    return DayHealth(status="refused", files=[], faults=[fault])


def untold_day(folder: DayFolder) -> DayHealth:
    """Returns the verdict on a day whose manifest is damaged: nothing in the folder can be trusted, and nobody should go on."""
    fault = Fault(kind="corrupt_manifest", day=folder.day, action=STOP, evidence=folder.manifest_error or "")
    return DayHealth(status="refused", files=[], faults=[fault])


def check_budget(health: HealthMap, config: ScanConfig) -> None:
    """Stops the run where going on would do harm: on a fault that asks for it, or when the budgets are spent.

    Raises:
        DataError: If a fault stops the run, all days are refused, more than `max_refused_days` of the last 14 are, or more than
            `max_run_bad_share` of the rows of the other days are set aside.
    """
    days = list(health.days)
    _check_stops(health)
    refused = [day for day in days if health.days[day].status == "refused"]
    if days and len(refused) == len(days):
        faults = [fault for fault in health.days[days[0]].faults if fault.action != COUNT]
        causes = [fault for fault in faults if fault.feature] or [fault for fault in faults if fault.action == REFUSE]
        got = "; ".join(f"{fault.kind}{f' ({fault.feature})' * bool(fault.feature)}: {fault.evidence}" for fault in causes[:3])
        remedy = "what is so every day is the specification's fault (unit, timezone, a mapped column); see scan.json"
        raise DataError("every day is refused", where=", ".join(days[:5]), got=got, remedy=remedy)
    recent = [day for day in days[-_BUDGET_DAYS:] if day in refused]
    if len(recent) > config.max_refused_days:
        raise DataError(
            "too many refused days",
            where=", ".join(recent),
            got=f"{len(recent)} of the last {_BUDGET_DAYS}",
            expected=f"at most {config.max_refused_days} (scan.max_refused_days)",
            remedy="repair the days, or raise the limit knowingly",
        )
    others = [state for day, state in health.days.items() if day not in refused]
    rows, dropped = sum(state.rows for state in others), sum(state.dropped for state in others)
    if rows and dropped / rows > config.max_run_bad_share:
        raise DataError(
            "too many rows are set aside",
            where=f"{len(others)} days",
            got=f"{dropped:,} of {rows:,} rows ({dropped / rows:.1%})",
            expected=f"at most {config.max_run_bad_share:.1%} (scan.max_run_bad_share)",
            remedy="see scan.json",
        )


def gaps(days: list[str], on_disk: list[str]) -> list[str]:
    """Returns the days between the first and last of `days` that have no folder at all."""
    if not days:
        return []
    return [day for day in days_between(min(days), max(days)) if day not in set(on_disk)]


def _check_stops(health: HealthMap) -> None:
    for state in health.days.values():
        for fault in state.faults:
            if fault.action == STOP:
                raise DataError(
                    "the scan stops the run", where=" ".join(filter(None, [fault.day, fault.file, fault.feature])),
                    got=f"{fault.kind}: {fault.evidence}",
                    remedy=f"repair the day; or decide otherwise: scan.actions.{fault.kind}, or an entry in scan.releases",
                )  # fmt: skip


def _first_deliveries(reports: Sequence[FileReport], past: Past) -> np.ndarray:
    """Marks the delivery of each event that counts: bool over the usable rows of all files."""
    offsets = np.cumsum([0, *(report.file.rows for report in reports)])
    known_N = np.concatenate([np.zeros(0, np.int64), *(report.known_at_N for report in reports)])
    row_N = np.concatenate([np.zeros(0, np.int64), *(report.row_N + offset for report, offset in zip(reports, offsets, strict=False))])
    delivery_N = np.concatenate([np.zeros(0, np.uint64), *(report.delivery_N for report in reports)])
    span = _span(reports)
    before = [one.delivery_N for one in past.deliveries if one.overlaps(span)]
    return first_deliveries(delivery_N, known_N, row_N, np.concatenate(before) if before else np.zeros(0, np.uint64))


def _span(reports: Sequence[FileReport]) -> tuple[int, int]:
    ranges = [report.event_range for report in reports if len(report.delivery_N)]
    return (min(first for first, _ in ranges), max(last for _, last in ranges)) if ranges else (0, -1)


def _told(folder: DayFolder, reports: Sequence[FileReport], config: ScanConfig) -> list[Fault]:
    """Returns what is told of the folder's files and of how they were read."""
    day = folder.day
    faults = [
        Fault(kind="unexpected_file", day=day, file=path, action=COUNT, evidence="a temporary or foreign name; not read")
        for path in folder.ignored
    ]
    faults += [
        Fault(
            kind="slow_read",
            day=day,
            file=report.file.path,
            bytes=report.file.bytes,
            action=COUNT,
            evidence=f"reading took {report.read_s:.0f} s",
        )
        for report in reports
        if report.read_s >= config.slow_read_s
    ]
    listed = {path for path, entry in (folder.manifest or {}).items() if entry.get("sha256")}
    open_files = [
        report.file for report in reports if not (report.file.checksummed or report.file.path in listed or report.file.quarantined)
    ]
    if open_files and config.unverified != "allow":
        size, action = sum(file.bytes for file in open_files), REFUSE if config.unverified == "refuse" else COUNT
        evidence = f"{len(open_files)} files have neither page checksums nor a hash in a manifest"
        faults.append(Fault(kind="unverified_bytes", day=day, bytes=size, action=action, evidence=evidence))
    return faults


def _counts(day: str, reports: Sequence[FileReport], kept_N: np.ndarray, late: int, rows: int) -> list[Fault]:
    """Returns what is counted and no fault: copies of files, repeated rows, late rows."""
    faults, repeated, begin = [], 0, 0
    for report in reports:
        mine_N = kept_N[begin : begin + len(report.delivery_N)]
        begin += len(mine_N)
        again = int(len(mine_N) - mine_N.sum())
        if len(mine_N) and again >= _REPEATED * len(mine_N):
            evidence = f"{again} of {len(mine_N)} rows have been delivered before"
            faults.append(Fault(kind="duplicate_file", day=day, file=report.file.path, rows=again, action=COUNT, evidence=evidence))
        else:
            repeated += again
    counts = {
        "duplicate_rows": (repeated, "repeated deliveries, the first is kept"),
        "late_rows": (late, "known only after the business day of their event"),
    }
    return faults + [
        Fault(kind=kind, day=day, rows=count, action=COUNT, evidence=f"{count} of {rows} rows: {what}")
        for kind, (count, what) in counts.items()
        if count
    ]


def _masked_columns(reports: Sequence[FileReport], faults: Sequence[Fault]) -> list[str]:
    """Returns the columns that no readable file of the day has."""
    readable = sum(not report.file.quarantined for report in reports)
    absent: dict[str, int] = {}
    for fault in faults:
        if fault.kind == "missing_column" and fault.action == MASK and fault.feature:
            absent[fault.feature] = absent.get(fault.feature, 0) + 1
    return sorted(name for name, files in absent.items() if files == readable)


def _without_masked(faults: Sequence[Fault], masked: Sequence[str]) -> list[Fault]:
    """Drops what was found in single cells of columns that are masked for a reason of their own."""
    gone = set(masked)
    return [
        fault
        for fault in faults
        if not (
            fault.kind in _CELL_KINDS
            and fault.row_group is None
            and fault.action == MASK
            and fault.feature
            and _columns(fault.feature) <= gone
        )
    ]


def _columns(feature: str) -> set[str]:
    """Returns the source columns of a column or expression."""
    return columns_of(feature) if not feature.isidentifier() else {feature}


def _too_many_cells(
    day: str, faults: Sequence[Fault], masked: set[str], roles: Mapping[str, str], rows: int, config: ScanConfig
) -> list[Fault]:
    """Masks a feature of which too many cells are bad; the row that says so stands beside those that say why."""
    bad: dict[str, int] = {}
    for fault in faults:
        if fault.action == MASK and fault.feature and (fault.kind in _CELL_KINDS or fault.row_group is not None):
            for name in _columns(fault.feature) - masked:
                bad[name] = bad.get(name, 0) + fault.rows
    found = []
    for name, cells in sorted(bad.items()):
        if roles.get(name) in (REQUIRED, FEATURE, EXTRA) and rows and cells / rows > config.max_masked_cells_share:
            evidence = f"{cells} of {rows} cells are bad, more than {config.max_masked_cells_share:.0%}"
            fault = Fault(kind="too_many_masked_cells", day=day, feature=name, rows=cells, action=MASK, evidence=evidence)
            found.append(_let_go(fault, config))
    return found


def _refusals(
    folder: DayFolder,
    rows: int,
    used: int,
    dropped: int,
    faults: Sequence[Fault],
    masked: Sequence[str],
    roles: Mapping[str, str],
    past: Past,
    config: ScanConfig,
) -> list[Fault]:
    """Returns one fault for every budget that refuses the day."""
    reasons: list[tuple[str, str | None, str]] = []
    if not folder.finished:
        reasons.append(("unfinished_day", None, "no _SUCCESS marker"))
    if not used:
        reasons.append(("empty_day", None, f"no usable row in {len(folder.files)} files"))
    if rows and dropped / rows > config.max_bad_rows_share:
        reasons.append(("too_many_bad_rows", None, f"{dropped} of {rows} rows set aside, more than {config.max_bad_rows_share:.1%}"))
    usual = _usual_rows(folder.day, past.rows)
    known = dropped + sum(fault.rows for fault in faults if fault.kind == LOST_HOURS)  # set aside or lost, but no riddle
    if usual and used + known < config.min_rows_share * usual:
        reasons.append(("too_few_rows", None, f"{used} usable rows, usual {usual:g}"))
    watched = [name for name, role in roles.items() if role in (REQUIRED, FEATURE)]
    gone = [name for name in watched if name in masked]
    if len(gone) > max(1, config.max_masked_features_share * len(watched)):
        reasons.append(("too_many_masked_features", None, f"{len(gone)} of {len(watched)} features are masked"))
    damaged = {fault.feature: fault.kind for fault in faults if fault.action == MASK and roles.get(fault.feature or "") == REQUIRED}
    reasons += [(kind, name, "a required feature is damaged") for name, kind in sorted(damaged.items(), key=str)]
    found = [
        Fault(kind=kind, day=folder.day, feature=feature, rows=rows, action=REFUSE, evidence=evidence)
        for kind, feature, evidence in reasons
    ]
    return [_let_go(fault, config) for fault in found]


def _let_go(fault: Fault, config: ScanConfig) -> Fault:
    """Returns a fault, or what is told of it where somebody has released it."""
    return replace(fault, action=COUNT, evidence=f"released: {fault.evidence}") if released(fault, config) else fault


def _usual_rows(day: str, past: Sequence[tuple[str, int]]) -> float | None:
    """Returns the median of the same weekday in the last four weeks; the smallest of the last 14 days where too few are known."""
    since, weekday = add_days(day, -7 * _WEEKS), parse_day(day).weekday()
    same = [rows for other, rows in past if other >= since and parse_day(other).weekday() == weekday]
    if len(same) >= _WEEKDAYS:
        return float(median(same))
    recent = [rows for other, rows in past if other >= add_days(day, -_BUDGET_DAYS)]
    return float(min(recent)) if recent else None
