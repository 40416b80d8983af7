"""The stage: list, read, examine, respond, judge; a day after the other, because what is usual is what the days before were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.config import ScanConfig, ScanRunConfig
from trainer.errors import ConfigError, DataError, nearest
from trainer.logs.deliver import delivered
from trainer.logs.layout import DayFolder, day_folder, discover_days
from trainer.logs.lists import list_columns
from trainer.logs.normalise import EARLIEST_MS, normalise
from trainer.logs.roles import LABEL, source_columns
from trainer.scan.examine import Examined, Memory, examine_day, remember
from trainer.scan.judge import Deliveries, Past, check_budget, gaps, judge_day, missing_day, untold_day
from trainer.scan.ledger import write_scan
from trainer.scan.read import Reading
from trainer.scan.respond import Response, repairs_of, respond
from trainer.scan.show import print_health
from trainer.scan.summary import binary_actions, monitored, ranked_by
from trainer.scan.unvarying import Unvarying
from trainer.scan.verify import FileReport, lost_file
from trainer.scan.workers import ReaderPool
from trainer.schema.expression import columns_of
from trainer.schema.health import DayHealth, Fault, HealthMap
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_start_ms

_MISFITS = {  # kind -> how a wrong mapping is mended
    "list_damage": "map a column that holds one value a row, or declare its kind (list, vector) and width as they are",
    "out_of_range": "correct its expression, minimum or maximum; a binary action is 0 or 1 (write a comparison, say watch_s >= 30), "
    "its logged score a probability (of odds: odds / (1 + odds))",
}

_DAMAGED = (
    "deliver it again, declare a scan.repairs rule (a factor, with its first and last day), let the log begin with a day that is sound, "
    "or leave the column out until it is mended"
)

Scorer = Callable[[str, pa.Table], Mapping[str, np.ndarray]]


def run(config: ScanRunConfig) -> HealthMap:
    """Scans a log directory, writes `scan.json` and the ledger, prints a table.

    Raises:
        ConfigError: If a mapped column is in no file.
        DataError: If there is no log, no day up to `as_of`, or going on would do harm (`check_budget`).
    """
    on_disk = discover_days(config.data)
    days = [day for day in on_disk if config.as_of is None or day <= config.as_of]
    if not days:
        raise DataError("no day of the log is that early", where="as_of", got=config.as_of, expected=f"{on_disk[0]} or later")
    health = scan(config.data, days, config.scan)
    write_scan(health, Path(config.run_dir))
    print_health(health)
    check_budget(health, config.scan)
    return health


def scan(spec: LogSpec, days: list[str], config: ScanConfig, scorer: Scorer | None = None) -> HealthMap:
    """Verifies and judges days of a log.

    Args:
        spec: The log.
        days: Days to scan. Days between the first and the last without a folder are reported as missing.
        config: Policy.
        scorer: Production, where the log does not carry its scores: (day, normalised events of one file) -> action -> score of
            every row. Logged scores are used where it is not given, and a counting model where there are none.

    Returns:
        The verdict on every day, in order.

    Raises:
        ConfigError: If a mapped column is in no file or on no day what its role says, an expression does not fit the columns, or a
            repair or release fits nothing.
        DataError: If the log's folder cannot be read.
    """
    absent = {*gaps(days, discover_days(spec))}
    folders = [day_folder(spec, day) for day in sorted({*days, *absent})]
    _check_repairs(spec, config)
    with ReaderPool(config.workers, config.read_deadline_s, config.memory_limit_gb, config.retries) as pool:
        reading = Reading.begin(spec, config, folders, pool)
        verdicts = _judged(reading, folders, absent, scorer)
    reading.store.close()
    _check_releases(verdicts, config)
    _check_mapping(spec, verdicts, config)
    return HealthMap(days=verdicts, types=reading.expected.types)


def _judged(reading: Reading, folders: list[DayFolder], absent: set[str], scorer: Scorer | None) -> dict[str, DayHealth]:
    spec, config, roles = reading.spec, reading.config, source_columns(reading.spec)
    actions = {name: column for name, columns in binary_actions(spec).items() for column in columns}
    memory, past, verdicts, unvarying = Memory.of(config), Past(), {}, Unvarying(listed=set(list_columns(spec)))
    clicks = {name for name, role in roles.items() if role == LABEL} if spec.negatives else set()  # 1 in every row: that is such a log
    for folder, found in reading.days(folders):
        day = folder.day
        if day in absent or folder.manifest_error is not None:
            verdicts[day] = missing_day(day) if day in absent else untold_day(folder)
            continue
        reports = [_scored(reading, day, report, scorer) if scorer else report for report in _only_listed(folder, found)]
        examined = examine_day(spec, day, reading.expected.types, reports, memory, config)
        response = _response(reading, day, examined)
        verdict, deliveries = judge_day(folder, _treated(reading, folder, reports, response), response, roles, past, config)
        verdicts[day] = verdict
        healthy = verdict.status != "refused"
        accused = {*response.accused, *verdict.masked_columns}
        remember(memory, examined, accused, actions, healthy)
        if healthy:
            past = _later(past, day, verdict.used, deliveries, spec)
            unvarying.add(day, examined.remembered.state.columns, accused | clicks)
    for notice in unvarying.notices():
        verdicts[notice.day] = replace(verdicts[notice.day], notices=[*verdicts[notice.day].notices, notice])
    return verdicts


def _scored(reading: Reading, day: str, report: FileReport, scorer: Scorer) -> FileReport:
    """Lets production rank a file's labels."""
    if report.file.quarantined or not report.state.rows:
        return report
    health = DayHealth(status="ok", files=[], rules=repairs_of(day, reading.config))
    events = normalise(delivered(reading.spec, report.file, health, reading.expected.types), reading.spec, day).table
    return replace(report, state=ranked_by(report.state, events, scorer(day, events)))


