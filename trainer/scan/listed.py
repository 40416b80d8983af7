"""What is watched of columns whose cells hold several values: two views of each, however many values there are.

A list is watched by its length, under the column's own name, and by its values; a vector by its identity (a hash: which vector it is,
so that a frozen, repeated or replaced embedding shows) and by its numbers, all places together. So a vector of 64 numbers costs two
columns of memory, tests and report, not 64; damage to a single place of an embedding shows in the vectors' identities.

Shape suffixes: N rows, M values of all rows, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from trainer.logs.conform import INTEGER
from trainer.logs.hashing import combine
from trainer.logs.lists import element_and_width, lengths, list_columns, values_and_rows
from trainer.scan.states import ColumnState, column_state
from trainer.scan.suspicion import Suspicion
from trainer.schema.ids import splitmix64
from trainer.schema.logs import LogSpec

_VALUES = "values of "  # no column is called so: names of columns are identifiers
_HARMLESS = ("constant", "unit_change", "sentinel_spike", "swapped_columns")  # of lengths


def values_view(column: str) -> str:
    """Names the view of a column's values."""
    return _VALUES + column


def with_views(columns: Iterable[str]) -> set[str]:
    """Returns columns and the views of their values, if they have some."""
    return {view for name in columns for view in (name, values_view(name))}


def listed_ids(spec: LogSpec) -> set[str]:
    """Returns the views that hold ids or categories: vectors by identity, and the values of lists."""
    return {values_view(name) if width is None else name for name, width in list_columns(spec).items()}


def viewed(spec: LogSpec, types: Mapping[str, str], roles: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns types and roles of all views; a column of plain values is its own only view."""
    listed = list_columns(spec)
    types = {**types, **dict.fromkeys(listed, INTEGER), **{values_view(name): element_and_width(types[name])[0] for name in listed}}
    return types, dict(sorted({**roles, **{values_view(name): roles[name] for name in listed}}.items()))


def row_view(column: pa.Array, spec: LogSpec, name: str) -> pa.Array:
    """Returns the view with one number a row, int64 [N]: the length of a list (null where it is missing), the hash of a vector."""
    valid_N = np.asarray(column.is_valid())
    width = list_columns(spec)[name]
    if width is None:
        return pa.array(lengths(column), mask=~valid_N)
    value_RW = np.asarray(values_and_rows(column)[0], np.float64).reshape(-1, width)
    hash_N = np.zeros(len(column), np.uint64)
    hash_N[valid_N] = combine(*(splitmix64(np.ascontiguousarray(value_R).view(np.uint64)) for value_R in (value_RW + 0.0).T))
    return pa.array(hash_N.view(np.int64), mask=~valid_N)


def value_states(spec: LogSpec, columns: Mapping[str, pa.Array], user_N: np.ndarray) -> dict[str, ColumnState]:
    """Summarises the values of lists and vectors, those of all rows together.

    Args:
        spec: The log.
        columns: Columns of lists and vectors, conformed.
        user_N: uint64 hashes of the rows' users.
    """
    states = {}
    for name, width in list_columns(spec).items():
        values, row_M = values_and_rows(columns[name])
        users = user_N[row_M] if width is None else None  # which user has one number of a vector says nothing
        states[values_view(name)] = column_state(values, users, ids=width is None)
    return states


def told(spec: LogSpec, suspicions: Iterable[Suspicion]) -> list[Suspicion]:
    """Turns what is suspected of views into suspicions of their columns, one a column (`_turn`).

    That the lengths of lists change in another way than to nothing is told and held against nobody: lists may grow.
    """
    listed = list_columns(spec)
    found: list[Suspicion] = []
    accused: set[tuple[str, str | None]] = set()
    for one in sorted(suspicions, key=lambda one: _turn(one, listed)):
        column = (one.feature or "").removeprefix(_VALUES)
        if column in listed:
            if (column, one.file) in accused:
                continue
            one = _of_column(one, column, listed[column])
            if not one.unsure:
                accused.add((column, one.file))
        found.append(one)
    return found


def _turn(one: Suspicion, listed: Mapping[str, int | None]) -> int:
    """Ranks what is suspected of one column: zeros and frozen vectors are told as such, whatever else their numbers look like."""
    values = (one.feature or "").startswith(_VALUES)
    if one.kind == "zero_filled" and values:
        return 0
    frozen = one.kind == "constant" and listed.get(one.feature or "") is not None
    return 1 if frozen else 2 if values else 3


def _of_column(one: Suspicion, column: str, width: int | None) -> Suspicion:
    if one.feature != column:
        return replace(one, feature=column, evidence=f"values: {one.evidence}")
    if width is not None:
        return replace(one, evidence=f"whole vectors: {one.evidence}")
    unsure = "a list may be longer or shorter than it was" if one.kind in _HARMLESS else one.unsure
    return replace(one, values=[], evidence=f"lengths: {one.evidence}", unsure=unsure)
