"""Columns whose cells hold several values: Arrow lists, or JSON arrays as text.

Shape suffixes: N rows, M values of all rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.schema.logs import LogSpec

_ARROW_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)


def list_kind(element: str, width: int | None = None) -> str:
    """Names the logical type of lists: ``text[]``, or ``real[8]`` where every list has eight values."""
    return f"{element}[{'' if width is None else width}]"


def element_and_width(kind: str) -> tuple[str, int | None]:
    """Returns the logical type of a list's values, and how many every list has, if that is fixed."""
    element, _, width = kind.removesuffix("]").partition("[")
    return element, int(width) if width else None


def is_list_kind(kind: str) -> bool:
    """Tells whether a logical type is one of lists."""
    return kind.endswith("]")


def is_arrow_list(kind: pa.DataType) -> bool:
    """Tells whether an Arrow type is any of its lists."""
    return any(test(kind) for test in _ARROW_LISTS)


def list_columns(spec: LogSpec) -> dict[str, int | None]:
    """Returns the log's source columns of lists (None) and of vectors (how many numbers each has)."""
    features = spec.features.items()
    return {one.expression or name: one.width if one.kind == "vector" else None for name, one in features if one.is_listed}


def lengths(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns the number of values of each cell, int64 [N]; 0 where it is null."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)


def values_and_rows(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns the values of all cells, [M], and the row of each."""
    return pc.list_flatten(column), np.repeat(np.arange(len(column)), lengths(column))


def built(values: pa.Array, length_N: np.ndarray, valid_N: np.ndarray) -> pa.Array:
    """Puts values back into lists; rows that are not valid have none.

    Args:
        values: [M].
        length_N: Values of each row; 0 where a row is not valid.
        valid_N: Whether the row is not null.
    """
    offset_N1 = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offset_N1), values, mask=pa.array(~valid_N))


def without(column: pa.Array, hit_M: np.ndarray) -> pa.Array:
    """Takes values out of their lists; a list that has none left stays, empty."""
    values, row_M = values_and_rows(column)
    length_N = np.bincount(row_M[~hit_M], minlength=len(column))
    return built(values.filter(pa.array(~hit_M)), length_N, np.asarray(column.is_valid()))


def mapped(column: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Applies a function, which keeps the number of values, to the values of all cells."""
    return built(change(pc.list_flatten(column)), lengths(column), np.asarray(column.is_valid()))


def from_json(column: pa.Array) -> pa.Array:
    """Reads JSON arrays of scalars as lists of text, with JSON's own spelling of numbers; whatever else stands in a cell is null.

    Args:
        column: Text; each distinct cell is read once.
    """
    coded = column.cast(pa.binary()).dictionary_encode()
    return pa.array([_parsed(cell) for cell in coded.dictionary.to_pylist()], pa.list_(pa.string())).take(coded.indices)


def _parsed(cell: bytes) -> list[str | None] | None:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    return [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
