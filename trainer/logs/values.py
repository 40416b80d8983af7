"""Expressions over Arrow columns: evaluation, ranges, and categorical values; the parts of lists and vectors.

Shape suffixes: N rows, M values of all lists, W numbers of a vector or values of a list that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError
from trainer.logs.conform import Finding
from trainer.logs.lists import values_and_rows
from trainer.schema.expression import Column, columns_of, evaluate
from trainer.schema.logs import ColumnSpec, LogSpec


@dataclass(frozen=True)
class Values:
    """Numbers with validity, both [N]."""

    value_N: np.ndarray
    valid_N: np.ndarray


def categorical_columns(spec: LogSpec) -> set[str]:
    """Returns the source columns that are categorical features as they stand."""
    return {feature.expression or name for name, feature in spec.features.items() if feature.kind == "categorical"}


def evaluated(table: pa.Table, source: str, zone: str) -> Values:
    """Evaluates a numeric expression over a table.

    Raises:
        ConfigError: If it yields text.
    """
    column = _evaluate(table, source, zone)
    if column.values_N.dtype.kind not in "biuf":
        raise ConfigError("a number is needed", where=source, got="text", remedy="write a comparison, say column == 'yes'")
    value_N = column.values_N.astype(np.int64) if column.values_N.dtype.kind == "b" else column.values_N
    valid_N = np.ones(len(table), bool) if column.valid_N is None else column.valid_N
    return Values(value_N, valid_N)


def bounded(values: Values, source: str, minimum: float | None, maximum: float | None, findings: list[Finding]) -> Values:
    """Nulls what is not finite or outside the range, and counts both.

    Args:
        values: The values.
        source: Column or expression, for the findings.
        minimum: Smallest believable value.
        maximum: Largest believable value.
        findings: Receives the counts.
    """
    value_N, valid_N = values.value_N, values.valid_N
    real_N = np.isfinite(value_N)
    finite_N = real_N & (np.abs(value_N) < np.finfo(np.float32).max)
    if broken := int((valid_N & ~real_N).sum()):
        findings.append(Finding("non_finite", source, broken, "mask", f"{broken} of {len(value_N)} cells are NaN or infinite"))
    if large := int((valid_N & real_N & ~finite_N).sum()):
        findings.append(Finding("overflow", source, large, "mask", f"{large} of {len(value_N)} cells would be infinite in 32 bits"))
    with np.errstate(invalid="ignore"):
        low_N = value_N < minimum if minimum is not None else np.zeros(len(value_N), bool)
        high_N = value_N > maximum if maximum is not None else np.zeros(len(value_N), bool)
    outside_N = valid_N & finite_N & (low_N | high_N)
    if outside := int(outside_N.sum()):
        extreme = value_N[outside_N]
        bounds = " or ".join(f"{word} {bound:g}" for word, bound in (("below", minimum), ("above", maximum)) if bound is not None)
        evidence = f"{outside} of {len(value_N)} cells are {bounds}: from {extreme.min():g} to {extreme.max():g}"
        findings.append(Finding("out_of_range", source, outside, "mask", evidence))
    good_N = valid_N & finite_N & ~outside_N
    return Values(np.where(good_N, value_N, 0), good_N)


def categorical(table: pa.Table, source: str, zone: str, minimum: float | None, maximum: float | None, findings: list[Finding]) -> pa.Array:
    """Evaluates a categorical expression: int64 or string; reals that are whole numbers become integers, others null."""
    if source in table.column_names and pa.types.is_string(table[source].type):
        return table[source].combine_chunks() if table[source].num_chunks else pa.nulls(0, pa.string())
    column = _evaluate(table, source, zone)
    if column.values_N.dtype.kind in "OUS":
        mask_N = None if column.valid_N is None else ~column.valid_N
        return pa.array(column.values_N, pa.string(), mask=mask_N)
    values = bounded(evaluated(table, source, zone), source, minimum, maximum, findings)
    whole_N = np.floor(values.value_N) == values.value_N
    if fractions := int((values.valid_N & ~whole_N).sum()):
        findings.append(Finding("wrong_dtype", source, fractions, "mask", f"{fractions} cells of a category are fractions"))
    return pa.array(np.where(whole_N, values.value_N, 0).astype(np.int64), mask=~(values.valid_N & whole_N))


def vector_parts(column: pa.ChunkedArray, source: str, spec: ColumnSpec, width: int, findings: list[Finding]) -> list[pa.Array]:
    """Returns the numbers of vectors, W columns of float32; a vector is null where one of its numbers is not finite or out of range.

    Args:
        column: Conformed vectors: null, or `width` numbers.
        source: Column, for the findings.
        spec: The feature.
        width: W.
        findings: Receives the counts, in vectors.
    """
    lists = _joined(column)
    value_RW = np.asarray(values_and_rows(lists)[0], np.float64).reshape(-1, width)
    low, high = (bound if bound is not None else end for bound, end in ((spec.minimum, -np.inf), (spec.maximum, np.inf)))
    bad_RW = ~(np.abs(value_RW) < np.finfo(np.float32).max) | (value_RW < low) | (value_RW > high)
    worst_R = value_RW[np.arange(len(value_RW)), bad_RW.argmax(1)]  # a vector is judged by its first number that is wrong
    good_R = bounded(Values(worst_R, np.ones(len(worst_R), bool)), source, spec.minimum, spec.maximum, findings).valid_N
    row_R = np.flatnonzero(np.asarray(lists.is_valid()))[good_R]
    value_NW, missing_N = np.zeros((len(lists), width), np.float32), np.ones(len(lists), bool)
    value_NW[row_R], missing_N[row_R] = value_RW[good_R], False
    return [pa.array(value_N, mask=missing_N) for value_N in np.ascontiguousarray(value_NW.T)]


def list_parts(column: pa.ChunkedArray, source: str, width: int, findings: list[Finding]) -> list[pa.Array]:
    """Returns the first `width` distinct values of lists in ascending order, W columns; null where a list has fewer.

    Args:
        column: Conformed lists of int64 or string.
        source: Column, for the findings.
        width: W.
        findings: Receives how many lists have more values.
    """
    lists = _joined(column)
    values, row_M = values_and_rows(lists)
    known = pc.unique(values)
    known = known.take(pc.sort_indices(known))
    code_M = np.asarray(pc.index_in(values, value_set=known), np.int64)
    _, first_M = np.unique(row_M * max(len(known), 1) + code_M, return_index=True)
    row_M, code_M = row_M[np.sort(first_M)], code_M[np.sort(first_M)]  # distinct values, in the order of their lists
    count_N = np.bincount(row_M, minlength=len(lists))
    if longer := int((count_N > width).sum()):
        evidence = f"{longer} of {len(lists)} lists have more than {width} distinct values, up to {count_N.max()}; the first {width} count"
        findings.append(Finding("list_overflow", source, longer, "count", evidence))
    row_M, code_M = (value_M[_place(count_N) < width] for value_M in (row_M, code_M))
    order_M = np.lexsort((code_M, row_M))
    code_NW = np.full((len(lists), width), -1)
    code_NW[row_M, _place(np.minimum(count_N, width))] = code_M[order_M]
    return [known.take(pa.array(code_N, mask=code_N < 0)) for code_N in code_NW.T]


def _place(count_N: np.ndarray) -> np.ndarray:
    """Returns the place of each value in its row, 0, 1, ...; rows follow each other."""
    return np.arange(count_N.sum()) - np.repeat(np.cumsum(count_N) - count_N, count_N)


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def numbers(column: pa.ChunkedArray) -> pa.Array:
    """Returns booleans as int64."""
    return column.cast(pa.int64()).combine_chunks() if column.num_chunks else pa.nulls(0, pa.int64())


def _evaluate(table: pa.Table, source: str, zone: str) -> Column:
    names = columns_of(source)
    column = evaluate(source, {name: _as_column(table[name]) for name in names if name in table.column_names}, zone)
    if not names:  # a constant
        return Column(np.broadcast_to(column.values_N, (len(table),)), None)
    return column


def _as_column(column: pa.ChunkedArray) -> Column:
    valid_N = None if column.null_count == 0 else np.asarray(column.is_valid())
    if pa.types.is_string(column.type):
        return Column(np.asarray(pc.fill_null(column, "").to_pylist(), object), valid_N)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    filled = pc.fill_null(column, pa.scalar(0, pa.int64()).cast(column.type)) if column.null_count else column
    return Column(filled.to_numpy(), valid_N)
