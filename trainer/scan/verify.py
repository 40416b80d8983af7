"""Verification of one file, run inside a killable worker: bytes, footer, pages, columns, rows.

Damage is kept as small as it is: a cell, a column chunk, a row group, the file. Nothing here raises on bad data; it reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.logs.calendar import known_late
from trainer.logs.conform import Finding, conform, logical_type
from trainer.logs.decode import DECODE_ERRORS, carries_checksums, healthy_rows, open_parquet, read_chunks, read_csv
from trainer.logs.normalise import normalise
from trainer.logs.roles import CRITICAL, source_columns
from trainer.schema.health import Fault, FileHealth
from trainer.schema.logs import LogSpec

_MAGIC = b"PAR1"
_SMALLEST = 12  # magic, footer length, magic


@dataclass(frozen=True)
class Inspection:
    """What a footer says: columns with their logical types; empty where the file cannot be opened."""

    types: dict[str, str]


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
    """

    file: FileHealth
    faults: list[Fault]
    delivery_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    known_at_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    row_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    late_N: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    event_range: tuple[int, int] = (0, -1)
    dropped: int = 0


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


def verify(spec: LogSpec, day: str, path: str, types: Mapping[str, str], listed: Mapping[str, Any] | None) -> FileReport:
    """Verifies one file.

    Args:
        spec: The log.
        day: Business day of its partition.
        path: Path below the data root.
        types: Source column -> logical type over the whole log.
        listed: What the day's manifest says about the file, if it has one.

    Raises:
        OSError: If the disk does not answer; the caller tries again.
        MemoryError: If the file asks for more than the worker may use.
    """
    data = (Path(spec.root) / path).read_bytes()
    file = FileHealth(path=path, sha256=hashlib.sha256(data).hexdigest(), rows=int((listed or {}).get("rows", 0)), bytes=len(data))
    altered = bool(listed) and listed is not None and listed.get("sha256") not in (None, file.sha256)
    if spec.layout.format == "csv":
        return _verify_csv(spec, day, file, data, types, altered)
    if envelope := _envelope(data):
        return _set_aside(day, file, *envelope)
    try:
        opened = open_parquet(data)
    except DECODE_ERRORS as error:
        return _set_aside(day, file, "footer_damage", _brief(error))
    rows = opened.metadata.num_rows
    if listed and rows != int(listed.get("rows", rows)):
        return _set_aside(day, file, "row_count_mismatch", f"footer says {rows} rows, manifest {listed['rows']}")
    file = replace(file, rows=rows, checksummed=carries_checksums(data, opened))
    roles = source_columns(spec)
    if missing := [name for name, role in roles.items() if role in CRITICAL and name not in opened.schema_arrow.names]:
        return _set_aside(day, file, "missing_column", f"no column {missing[0]}", missing[0])
    return _verify_pages(spec, day, file, data, opened, types, altered)


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


def _verify_pages(
    spec: LogSpec, day: str, file: FileHealth, data: bytes, opened: pq.ParquetFile, types: Mapping[str, str], altered: bool
) -> FileReport:
    roles = source_columns(spec)
    mapped = [name for name in roles if name in opened.schema_arrow.names]
    faults, masked, dropped = [], [], []
    for group in range(opened.num_row_groups):
        for name in _damaged(opened, group, mapped):
            critical = roles[name] in CRITICAL
            faults.append(_chunk_fault(day, file, opened, group, name, "quarantine_group" if critical else "mask"))
            if critical:
                dropped.append(group)
            else:
                masked.append((group, name))
    if altered and not faults and file.checksummed:
        faults = _damaged_elsewhere(day, file, opened, mapped)
    if altered and not (file.checksummed and faults):
        # Checksums do not cover the footer: a changed file is trusted only where a failing page explains the change.
        return _set_aside(day, file, "hash_mismatch", f"sha256 {file.sha256[:12]}... is not the manifest's")
    dropped = sorted(set(dropped))
    masked = [(group, name) for group, name in masked if group not in dropped]
    file = replace(file, masked=masked, dropped_groups=dropped)
    table = healthy_rows(data, "parquet", mapped, masked, dropped)
    missing = [name for name in roles if name not in mapped]
    faults += [
        Fault(kind="missing_column", day=day, file=file.path, feature=name, rows=len(table), action="mask", evidence=f"no column {name}")
        for name in missing
    ]
    lost = sum(opened.metadata.row_group(group).num_rows for group in dropped)
    return _verify_rows(spec, day, file, table, types, faults, lost)


