"""Reading of a whole log: footers first, then every file in a killable worker, unless an earlier night has read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG

from trainer.config import ScanConfig
from trainer.errors import ConfigError, nearest
from trainer.logs.conform import ARROW_TYPES, INTEGER, REAL, TEXT, declared_type
from trainer.logs.layout import DayFolder
from trainer.logs.lists import is_list_kind
from trainer.logs.roles import KEY, source_columns
from trainer.scan.respond import repairs_of
from trainer.scan.store import Signature, Store
from trainer.scan.verify import Expected, FileReport, Inspection, inspect, lost_file, verify
from trainer.scan.workers import Call, Done, Failure, ReaderPool
from trainer.schema.health import CellRule, Fault
from trainer.schema.logs import LogSpec

_TOLD = {"worker_killed": "worker_killed"}  # other failures that went away are transient errors


@dataclass(frozen=True)
class Reading:
    """The reading of one log.

    Attributes:
        spec: The log.
        config: Policy.
        pool: Readers.
        store: What earlier nights have read.
        inspected: File -> its footer, or why it could not be read.
        expected: What files of this log look like.
    """

    spec: LogSpec
    config: ScanConfig
    pool: ReaderPool
    store: Store
    inspected: dict[str, Done]
    expected: Expected

    @classmethod
    def begin(cls, spec: LogSpec, config: ScanConfig, folders: Sequence[DayFolder], pool: ReaderPool) -> Reading:
        """Reads all footers.

        Raises:
            ConfigError: If a mapped column is in no file that can be opened.
        """
        store = Store(config.root, spec)
        paths = [path for folder in folders for path in folder.files]
        known = {path: store.inspection(path, signature(spec, path)) for path in paths}
        fresh = [path for path in paths if known[path] is None]
        found = dict(zip(fresh, pool.map(Call(inspect, (spec.root, path, spec.layout.format)) for path in fresh), strict=True))
        inspected = {path: found[path] if path in found else Done(known[path], []) for path in paths}
        return cls(spec, config, pool, store, inspected, _expected(spec, inspected))

    def days(self, folders: Sequence[DayFolder]) -> Iterator[tuple[DayFolder, list[FileReport]]]:
        """Yields every day with the reports of its files; files are verified a few ahead."""
        asked: dict[str, Signature | None] = {}

        def calls() -> Iterator[Call]:
            for folder in folders:
                for path in folder.files if folder.manifest_error is None else []:
                    asked[path] = signature(self.spec, path)
                    if self._remembered(folder, path, asked[path]) is None and not self._hangs(path):
                        yield self._call(folder, path, repairs_of(folder.day, self.config))

        results = self.pool.map(calls())
        for folder in folders:
            reports = []
            for path in folder.files if folder.manifest_error is None else []:
                rules = repairs_of(folder.day, self.config)
                report = self._remembered(folder, path, asked.get(path, signature(self.spec, path)))
                if report is None:
                    done = self.inspected[path] if self._hangs(path) else next(results)
                    report = self._settled(folder, path, rules, done, asked.get(path))
                reports.append(report)
            yield folder, [*reports, *_missing_files(folder)]

    def again(self, folder: DayFolder, path: str, rules: Sequence[CellRule]) -> FileReport:
        """Verifies one file again, under rules."""
        mark = signature(self.spec, path)
        known = self.store.report(folder.day, path, mark, self.expected, (folder.manifest or {}).get(path), rules)
        return known or self._settled(folder, path, rules, self.pool.run(self._call(folder, path, rules)), mark)

    def _call(self, folder: DayFolder, path: str, rules: Sequence[CellRule]) -> Call:
        return Call(verify, (self.spec, folder.day, path, self.expected, (folder.manifest or {}).get(path), tuple(rules)))

    def _remembered(self, folder: DayFolder, path: str, mark: Signature | None) -> FileReport | None:
        listed = (folder.manifest or {}).get(path)
        return self.store.report(folder.day, path, mark, self.expected, listed, repairs_of(folder.day, self.config))

    def _hangs(self, path: str) -> bool:
        """A file whose footer could not be read in time is not waited for again."""
        result = self.inspected[path].result
        return isinstance(result, Failure) and result.kind == "read_timeout"

    def _settled(self, folder: DayFolder, path: str, rules: Sequence[CellRule], done: Done, mark: Signature | None) -> FileReport:
        """Turns what became of a call into a report; a file that was replaced meanwhile is read once more."""
        changed = mark is not None and signature(self.spec, path) != mark
        if changed:
            mark = signature(self.spec, path)
            done = self.pool.run(self._call(folder, path, rules))
        if changed and (signature(self.spec, path) != mark or not _sound(done)):
            evidence = "replaced while it was read; a second read found it changing still, or damaged"
            return lost_file(folder.day, path, "file_changed", evidence, _listed_rows(folder, path))
        if isinstance(done.result, Failure):
            return lost_file(folder.day, path, done.result.kind, done.result.evidence, _listed_rows(folder, path))
        report: FileReport = done.result
        failures = [*self.inspected[path].failures, *done.failures]
        types = self.inspected[path].result.types if isinstance(self.inspected[path].result, Inspection) else {}
        if not failures and not any(fault.kind == "transient_error" for fault in report.faults):
            listed = (folder.manifest or {}).get(path)
            self.store.keep(folder.day, mark, types, self.expected, listed, rules, report)
        return replace(report, faults=[*report.faults, *_overcome(folder.day, path, failures)])


def signature(spec: LogSpec, path: str) -> Signature | None:
    """Returns size and time of change (ns) of a regular file; None of anything else."""
    with suppress(OSError):
        state = (Path(spec.root) / path).stat()
        if S_ISREG(state.st_mode):
            return state.st_size, state.st_mtime_ns
    return None


def _expected(spec: LogSpec, inspected: dict[str, Done]) -> Expected:
    """Finds the logical type of every mapped column (that of most files; the earliest wins a tie) and the usual columns."""
    votes: dict[str, Counter[str]] = {}
    layouts: Counter[tuple[str, ...]] = Counter()
    for done in inspected.values():
        types = done.result.types if isinstance(done.result, Inspection) else {}
        layouts[tuple(types)] += bool(types)
        for name, kind in types.items():
            votes.setdefault(name, Counter())[kind] += 1
    roles = source_columns(spec)
    for name in roles if votes else ():
        if name not in votes:
            raise ConfigError("a mapped column is in no file", where=f"data ({spec.name})", got=name, remedy=nearest(name, votes))
    types = {name: _winner(votes.get(name, Counter()), role) for name, role in roles.items()}
    listed = {one.expression or name: one for name, one in spec.features.items() if one.is_listed}
    types |= {name: declared_type(_list_winner(votes.get(name, Counter())), one) for name, one in listed.items()}
    return Expected(types, list(layouts.most_common(1)[0][0]) if layouts else [])


def _winner(votes: Counter[str], role: str) -> str:
    kind = next((kind for kind, _ in votes.most_common() if kind in ARROW_TYPES), REAL)
    return INTEGER if role == KEY and kind == REAL else kind  # ids that a writer turned into doubles


def _list_winner(votes: Counter[str]) -> str:
    return next((kind for kind, _ in votes.most_common() if is_list_kind(kind) or kind == TEXT), TEXT)


def _overcome(day: str, path: str, failures: Sequence[Failure]) -> list[Fault]:
    """Tells of attempts that failed before one succeeded; nothing was lost or read twice."""
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(_TOLD.get(failure.kind, "transient_error"), []).append(failure)
    return [
        Fault(
            kind=kind,
            day=day,
            file=path,
            action="count",
            evidence=f"{len(found)} failed attempts before one succeeded: {found[-1].evidence}",
        )
        for kind, found in kinds.items()
    ]


def _sound(done: Done) -> bool:
    return isinstance(done.result, FileReport) and not done.result.file.quarantined


def _missing_files(folder: DayFolder) -> list[FileReport]:
    """Files that the manifest lists and the folder lacks."""
    return [
        lost_file(folder.day, path, "missing_file", "listed in the manifest, not in the folder", _listed_rows(folder, path))
        for path in sorted(folder.manifest or {})
        if path not in folder.files
    ]


def _listed_rows(folder: DayFolder, path: str) -> int:
    return int((folder.manifest or {}).get(path, {}).get("rows", 0))
