"""Verification of one file, run inside a killable worker: bytes, footer, pages, columns, rows.

Damage is kept as small as it is: a cell, a column chunk, a row group, the file. Nothing here raises on bad data; it reports.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.logs.calendar import known_late
from trainer.logs.conform import Finding, conform, logical_type
from trainer.logs.decode import DECODE_ERRORS, carries_checksums, healthy_rows, open_parquet, read_csv
from trainer.logs.normalise import normalise
from trainer.logs.roles import CRITICAL, source_columns, tick_units
from trainer.logs.treat import treat
from trainer.scan.chunks import ChunkDamage, damaged_chunks, misfit_chunks, rows_by_chunks
from trainer.scan.summary import FileState, file_state
from trainer.schema.health import CellRule, Fault, FileHealth
from trainer.schema.logs import LogSpec

_MAGIC = b"PAR1"
_SMALLEST = 12  # magic, footer length, magic


@dataclass(frozen=True)
class Inspection:
    """What a footer says: logical type of every column, in order; empty where the file cannot be opened."""

    types: dict[str, str]


@dataclass(frozen=True)
class Expected:
    """What every file of the log should look like.

    Attributes:
        types: Source column -> logical type over the whole log.
        columns: All columns of most files, in their order.
    """

    types: dict[str, str]
    columns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FileReport:
    """A verified file.

    Attributes:
        file: What rebuild may read.
        faults: What was found.
        delivery_N: uint64, hash of what makes a delivery; one entry a usable row.
        known_at_N: int64 ms.
        row_N: int64, position in the file.
        late_N: bool, known only after the business day of the event.
        event_range: First and last event time (ms).
        dropped: Rows set aside.
        state: What is remembered of the values.
        read_s: Seconds that reading the bytes took.
    """

    file: FileHealth
    faults: list[Fault]
    delivery_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    known_at_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    row_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    late_N: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    event_range: tuple[int, int] = (0, -1)
    dropped: int = 0
    state: FileState = field(default_factory=FileState)
    read_s: float = 0.0


def inspect(root: str, path: str, layout: str) -> Inspection:
    """Reads the types of a file's columns; a file that cannot be opened has none (verification says why).

    Raises:
        OSError: If the disk does not answer.
    """
    with (Path(root) / path).open("rb") as stream:
        try:
            schema = read_csv(stream.read()).schema if layout == "csv" else pq.ParquetFile(stream).schema_arrow
        except DECODE_ERRORS:
            return Inspection({})
    return Inspection({name: logical_type(schema.field(name).type) for name in schema.names})


def verify(
    spec: LogSpec, day: str, path: str, expected: Expected, listed: Mapping[str, Any] | None, rules: Sequence[CellRule] = ()
) -> FileReport:
    """Verifies one file; one that is damaged is read a second time, because transport damages too.

    Args:
        spec: The log.
        day: Business day of its partition.
        path: Path below the data root.
        expected: What files of this log look like.
        listed: What the day's manifest says about the file, if it has one.
        rules: Treatment of cells and rows.

    Raises:
        OSError: If the disk does not answer; the caller tries again.
        MemoryError: If the file asks for more than the worker may use.
    """
    data, seconds = _read(Path(spec.root) / path)
    report = _verify_bytes(spec, day, path, data, expected, listed, rules)
    if not _bytes_damaged(report):
        return replace(report, read_s=seconds)
    again, _ = _read(Path(spec.root) / path)
    if again == data:
        return replace(report, read_s=seconds)
    second = _verify_bytes(spec, day, path, again, expected, listed, rules)
    if _bytes_damaged(second):
        return lost_file(day, path, "file_changed", "two reads gave different bytes, both damaged", second.file.rows)
    evidence = f"a first read gave {len(data)} damaged bytes, the second {len(again)} sound ones"
    fault = Fault(kind="transient_error", day=day, file=path, action="count", evidence=evidence)
    return replace(second, faults=[*second.faults, fault], read_s=seconds)


def _read(place: Path) -> tuple[bytes, float]:
    begun = time.perf_counter()
    return place.read_bytes(), time.perf_counter() - begun


def _bytes_damaged(report: FileReport) -> bool:
    return report.file.quarantined or any(fault.row_group is not None for fault in report.faults)


def _verify_bytes(
    spec: LogSpec,
    day: str,
    path: str,
    data: bytes,
    expected: Expected,
    listed: Mapping[str, Any] | None,
    rules: Sequence[CellRule],
) -> FileReport:
    file = FileHealth(path=path, sha256=hashlib.sha256(data).hexdigest(), rows=int((listed or {}).get("rows", 0)), bytes=len(data))
    source = _Source(spec, day, data, expected, rules, altered=bool(listed) and (listed or {}).get("sha256") not in (None, file.sha256))
    if spec.layout.format == "csv":
        return _verify_csv(source, file)
    if envelope := _envelope(data):
        return _set_aside(day, file, *envelope)
    try:
        opened = open_parquet(data)
    except DECODE_ERRORS as error:
        return _set_aside(day, file, "footer_damage", _brief(error))
    rows, expected_rows = opened.metadata.num_rows, int((listed or {}).get("rows", opened.metadata.num_rows))
    if rows != expected_rows or (counted := rows_by_chunks(opened)) != rows:
        says = f"the manifest {expected_rows}" if rows != expected_rows else f"the column chunks {counted}"
        return _set_aside(day, file, "row_count_mismatch", f"the footer says {rows} rows, {says}")
    file = replace(file, rows=rows)
    roles = source_columns(spec)
    if missing := [name for name, role in roles.items() if role in CRITICAL and name not in opened.schema_arrow.names]:
        return _set_aside(day, file, "missing_column", f"no column {missing[0]}", missing[0])
    return _verify_pages(source, file, opened)


@dataclass(frozen=True)
class _Source:
    """What the verification of one file goes by."""

    spec: LogSpec
    day: str
    data: bytes
    expected: Expected
    rules: Sequence[CellRule]
    altered: bool


def _envelope(data: bytes) -> tuple[str, str] | None:
    """Recognises files whose footer cannot be where it belongs."""
    if len(data) < _SMALLEST:
        return "empty_file", f"{len(data)} bytes"
    if data[-4:] == _MAGIC:
        return None
    zeros = len(data) - len(data.rstrip(b"\0"))
    if zeros >= _SMALLEST:
        return "zero_tail", f"the last {zeros} of {len(data)} bytes are zero"
    return "truncated_file", f"{len(data)} bytes, no magic at the end"


def _verify_pages(source: _Source, file: FileHealth, opened: pq.ParquetFile) -> FileReport:
    day, roles = source.day, source_columns(source.spec)
    mapped = [name for name in roles if name in opened.schema_arrow.names]
    damages = _damages(source, opened, mapped)
    faults = [_chunk_fault(day, file, damage, "quarantine_group" if roles[damage.column] in CRITICAL else "mask") for damage in damages]
    dropped = [damage.group for damage in damages if roles[damage.column] in CRITICAL]
    masked = [(damage.group, damage.column) for damage in damages if roles[damage.column] not in CRITICAL]
    apart = [(damage.group, damage.column) for damage in damages]
    file = replace(file, checksummed=carries_checksums(source.data, opened, apart))
    if source.altered and not faults and file.checksummed:
        # Damage in columns that nobody reads costs nothing, but explains why the file's hash changed.
        others = [name for name in opened.schema_arrow.names if name not in mapped]
        faults = [_chunk_fault(day, file, damage, "count") for damage in _damages(source, opened, others)]
    if source.altered and not (file.checksummed and faults):
        # Checksums do not cover the footer: a changed file is trusted only where a failing page explains the change.
        return _set_aside(day, file, "hash_mismatch", f"sha256 {file.sha256[:12]}... is not the manifest's")
    dropped = sorted(set(dropped))
    masked = [(group, name) for group, name in masked if group not in dropped]
    file = replace(file, masked=masked, dropped_groups=dropped)
    table = healthy_rows(source.data, "parquet", mapped, masked, dropped)
    faults += _shape_faults(source, file, opened.schema_arrow.names, len(table))
    lost = sum(opened.metadata.row_group(group).num_rows for group in dropped)
    return _verify_rows(source, file, table, faults, lost)


def _damages(source: _Source, opened: pq.ParquetFile, columns: list[str]) -> list[ChunkDamage]:
    """Returns the column chunks that cannot be read; in a changed file without any, those whose page headers do not fit."""
    groups = range(opened.num_row_groups) if columns else ()
    unreadable = [damage for group in groups for damage in damaged_chunks(source.data, opened, group, columns).values()]
    if unreadable or not source.altered:
        return unreadable
    return [damage for group in groups for damage in misfit_chunks(source.data, opened, group, columns).values()]


def _chunk_fault(day: str, file: FileHealth, damage: ChunkDamage, action: str) -> Fault:
    return Fault(
        kind=damage.kind, day=day, file=file.path, row_group=damage.group, feature=damage.column, rows=damage.rows, bytes=damage.bytes,
        action=action, evidence=damage.evidence,
    )  # fmt: skip


def _shape_faults(source: _Source, file: FileHealth, names: Sequence[str], rows: int) -> list[Fault]:
    """Compares a file's columns with those of most files: absent mapped ones are masked, the rest is only told."""
    missing = [name for name in source_columns(source.spec) if name not in names]
    faults = [
        Fault(kind="missing_column", day=source.day, file=file.path, feature=name, rows=rows, action="mask", evidence=f"no column {name}")
        for name in missing
    ]
    usual = [name for name in source.expected.columns if name not in missing]
    if usual and list(names) != usual:
        extra, absent = sorted(set(names) - set(usual)), sorted(set(usual) - set(names))
        said = [f"{word} {', '.join(found[:5])}" for word, found in (("extra", extra), ("absent", absent)) if found]
        evidence = "; ".join(said) or "columns in another order"
        faults.append(Fault(kind="schema_drift", day=source.day, file=file.path, action="count", evidence=f"{evidence}; read by name"))
    return faults


