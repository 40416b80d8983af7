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

from trainer.logs.lists import built, element_and_width, from_json, is_arrow_list, is_list_kind, lengths, list_kind, values_and_rows
from trainer.schema.logs import ColumnSpec

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
_SHOWN = 60  # characters of a damaged list
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
    """Returns the logical type of an Arrow type (of lists of scalars: ``integer[]``); structures and exotic ones are ``other``."""
    if pa.types.is_dictionary(kind):
        return logical_type(kind.value_type)
    if is_arrow_list(kind) and (element := logical_type(kind.value_type)) in ARROW_TYPES:
        return list_kind(element)
    return _LOGICAL.get(kind.id, OTHER)


def arrow_type(logical: str) -> pa.DataType:
    """Returns the Arrow type that conformed columns of a logical type have."""
    return pa.list_(ARROW_TYPES[element_and_width(logical)[0]]) if is_list_kind(logical) else ARROW_TYPES[logical]


def declared_type(found: str, column: ColumnSpec) -> str:
    """Returns the logical type of a column that is declared a list or vector.

    Args:
        found: Logical type that its files have. Categories are numbers where these are lists of numbers, else text, as those of JSON are.
        column: The declaration.
    """
    if column.kind == "vector":
        return list_kind(REAL, column.width)
    return list_kind(INTEGER if is_list_kind(found) and element_and_width(found)[0] != TEXT else TEXT)


def conform(table: pa.Table, types: Mapping[str, str], units: Mapping[str, str] = MappingProxyType({})) -> tuple[pa.Table, list[Finding]]:
    """Casts the columns in `types`; columns that the table lacks become null.

    Args:
        table: Columns as read.
        types: Source column -> logical type.
        units: Column of raw ticks -> declared unit: typed timestamps in such a column are converted exactly.

    Returns:
        A table with exactly the columns of `types` (int64, float64, string, bool, timestamp[ms] in UTC, lists of them), and what
        could not be read. Timestamps without a timezone are taken as UTC. A list loses the values that cannot be read, and is null
        if none is left; one of a fixed width is null unless it has so many values, all readable.
    """
    columns, findings, present = {}, [], set(table.column_names)
    for name, wanted in types.items():
        if name not in present:
            columns[name] = pa.nulls(len(table), arrow_type(wanted))
            continue
        column = _joined(table[name])
        if is_list_kind(wanted):
            columns[name], found = _conform_list(name, column, wanted)
            findings += found
            continue
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
    if pa.types.is_nested(column.type):
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


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns one plain array."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _cast(column: pa.Array, wanted: str) -> pa.Array:
    column = _whole(column)
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


def _conform_list(name: str, column: pa.Array, wanted: str) -> tuple[pa.Array, list[Finding]]:
    """Casts a column of lists, value by value; text is read as JSON arrays."""
    column = _whole(column)
    element, width = element_and_width(wanted)
    lists = from_json(column) if logical_type(column.type) == TEXT else column
    if not is_arrow_list(lists.type):
        lists = pa.nulls(len(column), arrow_type(wanted))
    values, row_M = values_and_rows(lists)
    values, length_N = _cast(values, element), lengths(lists)
    read_M = np.asarray(values.is_valid())
    read_N = np.bincount(row_M[read_M], minlength=len(column))
    bad_N = np.asarray(column.is_valid()) & (np.asarray(lists.is_null()) | (read_N < length_N) | ((width or length_N) != length_N))
    valid_N = np.asarray(lists.is_valid()) & ((~bad_N | (read_N > 0)) if width is None else ~bad_N)
    kept_M = read_M & valid_N[row_M]
    cast = built(values.filter(pa.array(kept_M)), np.bincount(row_M[kept_M], minlength=len(column)), valid_N)
    return cast, [_list_finding(name, column, element, width, bad_N)] if bad_N.any() else []


def _list_finding(name: str, column: pa.Array, element: str, width: int | None, bad_N: np.ndarray) -> Finding:
    """Says how many cells hold something else than a list of scalars or a vector, and shows one."""
    bad, first = int(bad_N.sum()), column[int(np.argmax(bad_N))]
    cell = first.cast(pa.binary()).as_py().decode(errors="replace") if logical_type(column.type) == TEXT else str(first.as_py())
    has = f"{len(first)} values: " if is_arrow_list(column.type) else ""
    kind = f"lists of {element}" if width is None else f"vectors of {width} numbers"
    text = ", as an Arrow list or a JSON array" if not has else ""
    return Finding(
        "list_damage", name, bad, "mask", f"{bad} of {len(column)} cells are no {kind}{text}, the first one {has}{cell[:_SHOWN]}"
    )


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
