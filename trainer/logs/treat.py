"""Treatment of conformed columns: what scan decided about cells and rows, and repairs that somebody declared.

Scan and rebuild apply the same rules to the same columns, so counts reconcile and a released rule brings back exactly what it took.
A user cannot be null: whoever is masked becomes a stranger, somebody without a past whom nobody meets again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.logs.conform import Finding
from trainer.logs.hashing import combine, hash_ids
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
            table = _nulled(table, rule.feature, hit_N)
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


def _equal(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    if pa.types.is_string(column.type):
        return np.asarray(pc.is_in(column, value_set=pa.array(list(values), pa.string())))
    exact = int if pa.types.is_integer(column.type) else float  # a float64 does not tell large ids apart
    wanted = pa.array([exact(value) for value in values]).cast(column.type, safe=False)
    return np.asarray(pc.is_in(column, value_set=wanted))


def _nulled(table: pa.Table, name: str, hit_N: np.ndarray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pc.if_else(pa.array(hit_N), None, table[name]))


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
    """Multiplies a column; integers stay integers, rounded to the nearest."""
    column = table[rule.feature]
    value_N = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), np.nan), np.float64) * (rule.multiply or 1.0)
    known_N = np.isfinite(value_N)
    fresh = np.rint(np.where(known_N, value_N, 0)).astype(np.int64) if pa.types.is_integer(column.type) else value_N
    repaired = pa.array(fresh, mask=~known_N) if pa.types.is_integer(column.type) else pa.array(fresh, mask=~np.asarray(column.is_valid()))
    table = table.set_column(table.column_names.index(rule.feature), rule.feature, repaired.cast(column.type))
    return table, Finding("repaired", rule.feature, int(known_N.sum()), "count", rule.evidence)