def _response(reading: Reading, day: str, examined: Examined) -> Response:
    spec, config = reading.spec, reading.config
    vital = {column for columns in _trained_labels(spec) for column in columns}
    roles = monitored(spec, reading.expected.types)
    response = respond(day, examined.suspicions, roles, vital, examined.ranks, config)
    return replace(response, rules=[*repairs_of(day, config), *response.rules])


def _trained_labels(spec: LogSpec) -> list[set[str]]:
    """Returns the source columns of every action that is judged or stands in histories."""
    return [columns_of(action.expression) for action in spec.actions.values() if action.gated or action.history]


def _treated(reading: Reading, folder: DayFolder, reports: Sequence[FileReport], response: Response) -> list[FileReport]:
    """Verifies files again that a rule is about, so that what is counted is what rebuild will find."""
    if len(response.rules) == len(repairs_of(folder.day, reading.config)):
        return list(reports)
    return [
        report if report.file.quarantined else reading.again(folder, report.file.path, response.rules)
        for report in reports
    ]  # fmt: skip


def _later(past: Past, day: str, used: int, deliveries: Deliveries, spec: LogSpec) -> Past:
    """Adds a day; deliveries that no later row can repeat are forgotten: a believable event is at most a week early."""
    reach = day_start_ms(day, spec.timezone) - EARLIEST_MS
    kept = [one for one in past.deliveries if one.event_range[1] >= reach]
    return Past([*kept, deliveries], [*past.rows, (day, used)])


def _only_listed(folder: DayFolder, reports: Sequence[FileReport]) -> list[FileReport]:
    """Sets aside files that the manifest does not list: leftovers of another attempt, which would double rows."""
    if folder.manifest is None:
        return list(reports)
    return [
        report if report.file.path in folder.manifest else lost_file(folder.day, report.file.path, "unexpected_file", "not in the manifest")
        for report in reports
    ]


def _check_repairs(spec: LogSpec, config: ScanConfig) -> None:
    roles = source_columns(spec)
    for rule in config.repairs:
        if rule.feature not in roles:
            raise ConfigError(
                "a repair of a column that is not mapped", where="scan.repairs", got=rule.feature, remedy=nearest(rule.feature, roles)
            )
        if list_columns(spec).get(rule.feature, 0) is None:
            raise ConfigError("categories cannot be multiplied", where="scan.repairs", got=f"{rule.feature}, a list")


def _check_releases(verdicts: dict[str, DayHealth], config: ScanConfig) -> None:
    for release in config.releases:
        state = verdicts.get(release.day)
        if state is not None and not any(fault.evidence.startswith("released") for fault in state.faults if fault.kind == release.kind):
            kinds = sorted({fault.kind for fault in state.faults})
            asked = " ".join(filter(None, [release.day, release.kind, release.feature, release.file]))
            raise ConfigError(
                "a release fits no fault of its day", where="scan.releases", got=asked,
                expected=", ".join(kinds) or "the day has none", remedy="remove it, or see scan.json for what the day's faults are called",
            )  # fmt: skip


def _check_mapping(spec: LogSpec, verdicts: dict[str, DayHealth], config: ScanConfig) -> None:
    """Refuses a mapping that fits no day. That may be damage of every day as well: either would be masked without an end."""
    days = {day: state for day, state in verdicts.items() if state.rows}
    if len(days) >= config.min_history_days:
        misfits = [_misfits(state, config.max_masked_cells_share * state.rows) for state in days.values()]
    else:  # a young log may begin with damage, but not one in which no list or vector at all is what is declared
        listed = list_columns(spec)
        misfits = [{name: one for name, one in _misfits(day, day.rows - 1).items() if name in listed} for day in days.values()]
    for name in sorted(set.intersection(*map(set, misfits)) if misfits else ()):
        last = misfits[-1][name]
        raise ConfigError(
            "a mapped column is on no day what its role says", where=f"data ({spec.name}), {name}",
            got=f"on all {len(days)} days ({min(days)} to {max(days)}), on the last one: {last.evidence}",
            expected="at least one day that fits: the mapping is wrong, or the column is damaged on every day that was scanned",
            remedy=f"if the mapping is wrong: {_MISFITS[last.kind]}; if the data is: {_DAMAGED}",
        )  # fmt: skip


def _misfits(state: DayHealth, limit: float) -> dict[str, Fault]:
    """Returns the columns and expressions of which more cells than `limit` have another shape or range than their role."""
    cells: Counter[str] = Counter()
    found: dict[str, Fault] = {}
    for fault in state.faults:
        if fault.kind in _MISFITS and fault.feature:
            cells[fault.feature] += fault.rows
            found.setdefault(fault.feature, fault)
    return {name: fault for name, fault in found.items() if cells[name] > limit}
