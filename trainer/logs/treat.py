"""Treatment of conformed columns: what scan decided about cells and rows, and repairs that somebody declared.

Scan and rebuild apply the same rules to the same columns, so counts reconcile and a released rule brings back exactly what it took.
A rule about values takes them out of their lists; a vector with such a number is null. A user cannot be null: whoever is masked becomes a
stranger, somebody without a past whom nobody meets again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.logs.conform import Finding
from trainer.logs.hashing import combine, hash_ids
from trainer.logs.lists import is_arrow_list, list_columns, mapped, values_and_rows, without
from trainer.logs.normalise import instant_ms
from trainer.schema.health import CellRule
from trainer.schema.logs import LogSpec


def treat(table: pa.Table, spec: LogSpec, rules: Sequence[CellRule], path: str) -> tuple[pa.Table, list[Finding], int]:
    """Applies rules to a file: repairs first, then cells become null or rows are left out.

    Args:
        table: Conformed source columns.
        spec: The log.
        rules: The day's rules; those of other files are passed over.
        path: Path of the file below the data root.

    Returns:
        The treated table, what was done, and the number of rows left out.
    """
    own = [rule for rule in rules if rule.file in (None, path) and rule.feature in table.column_names]
    findings: list[Finding] = []
    if not own:
        return table, findings, 0
    for rule in (rule for rule in own if rule.multiply is not None):
        table, finding = _repaired(table, rule)
        findings.append(finding)
    keep_N = np.ones(len(table), bool)
    for rule in (rule for rule in own if rule.multiply is None):
        hit_N = _hit(table, spec, rule)
        if not (rows := int(hit_N.sum())):
            continue
        if rule.drop:
            rows = int((hit_N & keep_N).sum())
            keep_N &= ~hit_N
        elif rule.feature == spec.user:
            table = _estranged(table, spec, hit_N)
        else:
            table = _nulled(table, rule, hit_N, in_lists=list_columns(spec).get(rule.feature, 0) is None)
        findings.append(Finding(rule.kind, rule.feature, rows, "quarantine_row" if rule.drop else "mask", rule.evidence))
    dropped = int(len(keep_N) - keep_N.sum())
    return (table.filter(pa.array(keep_N)) if dropped else table), findings, dropped


def _hit(table: pa.Table, spec: LogSpec, rule: CellRule) -> np.ndarray:
    """Marks the cells that a rule is about: bool [N]; nulls are never hit."""
    column = table[rule.feature]
    hit_N = np.zeros(len(table), bool)
    if rule.values:
        hit_N |= _equal(column, rule.values)
    if rule.minimum is not None:
        hit_N |= np.asarray(pc.fill_null(pc.less(column.cast(pa.float64()), rule.minimum), False))
    if rule.maximum is not None:
        hit_N |= np.asarray(pc.fill_null(pc.greater(column.cast(pa.float64()), rule.maximum), False))
    if rule.from_ms is not None:
        event = instant_ms(table, spec.event_time, spec.timezone)
        later_N = event.valid_N & (event.value_N >= rule.from_ms) & np.asarray(column.is_valid())
        return hit_N & later_N if rule.values else later_N
    conditions = (rule.values or None, rule.minimum, rule.maximum)
    return hit_N if any(condition is not None for condition in conditions) else np.asarray(column.is_valid())


def _equal(column: pa.ChunkedArray | pa.Array, values: Sequence[str]) -> np.ndarray:
    """Marks the cells that are one of the values, or hold one."""
    if is_arrow_list(column.type):
        parts, row_M = values_and_rows(column)
        return np.bincount(row_M[_equal(parts, values)], minlength=len(column)) > 0
    if pa.types.is_string(column.type):
        return np.asarray(pc.is_in(column, value_set=pa.array(list(values), pa.string())))
    exact = int if pa.types.is_integer(column.type) else float  # a float64 does not tell large ids apart
    wanted = pa.array([exact(value) for value in values]).cast(column.type, safe=False)
    return np.asarray(pc.is_in(column, value_set=wanted))


def _nulled(table: pa.Table, rule: CellRule, hit_N: np.ndarray, in_lists: bool) -> pa.Table:
    """Nulls the cells that are hit; of lists, only the values that the rule names, if it names any and no time."""
    column = table[rule.feature]
    if in_lists and rule.values and rule.from_ms is None:
        lists = column.combine_chunks()
        column = without(lists, _equal(values_and_rows(lists)[0], rule.values))
    else:
        column = pc.if_else(pa.array(hit_N), None, column)
    return table.set_column(table.column_names.index(rule.feature), rule.feature, column)


def _estranged(table: pa.Table, spec: LogSpec, hit_N: np.ndarray) -> pa.Table:
    """Gives the user of each event that is hit a name of its own; an event that is delivered twice has the same one twice."""
    event = instant_ms(table, spec.event_time, spec.timezone)
    parts = [table[name] for name in (spec.item, spec.event_id) if name]
    hash_N = combine(hash_ids(pa.array(event.value_N)), *(hash_ids(part) for part in parts))
    users = table[spec.user]
    if pa.types.is_string(users.type):
        names = pa.array([f"stranger-{code:016x}" for code in hash_N.tolist()], users.type)
    else:
        names = pa.array(-1 - (hash_N >> np.uint64(2)).astype(np.int64)).cast(users.type)
    return table.set_column(table.column_names.index(spec.user), spec.user, pc.if_else(pa.array(hit_N), names, users))


def _repaired(table: pa.Table, rule: CellRule) -> tuple[pa.Table, Finding]:
    """Multiplies a column, all numbers of a vector alike; integers stay integers, rounded to the nearest."""
    column = table[rule.feature]
    if is_arrow_list(column.type):
        repaired = mapped(column.combine_chunks(), lambda values: _multiplied(values, rule.multiply or 1.0)[0])
        rows = len(repaired) - repaired.null_count
    else:
        repaired, rows = _multiplied(column, rule.multiply or 1.0)
    table = table.set_column(table.column_names.index(rule.feature), rule.feature, repaired)
    return table, Finding("repaired", rule.feature, rows, "count", rule.evidence)


def _multiplied(column: pa.ChunkedArray | pa.Array, factor: float) -> tuple[pa.Array, int]:
    """Returns numbers times a factor, of the same type, and how many of them are finite."""
    value_N = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), np.nan), np.float64) * factor
    known_N = np.isfinite(value_N)
    fresh = np.rint(np.where(known_N, value_N, 0)).astype(np.int64) if pa.types.is_integer(column.type) else value_N
    mask_N = ~known_N if pa.types.is_integer(column.type) else ~np.asarray(column.is_valid())
    return pa.array(fresh, mask=mask_N).cast(column.type), int(known_N.sum())
