"""The entity pass: counters that no user bucket can compute alone, written as timelines and joined as of the request.

A timeline holds, for every key, each instant of a calendar day at which one of the entity's primitives changes, with their
values from then on; plus a row at the day's beginning for keys that bring something over from earlier days.

    timelines/day=D/<entity>.bucket=B.parquet    key (uint64), time (ms), one int64 column a primitive; sorted by (key, time)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.rebuild.context import Context
from trainer.rebuild.counters import all_primitives
from trainer.rebuild.entities import columns_needed, entity_label, entity_log, is_user_keyed
from trainer.rebuild.events import read_many
from trainer.rebuild.kernels import NEVER, CounterKernel, EntityLog, Primitive, dense_groups, group_of
from trainer.rebuild.order import GroupedTimes, Queries
from trainer.rebuild.store import Record, finish, read_columns, write_work
from trainer.schema.time import day_end_ms, day_start_ms


def shared_primitives(context: Context) -> dict[tuple[str, ...], list[Primitive]]:
    """Returns the primitives of the entity pass, by entity; empty if all counters are keyed by the user."""
    shared = [primitive for primitive in all_primitives(context.counters.values()) if not is_user_keyed(primitive.entity)]
    return {entity: list(members) for entity, members in groupby(shared, key=lambda primitive: primitive.entity)}


def write_timelines(context: Context, bucket: int, days: Sequence[str], source_days: Sequence[str], keys: dict[str, str]) -> list[Record]:
    """Runs the entity pass for one entity bucket over consecutive calendar days.

    Args:
        context: The rebuild.
        bucket: Entity bucket.
        days: Consecutive calendar days.
        source_days: Days whose events can matter: partitions up to the last day, back to the longest window.
        keys: Calendar day -> key of its record.

    Returns:
        One record a day.
    """
    entities = shared_primitives(context)
    columns = columns_needed(primitive for members in entities.values() for primitive in members)
    zone = context.spec.timezone
    spans = [(day_start_ms(day, zone), day_end_ms(day, zone) - 1) for day in days]
    events = read_many(context, source_days, range(context.user_buckets), columns) if source_days and entities else None
    files: dict[str, dict[str, str]] = {day: {} for day in days}
    for entity, primitives in entities.items():
        if events is None:
            tables = [_no_rows(primitives)] * len(days)
        else:
            log = entity_log(events, context.spec, entity, primitives)
            log = log.take((log.key_N % np.uint64(context.entity_buckets)).astype(np.int64) == bucket)
            tables = timeline(log, primitives, spans)
        for day, table in zip(days, tables, strict=True):
            path = _path(context.folder, day, entity, bucket)
            files[day][str(path.relative_to(context.folder))] = write_work(path, table)
    return [finish(context.folder, record_name(day, bucket), Record(keys[day], files[day])) for day in days]


def record_name(day: str, bucket: int) -> str:
    """Returns the name of the record of a (day, entity bucket)."""
    return f"timelines/{day}.{bucket:02d}"


def timeline(log: EntityLog, primitives: list[Primitive], spans: list[tuple[int, int]]) -> list[pa.Table]:
    """Evaluates primitives at all their change points.

    Args:
        log: Events of one entity.
        primitives: What is evaluated.
        spans: First and last instant (ms) of consecutive days.

    Returns:
        One table a day.
    """
    kernel = CounterKernel(log)
    group_M, time_M = kernel.changes(primitives, spans[0][0], spans[-1][1])
    groups, origin = len(kernel.keys_K), spans[0][0]
    width = spans[-1][1] - origin + 1
    begin_B = (np.arange(groups)[:, None] * width + np.array([start - origin for start, _ in spans])).ravel()
    # The lowest bit tells a change from a day's beginning; a beginning stands before a change at the same instant.
    packed_N = np.sort(np.r_[begin_B * 2, (group_M * width + time_M - origin) * 2 + 1])
    begins_N = packed_N % 2 == 0
    group_N, time_N = packed_N // 2 // width, packed_N // 2 % width + origin
    values = kernel.evaluate_sorted(primitives, group_N, time_N)
    empty_N = np.logical_and.reduce([value_N == blank(primitive) for primitive, value_N in values.items()])
    # Only rows at a day's beginning may be left out: absence means that nothing is known.
    table = pa.table({"key": kernel.keys_K[group_N], "time": time_N, **{p.column: value_N for p, value_N in values.items()}})
    kept_N = ~(empty_N & begins_N)
    return [table.filter(pa.array(kept_N & (time_N >= first) & (time_N <= last))) for first, last in spans]


class TimelineReader:
    """Joins timelines as of an instant."""

    def __init__(self, context: Context, days: Sequence[str], entity: tuple[str, ...]) -> None:
        paths = [_path(context.folder, day, entity, bucket) for day in days for bucket in range(context.entity_buckets)]
        stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
        self._keys_K, self._order, self._values = _load(stamps)
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def locate(self, key_Q: np.ndarray, time_Q: np.ndarray) -> None:
        """Finds the timeline row that holds at each (key, time)."""
        asked = Queries(group_of(self._keys_K, key_Q), time_Q)
        until_U = self._order.up_to(asked.group_U, asked.time_U)
        known_U = until_U > self._order.before_group(asked.group_U)
        self._found = asked.expand(np.where(known_U, until_U - 1, 0)), asked.expand(known_U)

    def read(self, primitive: Primitive) -> np.ndarray:
        """Returns a primitive at the located instants: int64 [Q]."""
        if self._found is None:
            raise RuntimeError("locate comes before read")
        row_Q, known_Q = self._found
        value_N = self._values[primitive.column]
        if not len(value_N):
            return np.full(len(row_Q), blank(primitive), np.int64)
        return np.where(known_Q, value_N[row_Q], blank(primitive))


@lru_cache(maxsize=32)
def _load(stamps: tuple[tuple[str, int, int], ...]) -> tuple[np.ndarray, GroupedTimes, dict[str, np.ndarray]]:
    """Loads timelines once for all user buckets of a run that this process handles.

    Args:
        stamps: Paths with time of change and size, so that a rewritten file is read again.

    Returns:
        Distinct keys, order of rows, and each column in that order.
    """
    table = pa.concat_tables([read_columns(Path(path)) for path, _, _ in stamps])
    keys_K, group_N = dense_groups(table["key"].to_numpy())
    order = GroupedTimes(group_N, table["time"].to_numpy())
    return keys_K, order, {name: table[name].to_numpy()[order.order_N] for name in table.column_names[2:]}


def blank(primitive: Primitive) -> int:
    """Returns the value of a primitive of which nothing is known."""
    return NEVER if primitive.signal == "last" else 0


def _no_rows(primitives: list[Primitive]) -> pa.Table:
    schema = pa.schema([("key", pa.uint64()), ("time", pa.int64()), *((primitive.column, pa.int64()) for primitive in primitives)])
    return schema.empty_table()


def _path(root: Path, day: str, entity: tuple[str, ...], bucket: int) -> Path:
    return root / "timelines" / f"day={day}" / f"{entity_label(entity)}.bucket={bucket:02d}.parquet"
