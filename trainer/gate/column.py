"""One column of a table as numbers or as codes, whatever type it came in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import DataError


def codes(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, list[object]]:
    """Returns dense codes in sorted order of the values, so that nothing depends on the order of the rows; null is a value of its own.

    Raises:
        DataError: If values of this type cannot be grouped.
    """
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        values = encoded.dictionary.to_pylist()
        order = sorted(range(len(values)), key=lambda i: (values[i] is None, values[i] if values[i] is not None else 0))
    except (pa.ArrowException, AttributeError, TypeError) as error:
        raise DataError("a column cannot be grouped", where=name, got=str(column.type), expected="numbers, strings or flags") from error
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], [values[i] for i in order]


def floats(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Returns values as float64, null as NaN.

    Raises:
        DataError: If the column holds no numbers.
    """
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    except pa.ArrowException as error:
        raise DataError("a column is not numeric", where=f"predictions, {name}", got=str(column.type), expected="numbers") from error


def text(value: object) -> str:
    """Returns how a value is written in the name of a slice."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def is_number(column: pa.ChunkedArray) -> bool:
    """Whether the column holds numbers; flags are none."""
    kind = column.type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def is_flag(column: pa.ChunkedArray) -> bool:
    """Whether the column is a flag: boolean, or integers that reach from 0 to 1."""
    if pa.types.is_boolean(column.type):
        return True
    if not pa.types.is_integer(column.type):
        return False
    extremes = pc.min_max(column)
    return bool(extremes["min"].as_py() == 0 and extremes["max"].as_py() == 1)
