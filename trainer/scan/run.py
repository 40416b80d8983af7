"""The stage: list, inspect, verify, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trainer.config import ScanConfig, ScanRunConfig
from trainer.errors import ConfigError, DataError, nearest
from trainer.logs.conform import INTEGER, OTHER, REAL
from trainer.logs.layout import DayFolder, day_folder, discover_days
from trainer.logs.roles import KEY, source_columns
from trainer.scan.judge import Deliveries, check_budget, gaps, judge_day, missing_day
from trainer.scan.ledger import write_scan
from trainer.scan.show import print_health
from trainer.scan.verify import FileReport, Inspection, inspect, lost_file, verify
from trainer.scan.workers import Call, Failure, ReaderPool
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec


def run(config: ScanRunConfig) -> HealthMap:
    """Scans a log directory, writes `scan.json` and the ledger, prints a table.

    Raises:
        ConfigError: If a mapped column is in no file.
        DataError: If there is no log, no day up to `as_of`, or the refused days pass the budget.
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


def scan(spec: LogSpec, days: list[str], config: ScanConfig) -> HealthMap:
    """Verifies and judges days of a log.

    Args:
        spec: The log.
        days: Days to scan. Days between the first and the last without a folder are reported as missing.
        config: Policy.

    Returns:
        The verdict on every day, in order.

    Raises:
        ConfigError: If a mapped column is in no file, or an expression does not fit the columns.
        DataError: If the log's folder or a day's manifest cannot be read.
    """
    absent = {*gaps(days, discover_days(spec))}
    folders = [day_folder(spec, day) for day in sorted({*days, *absent})]
    with ReaderPool(config.workers, config.read_deadline_s, config.memory_limit_gb, config.retries) as pool:
        types = _types(spec, folders, pool)
        reports = pool.map(_verifications(spec, folders, types))
        return HealthMap(days=_judged(spec, folders, absent, reports, config), types=types)


def _types(spec: LogSpec, folders: list[DayFolder], pool: ReaderPool) -> dict[str, str]:
    """Finds the logical type of every mapped column: that of most files; the earliest wins a tie.

    Raises:
        ConfigError: If a mapped column is in no file that can be opened.
    """
    calls = [Call(inspect, (spec.root, path, spec.layout.format)) for folder in folders for path in folder.files]
    votes: dict[str, Counter[str]] = {}
    for result in pool.map(calls):
        for name, kind in (result.types if isinstance(result, Inspection) else {}).items():
            votes.setdefault(name, Counter())[kind] += 1
    roles = source_columns(spec)
    for name in roles if votes else ():
        if name not in votes:
            raise ConfigError("a mapped column is in no file", where=f"data ({spec.name})", got=name, remedy=nearest(name, votes))
    return {name: _winner(votes.get(name, Counter()), role) for name, role in roles.items()}


def _winner(votes: Counter[str], role: str) -> str:
    kind = next((kind for kind, _ in votes.most_common() if kind != OTHER), REAL)
    return INTEGER if role == KEY and kind == REAL else kind  # ids that a writer turned into doubles


def _verifications(spec: LogSpec, folders: list[DayFolder], types: dict[str, str]) -> list[Call]:
    return [
        Call(verify, (spec, folder.day, path, types, (folder.manifest or {}).get(path))) for folder in folders for path in folder.files
    ]


def _judged(spec: LogSpec, folders: list[DayFolder], absent: set[str], results: Iterator[object], config: ScanConfig) -> dict:
    roles = source_columns(spec)
    earlier: list[Deliveries] = []
    history: list[int] = []
    verdicts = {}
    for folder in folders:
        reports = [_report(folder, path, result) for path, result in zip(folder.files, islice(results, len(folder.files)), strict=True)]
        if folder.day in absent:
            verdicts[folder.day] = missing_day(folder.day)
            continue
        reports += _missing_files(folder)
        verdict, deliveries = judge_day(folder, _only_listed(folder, reports), roles, earlier, history, config)
        verdicts[folder.day] = verdict
        if verdict.status != "refused":
            earlier.append(deliveries)
            history.append(verdict.used)
    return verdicts


def _report(folder: DayFolder, path: str, result: object) -> FileReport:
    if isinstance(result, Failure):
        rows = int((folder.manifest or {}).get(path, {}).get("rows", 0))
        return lost_file(folder.day, path, result.kind, result.evidence, rows)
    if not isinstance(result, FileReport):
        raise TypeError(f"a reader returned {type(result).__name__}")
    return result


def _missing_files(folder: DayFolder) -> list[FileReport]:
    """Files that the manifest lists and the folder lacks."""
    listed = folder.manifest or {}
    return [
        lost_file(folder.day, path, "missing_file", "listed in the manifest, not in the folder", int(entry.get("rows", 0)))
        for path, entry in sorted(listed.items())
        if path not in folder.files
    ]


def _only_listed(folder: DayFolder, reports: list[FileReport]) -> list[FileReport]:
    """Sets aside files that the manifest does not list: leftovers of another attempt, which would double rows."""
    if folder.manifest is None:
        return reports
    return [
        report if report.file.path in folder.manifest else lost_file(folder.day, report.file.path, "unexpected_file", "not in the manifest")
        for report in reports
    ]
