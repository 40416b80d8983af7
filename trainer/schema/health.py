"""Health of the logs: the map day x feature that scan writes and rebuild obeys, and the quarantine ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from trainer.schema.faults import FAULT_KINDS as FAULT_KINDS  # the words of the ledger belong to its schema

HEALTH_VERSION = 2

ACTIONS = ("count", "mask", "quarantine_row", "quarantine_group", "quarantine_file", "refuse_day", "stop")
DAY_STATUSES = ("ok", "masked", "refused")

LEDGER_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("day", pa.string()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("feature", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("action", pa.string()),
        ("evidence", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something wrong with one file, row group, column or day.

    Attributes:
        kind: Name of the catalogue (`FAULT_KINDS`).
        day: Business day of the partition.
        file: Path below the data root, if the fault is in one file.
        row_group: Row group, if the fault is in one.
        feature: Source column, if the fault is in one.
        rows: Rows (or cells) affected.
        bytes: Bytes affected.
        action: What was done about it (`ACTIONS`).
        evidence: What was seen, in a few words and numbers.
    """

    kind: str
    day: str
    file: str | None = None
    row_group: int | None = None
    feature: str | None = None
    rows: int = 0
    bytes: int = 0
    action: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something strange of which too little is known to call it a fault: told, held against nobody, and nothing is done about it.

    Attributes:
        kind: Name of the catalogue that it would have as a fault.
        day: Business day.
        what: What was seen.
        evidence: Why that is not enough.
    """

    kind: str
    day: str
    what: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class CellRule:
    """What scan decided about some cells or rows of a day; rebuild applies it in the same place.

    A rule hits cells outside [minimum, maximum], cells equal to one of `values`, or cells of events from `from_ms` on (with
    `values`: those of them that are equal); one without any condition hits all cells. Hit cells become null, or their rows are left
    out. A rule with `multiply` is a declared repair of the whole column instead.

    Attributes:
        kind: Kind in the ledger.
        feature: Source column.
        evidence: Why.
        file: Only in this file; None for the whole day.
        drop: Whether rows are left out instead of cells made null.
        minimum: Smallest value that is not hit.
        maximum: Largest value that is not hit.
        values: Values that are hit, as text.
        from_ms: First event time that is hit.
        multiply: Factor of a repair.
    """

    kind: str
    feature: str
    evidence: str
    file: str | None = None
    drop: bool = False
    minimum: float | None = None
    maximum: float | None = None
    values: list[str] = field(default_factory=list)
    from_ms: int | None = None
    multiply: float | None = None


@dataclass(frozen=True, kw_only=True)
class FileHealth:
    """One source file as verified.

    Attributes:
        path: Path below the data root.
        sha256: Hash of the whole file as read.
        rows: Rows by the footer.
        bytes: Size.
        quarantined: Whether the file is set aside.
        masked: (row group, source column) chunks whose values are to be read as null.
        dropped_groups: Row groups set aside, because a key, time or label column in them is unreadable.
        checksummed: Whether pages carry checksums that were verified.
    """

    path: str
    sha256: str
    rows: int
    bytes: int
    quarantined: bool = False
    masked: list[tuple[int, str]] = field(default_factory=list)
    dropped_groups: list[int] = field(default_factory=list)
    checksummed: bool = False


@dataclass(frozen=True, kw_only=True)
class DayHealth:
    """Verdict on one day; rebuild reads only what is listed here. Always ``rows = used + dropped + duplicates``.

    Attributes:
        status: ok, masked or refused.
        files: Its files, in reading order.
        faults: What was found.
        masked_columns: Source columns that are null for the whole day.
        rows: Rows delivered, as far as footers and manifests tell (an undecodable file without a manifest counts 0).
        used: Rows that rebuild will use.
        dropped: Rows set aside: bad keys, dropped row groups, quarantined files; all rows of a refused day.
        duplicates: Repeated deliveries of a row that is used; no fault.
        late: Used rows that became known only after the business day of their event; no fault.
        rules: Cells made null, rows left out and repairs, beyond what the files' own entries say.
        notices: What was strange and is no fault; without consequences.
    """

    status: str
    files: list[FileHealth]
    faults: list[Fault] = field(default_factory=list)
    masked_columns: list[str] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    dropped: int = 0
    duplicates: int = 0
    late: int = 0
    rules: list[CellRule] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class HealthMap:
    """Health of every scanned day. `days` is ordered by day; `scan.json` is this map without the file lists.

    Attributes:
        days: Day -> verdict.
        types: Source column -> logical type of most files (``integer``, ``real``, ``text``, ``boolean``, ``instant``; of lists
            ``text[]`` and the like, of vectors ``real[8]``); files of another type are cast to it, and cells that cannot be are null.
    """

    version: int = HEALTH_VERSION
    days: dict[str, DayHealth]
    types: dict[str, str] = field(default_factory=dict)