def _damaged(opened: pq.ParquetFile, group: int, columns: list[str]) -> list[str]:
    """Returns the columns of a row group that cannot be read; one read in the healthy case."""
    if _readable(opened, group, columns):
        return []
    return [name for name in columns if not _readable(opened, group, [name])]


def _readable(opened: pq.ParquetFile, group: int, columns: list[str]) -> bool:
    try:
        return len(read_chunks(opened, group, columns)) == opened.metadata.row_group(group).num_rows
    except DECODE_ERRORS:
        return False


def _damaged_elsewhere(day: str, file: FileHealth, opened: pq.ParquetFile, mapped: list[str]) -> list[Fault]:
    """Returns damage in columns that nobody reads: it costs nothing, but explains why the file's hash changed."""
    others = [name for name in opened.schema_arrow.names if name not in mapped]
    groups = range(opened.num_row_groups) if others else ()
    return [_chunk_fault(day, file, opened, group, name, "count") for group in groups for name in _damaged(opened, group, others)]


def _chunk_fault(day: str, file: FileHealth, opened: pq.ParquetFile, group: int, name: str, action: str) -> Fault:
    metadata = opened.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    size = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)
    return Fault(
        kind="bit_flip_page", day=day, file=file.path, row_group=group, feature=name, rows=metadata.num_rows, bytes=size,
        action=action, evidence="checksum or decoding of a page fails",
    )  # fmt: skip


def _verify_csv(spec: LogSpec, day: str, file: FileHealth, data: bytes, types: Mapping[str, str], altered: bool) -> FileReport:
    if not data.strip():
        return _set_aside(day, file, "empty_file", f"{len(data)} bytes")
    if altered:
        return _set_aside(day, file, "hash_mismatch", f"sha256 {file.sha256[:12]}... is not the manifest's")
    try:
        table = read_csv(data)
    except DECODE_ERRORS as error:
        return _set_aside(day, file, "unreadable_file", _brief(error))
    roles = source_columns(spec)
    if missing := [name for name, role in roles.items() if role in CRITICAL and name not in table.column_names]:
        return _set_aside(day, replace(file, rows=len(table)), "missing_column", f"no column {missing[0]}", missing[0])
    return _verify_rows(spec, day, replace(file, rows=len(table)), table, types, [], 0)


def _verify_rows(
    spec: LogSpec, day: str, file: FileHealth, table: pa.Table, types: Mapping[str, str], faults: list[Fault], lost: int
) -> FileReport:
    if not file.rows:
        faults = [*faults, Fault(kind="empty_file", day=day, file=file.path, bytes=file.bytes, action="count", evidence="0 rows")]
    conformed, casts = conform(table, types)
    normalised = normalise(conformed, spec, day)
    events = normalised.table
    event_N, known_N = events["event_time"].to_numpy(), events["known_at"].to_numpy()
    return FileReport(
        file=file,
        faults=[*faults, *(_fault(day, file, finding) for finding in (*casts, *normalised.findings))],
        delivery_N=events["delivery"].to_numpy(),
        known_at_N=known_N,
        row_N=events["row"].to_numpy(),
        late_N=known_late(event_N, known_N, spec.timezone),
        event_range=(int(event_N.min()), int(event_N.max())) if len(event_N) else (0, -1),
        dropped=lost + normalised.dropped,
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
