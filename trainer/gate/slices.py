"""Slice columns: flags, ids, words as they are, numbers in bins, crosses of several.

A declared slice is written ``country``, ``country=TR`` (one value against the rest), ``age:quantile5`` (five bins of equal mass),
or a cross of these, ``country*age:quantile5``. What is declared must be there: a missing column or value is a failed check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from trainer.errors import ConfigError, DataError, nearest
from trainer.gate.column import codes, floats, is_number, text
from trainer.schema import predictions as names
from trainer.schema.policy import CROSS, GatePolicy
from trainer.schema.verdict import Check

OWN = (*names.KEYS, names.VALUE_PRODUCTION, names.VALUE_CHALLENGER, names.VALUE_REFERENCE, names.WEIGHT)
PREFIXES = (names.LABEL, *names.SCORES)
REST = "(rest)"
_TERM = re.compile(r"^(?P<column>.+?)(:quantile(?P<bins>\d+))?(=(?P<value>.*))?$")


@dataclass(frozen=True)
class SliceColumn:
    """One slice column: the group of each row and the groups' names."""

    name: str
    group_N: np.ndarray
    values: list[str]


@dataclass(frozen=True)
class SliceFault:
    """Why a slice column cannot be judged, and whether that is a failure: one that was declared must be there."""

    name: str
    sentence: str
    declared: bool


def slice_candidates(table: pa.Table) -> list[str]:
    """Returns the columns that are no key, label, score or weight."""
    return [name for name in table.column_names if name not in OWN and not name.startswith(PREFIXES)]


def slice_columns(table: pa.Table, policy: GatePolicy, ids: Sequence[str] = ()) -> tuple[list[SliceColumn], list[SliceFault]]:
    """Returns the slice columns that are declared, or every one there is.

    Args:
        table: The predictions.
        policy: Declared slices and limits.
        ids: Columns that are no slices by themselves (authors, topics with more values than can be judged).

    Raises:
        ConfigError: If a declared slice cannot be read as one.
    """
    declared = policy.slices is not None
    wanted = [name for name in slice_candidates(table) if name not in ids] if policy.slices is None else policy.slices
    found, faults = [], []
    for name in wanted:
        made = _column(table, name, policy, declared)
        if isinstance(made, SliceFault):
            faults.append(made)
        elif declared or len(made.values) > 1:
            found.append(made)
    return found, faults


def _column(table: pa.Table, name: str, policy: GatePolicy, declared: bool) -> SliceColumn | SliceFault:
    parts = []
    for term in name.split(CROSS) if declared else [name]:
        column, bins, value = _parse(term) if declared and term not in table.column_names else (term, None, None)
        if column not in table.column_names:
            return SliceFault(name, f"declared slice column {column} is missing ({nearest(column, slice_candidates(table))})", declared)
        try:
            part = _values(table[column], column, bins, policy)
        except DataError as error:
            return SliceFault(name, f"slice column {column} {error.what.removeprefix('a column ')}: {error.got}", declared)
        if value is not None and value not in part.values:
            return SliceFault(name, f"declared slice {column}={value} has no row ({nearest(value, part.values)})", declared)
        parts.append(part if value is None else _one_value(part, value))
    if not declared and len(parts[0].values) > policy.max_slice_values and np.bincount(parts[0].group_N).max() < policy.min_rows:
        why = f"each of the {len(parts[0].values):,} values of {name} has fewer than {policy.min_rows:,} rows: ids are no slices"
        return SliceFault(name, why, declared)
    return _largest(name, parts, policy)


def _parse(term: str) -> tuple[str, int | None, str | None]:
    match = _TERM.match(term)
    if match is None or match["bins"] == "0":
        raise ConfigError("a slice cannot be read", where="gate.slices", got=term, expected="column, column=value or column:quantile5")
    return match["column"], int(match["bins"]) if match["bins"] else None, match["value"]


def _values(column: pa.ChunkedArray, name: str, bins: int | None, policy: GatePolicy) -> SliceColumn:
    if bins is not None:
        return _binned(floats(column, name), name, bins)
    code_N, values = codes(column, name)
    if is_number(column) and len(values) > (policy.max_slice_values if pa.types.is_integer(column.type) else policy.numeric_bins * 2):
        return _binned(floats(column, name), name, policy.numeric_bins)
    return SliceColumn(name, code_N, [text(value) for value in values])


def _binned(x_N: np.ndarray, name: str, bins: int) -> SliceColumn:
    known_N = x_N[np.isfinite(x_N)]
    edges = np.unique(np.quantile(known_N, np.linspace(0, 1, bins + 1)[1:-1])) if len(known_N) else np.zeros(0)
    group_N = np.where(np.isfinite(x_N), np.searchsorted(edges, x_N, side="right"), len(edges) + 1)
    bounds = ["-inf", *(f"{edge:.6g}" for edge in edges), "inf"]
    labels = [f"[{low},{high})" for low, high in pairwise(bounds)]
    return SliceColumn(name, group_N, [*labels, "null"])


def _one_value(part: SliceColumn, value: str) -> SliceColumn:
    return SliceColumn(part.name, (part.group_N != part.values.index(value)).astype(np.int64), [value, REST])


def _largest(name: str, parts: Sequence[SliceColumn], policy: GatePolicy) -> SliceColumn:
    """Crosses columns and keeps the largest values; what is beyond `max_slice_values` becomes one slice ``(rest)``."""
    code_N, values = parts[0].group_N, parts[0].values
    for part in parts[1:]:
        code_N = code_N * len(part.values) + part.group_N
        values = [f"{left}{CROSS}{right}" for left in values for right in part.values]
    count_V = np.bincount(code_N, minlength=len(values))
    kept = np.argsort(-count_V, kind="stable")[: policy.max_slice_values]
    kept = np.sort(kept[count_V[kept] > 0])
    new_V = np.full(len(values), len(kept), np.int64)
    new_V[kept] = np.arange(len(kept))
    rest = [REST] if count_V.sum() > count_V[kept].sum() else []
    return SliceColumn(name, new_V[code_N], [values[index] for index in kept.tolist()] + rest)


def fault_check(fault: SliceFault) -> Check:
    """A declared slice that is missing fails; a column that was only found lying there is left out and listed."""
    outcome, severity = ("fail", "block") if fault.declared else ("not_applicable", "info")
    return Check(name="slice_column", family="data", slice=f"{fault.name}=*", outcome=outcome, severity=severity, sentence=fault.sentence)