def _verify_csv(source: _Source, file: FileHealth) -> FileReport:
    day = source.day
    if not source.data.strip():
        return _set_aside(day, file, "empty_file", f"{len(source.data)} bytes")
    if source.altered:
        return _set_aside(day, file, "hash_mismatch", f"sha256 {file.sha256[:12]}... is not the manifest's")
    try:
        table = read_csv(source.data)
    except DECODE_ERRORS as error:
        return _set_aside(day, file, "unreadable_file", _brief(error))
    file, roles = replace(file, rows=len(table)), source_columns(source.spec)
    if missing := [name for name, role in roles.items() if role in CRITICAL and name not in table.column_names]:
        return _set_aside(day, file, "missing_column", f"no column {missing[0]}", missing[0])
    return _verify_rows(source, file, table, _shape_faults(source, file, table.column_names, len(table)), 0)


def _verify_rows(source: _Source, file: FileHealth, table: pa.Table, faults: list[Fault], lost: int) -> FileReport:
    spec, day, types = source.spec, source.day, source.expected.types
    if not file.rows:
        faults = [*faults, Fault(kind="empty_file", day=day, file=file.path, bytes=file.bytes, action="count", evidence="0 rows")]
    conformed, casts = conform(table, types, tick_units(spec))
    treated, treatments, left_out = treat(conformed, spec, source.rules, file.path)
    normalised = normalise(treated, spec, day)
    events = normalised.table
    event_N, known_N = events["event_time"].to_numpy(), events["known_at"].to_numpy()
    kept = treated if len(events) == len(treated) else treated.take(events["row"])
    return FileReport(
        file=file,
        faults=[*faults, *(_fault(day, file, finding) for finding in (*casts, *treatments, *normalised.findings))],
        delivery_N=events["delivery"].to_numpy(),
        known_at_N=known_N,
        row_N=events["row"].to_numpy(),
        late_N=known_late(event_N, known_N, spec.timezone),
        event_range=(int(event_N.min()), int(event_N.max())) if len(event_N) else (0, -1),
        dropped=lost + left_out + normalised.dropped,
        state=file_state(spec, types, day, kept, events),
    )


def _fault(day: str, file: FileHealth, finding: Finding) -> Fault:
    return Fault(
        kind=finding.kind, day=day, file=file.path, feature=finding.feature, rows=finding.rows,
        action=finding.action, evidence=finding.evidence,
    )  # fmt: skip


def _set_aside(day: str, file: FileHealth, kind: str, evidence: str, feature: str | None = None) -> FileReport:
    fault = Fault(
        kind=kind, day=day, file=file.path, feature=feature, rows=file.rows, bytes=file.bytes, action="quarantine_file", evidence=evidence
    )
    return FileReport(replace(file, quarantined=True), [fault], dropped=file.rows)


def lost_file(day: str, path: str, kind: str, evidence: str, rows: int = 0) -> FileReport:
    """Returns the report of a file that no worker could read."""
    return _set_aside(day, FileHealth(path=path, sha256="", rows=rows, bytes=0), kind, evidence)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
