"""Brings the columns of a file to the log's types: cast where nothing is lost, null where a cell cannot be read.

Every source column has one logical type over the whole log (that of most files). Types decide how ids compare and what an
expression means, so a file of another type is cast to it, never the other way round, and never guessed: raw integers do not
become instants, because their unit is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

INTEGER, REAL, TEXT, BOOLEAN, INSTANT, OTHER = "integer", "real", "text", "boolean", "instant", "other"

ARROW_TYPES = {INTEGER: pa.int64(), REAL: pa.float64(), TEXT: pa.string(), BOOLEAN: pa.bool_(), INSTANT: pa.timestamp("ms")}

_LOGICAL = {
    **dict.fromkeys((kind.id for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())), INTEGER),
    **dict.fromkeys((kind.id for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())), INTEGER),
    **dict.fromkeys((kind.id for kind in (pa.float16(), pa.float32(), pa.float64())), REAL),
    **dict.fromkeys((kind.id for kind in (pa.decimal32(1), pa.decimal64(1), pa.decimal128(1), pa.decimal256(1))), REAL),
    **dict.fromkeys((kind.id for kind in (pa.string(), pa.large_string(), pa.string_view())), TEXT),
    **dict.fromkeys((kind.id for kind in (pa.timestamp("ms"), pa.date32(), pa.date64())), INSTANT),
    pa.bool_().id: BOOLEAN,
}
_INTEGER_TEXT = r"^\s*[+-]?\d{1,18}\s*$"
_REAL_TEXT = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*$"
LONGEST_TEXT = 4_096  # bytes; a category or id is shorter, a longer one is a field that ran into the next
_EXACT = 2.0**53  # beyond this a double does not hold every integer


@dataclass(frozen=True)
class Finding:
    """Something wrong with cells or rows of one file, before it is known what the day makes of it.

    Attributes:
        kind: Name of the fault catalogue.
        feature: Column or feature.
        rows: Cells or rows.
        action: What was done (`trainer.schema.health.ACTIONS`).
        evidence: What was seen.
    """

    kind: str
    feature: str
    rows: int
    action: str
    evidence: str


def logical_type(kind: pa.DataType) -> str:
    """Returns the logical type of an Arrow type; nested and exotic ones are ``other``."""
    if pa.types.is_dictionary(kind):
        return logical_type(kind.value_type)
    return _LOGICAL.get(kind.id, OTHER)


def conform(table: pa.Table, types: Mapping[str, str], units: Mapping[str, str] = MappingProxyType({})) -> tuple[pa.Table, list[Finding]]:
    """Casts the columns in `types`; columns that the table lacks become null.

    Args:
        table: Columns as read.
        types: Source column -> logical type.
        units: Column of raw ticks -> declared unit: typed timestamps in such a column are converted exactly.

    Returns:
        A table with exactly the columns of `types` (int64, float64, string, bool, timestamp[ms] in UTC), and what could not be
        read. Timestamps without a timezone are taken as UTC.
    """
    columns, findings, present = {}, [], set(table.column_names)
    for name, wanted in types.items():
        if name not in present:
            columns[name] = pa.nulls(len(table), ARROW_TYPES[wanted])
            continue
        column = _joined(table[name])
        columns[name] = _ticks(column, units[name]) if _is_typed_time(column, wanted, name, units) else _cast(column, wanted)
        lost = columns[name].null_count - column.null_count
        if lost or (logical_type(column.type) != wanted and column.null_count < len(column)):
            findings.append(_finding(name, column, wanted, lost))
    return pa.table(columns), findings


def _joined(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Joins the chunks of a column; `combine_chunks` would copy a single one. Text beyond two gigabytes stays in chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _finding(name: str, column: pa.Array, wanted: str, lost: int) -> Finding:
    """Says what became of a column of another type, or of cells that could not be read."""
    found, action = logical_type(column.type), "mask" if lost else "count"
    if found == INSTANT and wanted == INTEGER and not lost:
        return Finding("typed_time", name, len(column), "count", f"{column.type} instead of raw ticks: converted to the declared unit")
    if found == OTHER and pa.types.is_nested(column.type):
        return Finding("list_damage", name, lost, action, f"{column.type} where one value is expected")
    if found == wanted == TEXT:
        return Finding(
            "invalid_text", name, lost, action, f"{lost} of {len(column)} cells are no UTF-8, or longer than {LONGEST_TEXT} bytes"
        )
    evidence = f"{column.type} instead of {wanted}; {len(column) - column.null_count - lost} cells cast, {lost} unreadable"
    return Finding("wrong_dtype", name, lost, action, evidence)


def _is_typed_time(column: pa.Array, wanted: str, name: str, units: Mapping[str, str]) -> bool:
    return wanted == INTEGER and pa.types.is_timestamp(column.type) and name in units


def _ticks(column: pa.Array, unit: str) -> pa.Array:
    """Converts a typed timestamp to raw ticks of a declared unit, floored."""
    tick_N = np.asarray(column.cast(pa.int64()).fill_null(0), np.int64)
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
    have, want = per_second[column.type.unit], per_second[unit]
    tick_N = tick_N * (want // have) if want >= have else tick_N // (have // want)
    return pa.array(tick_N, mask=~np.asarray(column.is_valid()))


def _cast(column: pa.Array, wanted: str) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found = logical_type(column.type)
    match wanted, found:
        case "integer", "integer" | "boolean":
            return _from_integer(column)
        case "integer", "real":
            return _from_real(column)
        case "integer", "text":
            return _parse(column, _INTEGER_TEXT, pa.int64())
        case "real", "integer" | "boolean" | "real":
            return column.cast(pa.float64(), safe=False)
        case "real", "text":
            return _parse(column, _REAL_TEXT, pa.float64())
        case "text", "text":
            return _valid_text(column.cast(pa.string()))
        case "text", "integer" | "boolean":
            return column.cast(pa.string())
        case "text", "real":
            whole = _from_real(column)  # 39.0 is the id 39
            return pc.coalesce(whole.cast(pa.string()), column.cast(pa.float64()).cast(pa.string()))
        case "boolean", "boolean":
            return column
        case "boolean", "integer":
            return pc.if_else(pc.is_in(column, value_set=pa.array([0, 1], column.type)), pc.equal(column, pa.scalar(1, column.type)), None)
        case "instant", "instant":
            return _milliseconds(column).cast(pa.timestamp("ms"))
    return pa.nulls(len(column), ARROW_TYPES[wanted])


def _from_integer(column: pa.Array) -> pa.Array:
    if column.type == pa.uint64():
        column = pc.if_else(pc.less_equal(column, pa.scalar(2**63 - 1, pa.uint64())), column, None)
    return column.cast(pa.int64())


def _from_real(column: pa.Array) -> pa.Array:
    value_N = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan), np.float64)
    with np.errstate(invalid="ignore"):
        whole_N = (np.abs(value_N) <= _EXACT) & (np.floor(value_N) == value_N)
    return pa.array(np.where(whole_N, value_N, 0.0).astype(np.int64), mask=~whole_N)


def _parse(column: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    text = column.cast(pa.string())
    readable = pc.fill_null(pc.match_substring_regex(text, pattern), False)
    return pc.cast(pc.utf8_trim_whitespace(pc.if_else(readable, text, None)), kind)


def _valid_text(column: pa.Array) -> pa.Array:
    """Nulls cells that are not UTF-8 (Parquet readers do not check) or absurdly long."""
    try:
        column.validate(full=not _ascii(column))
    except pa.ArrowInvalid:
        column = pa.array([_decoded(cell) for cell in column.cast(pa.binary()).to_pylist()], pa.string())
    length = pc.binary_length(column)
    longest = pc.max(length).as_py() or 0
    return pc.if_else(pc.less_equal(length, LONGEST_TEXT), column, None) if longest > LONGEST_TEXT else column


def _ascii(column: pa.Array) -> bool:
    """Tells whether all text is ASCII, which is UTF-8 and an eighth of the time to check."""
    data = column.buffers()[2]
    return data is None or not len(data) or int(np.frombuffer(data, np.uint8).max()) < 128


def _decoded(cell: bytes | None) -> str | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return None


def _milliseconds(column: pa.Array) -> pa.Array:
    """Floors to milliseconds: rounding up could move an event behind a request that came before it."""
    if pa.types.is_date(column.type):
        return column.cast(pa.timestamp("ms")).cast(pa.int64())
    ticks = column.cast(pa.int64())
    per_ms = {"us": 1_000, "ns": 1_000_000}.get(column.type.unit)
    if per_ms:
        tick_N = np.asarray(pc.fill_null(ticks, 0), np.int64) // per_ms
        return pa.array(tick_N, mask=~np.asarray(ticks.is_valid()))
    return pc.multiply(ticks, 1_000) if column.type.unit == "s" else ticks
