"""The audit at the end of every rebuild: random rows, recomputed by brute force from the events; a difference stops the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.errors import DataError
from trainer.rebuild.context import Context
from trainer.rebuild.counters import all_primitives
from trainer.rebuild.coverage import DayShare, coverage_features
from trainer.rebuild.entities import column_of, columns_needed
from trainer.rebuild.events import read_many
from trainer.rebuild.oracle import Oracle
from trainer.rebuild.store import read_columns
from trainer.schema.examples import FEATURE, examples_path

AUDIT_DAYS = 2  # the oracle reads whole windows of events, so rows are drawn from few days
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5  # features are float32


def audit(context: Context, days: Sequence[str], carry_in: Mapping[str, list[str]], scanned: Sequence[DayShare], rows: int) -> int:
    """Recomputes counters and coverage of random rows.

    Args:
        context: The rebuild.
        days: Rebuilt days.
        carry_in: Day -> source days that its windows reach.
        scanned: What scan left of each day.
        rows: Rows to recompute.

    Returns:
        Rows recomputed.

    Raises:
        DataError: If a feature of a row is not what the definition says.
    """
    if rows <= 0 or not (context.counters or context.features.coverage):
        return 0
    # A generator seeded by the declarations: the same rebuild audits the same rows, another one other rows.
    random = np.random.default_rng(int(context.declarations_sha256[:16], 16))
    chosen = [days[-1], *random.permutation(list(days[:-1]))[: AUDIT_DAYS - 1]]
    audited = 0
    for day in chosen:
        table = _sample(context, str(day), -(-rows // len(chosen)), random)
        known = [share for share in scanned if share.day <= day]
        columns = columns_needed(all_primitives(context.counters.values()))
        events = read_many(context, carry_in[str(day)], range(context.user_buckets), columns)
        compare(table, Oracle(events, context.spec, context.counters, known, context.coverage_floor), coverages(context), str(day))
        audited += len(table)
    return audited


def coverages(context: Context) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Returns the coverage features of a rebuild: window (ms) and columns of each."""
    return coverage_features(context.counters.values(), context.spec) if context.features.coverage else {}


def compare(rows: pa.Table, oracle: Oracle, covered: Mapping[str, tuple[int, tuple[str, ...]]], day: str) -> None:
    """Compares features of rows with the oracle's.

    Args:
        rows: Rows of one day.
        oracle: What the definitions say.
        covered: Coverage features: window (ms) and columns of each.
        day: The day, for the message.

    Raises:
        DataError: At the first difference, naming feature, row, got and expected.
    """
    for row in rows.to_pylist():
        expected = dict(oracle.features(row))
        expected |= {name: oracle.coverage(row["request_time"], window, columns) for name, (window, columns) in covered.items()}
        for name, value in expected.items():
            if not _same(row[FEATURE + name], value):
                raise DataError(
                    "a feature uses events that were not known, or the kernel is wrong", got=row[FEATURE + name], expected=value,
                    where=f"feature {name}, day {day}, user {row['user']}, item {row['item']}, request time {row['request_time']}",
                    remedy="do not train on these examples; report the row",
                )  # fmt: skip


def _sample(context: Context, day: str, rows: int, random: np.random.Generator) -> pa.Table:
    names = {"user", "item", "request_time", *(column_of(name) for counter in context.counters.values() for name in _names(counter))}
    features = [FEATURE + name for name in context.counters]
    columns = [*dict.fromkeys([*sorted(names), *features, *(FEATURE + name for name in coverages(context))])]
    tables = [read_columns(examples_path(context.folder, day, bucket), columns) for bucket in range(context.user_buckets)]
    table = pa.concat_tables(tables)
    return table.take(np.sort(random.choice(len(table), min(rows, len(table)), replace=False)))


def _names(counter: Any) -> list[str]:
    return [*counter.entity, *(counter.parent or [])]


def _same(got: float | None, expected: float | None) -> bool:
    if got is None or expected is None:
        return got is None and expected is None
    return math.isclose(got, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
