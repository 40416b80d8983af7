"""The second half of the entity pass: each entity bucket answers what the rows of a run of days ask of it.

    answers/day=D/<entity>.bucket=E.arrows      one int64 column a primitive; one row group a user bucket, in it the bucket's rows in order

An answer needs no key: who reads it knows which of its rows asked whom (`share_order`). So events are sorted once a run, every row is
answered once, and a task reads what concerns its bucket and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from trainer.errors import DataError
from trainer.rebuild.context import Context
from trainer.rebuild.entities import columns_needed, entity_label, entity_log, entity_rows
from trainer.rebuild.events import read_many
from trainer.rebuild.kernels import CounterKernel, Primitive
from trainer.rebuild.shares import ASK, entity_bucket, read_share, share_order, shared_primitives
from trainer.rebuild.store import Record, finish
from trainer.rebuild.work import read_work, write_work


class Shared(Protocol):
    """Whoever knows the shared counters of some rows."""

    def values(self, primitives: list[Primitive], key_N: np.ndarray, has_N: np.ndarray, time_N: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Returns the primitives of one entity at every row: int64 [N]; blank where the row has no key."""


def write_answers(context: Context, bucket: int, days: Sequence[str], source_days: Sequence[str], keys: dict[str, str]) -> list[Record]:
    """Answers the rows of a run of days for one entity bucket.

    Args:
        context: The rebuild.
        bucket: Entity bucket.
        days: Source days, in order.
        source_days: Source days whose events can matter, the run's own days included.
        keys: Day -> key of its record.

    Returns:
        One record a day.
    """
    files: dict[str, dict[str, str]] = {day: {} for day in days}
    for entity, primitives in shared_primitives(context).items():
        shares = {day: read_share(context, day, entity, bucket) for day in source_days}
        kernel = CounterKernel(entity_log(pa.concat_tables(shares.values()).combine_chunks(), context.spec))
        asks = [shares[day].select(ASK) for day in days]
        if context.spec.negatives:
            drawn = [read_share(context, day, entity, bucket, drawn=True) for day in days]
            asks = [pa.concat_tables(pair) for pair in zip(asks, drawn, strict=True)]
        asked = pa.concat_tables(asks).combine_chunks()
        values = kernel.evaluate(primitives, asked["key"].to_numpy(), asked["request_time"].to_numpy())
        table = pa.table({primitive.column: values[primitive] for primitive in primitives})
        first = 0
        for day, ask in zip(days, asks, strict=True):
            bucket_N = ask["bucket"].to_numpy()
            rows = table.slice(first, len(ask)).take(pa.array(share_order(bucket_N, context.user_buckets)))
            path = _path(context.folder, day, entity, bucket)
            digest = write_work(path, rows, np.bincount(bucket_N, minlength=context.user_buckets))
            files[day][str(path.relative_to(context.folder))] = digest
            first += len(ask)
    return [finish(context.folder, record_name(day, bucket), Record(keys[day], files[day])) for day in days]


class Answers:
    """Reads what the entity pass answered to the rows of a run of days of one user bucket."""

    def __init__(self, context: Context, days: Sequence[str], bucket: int, day_N: np.ndarray) -> None:
        """Takes the run; `day_N` is the position of each row's day in it, ascending."""
        self._context, self._days, self._bucket, self._day_N = context, days, bucket, day_N

    def values(self, primitives: list[Primitive], key_N: np.ndarray, has_N: np.ndarray, time_N: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Returns the primitives of one entity at every row, as `Shared` says.

        Raises:
            DataError: If the answers are not those of these rows.
        """
        buckets, entity = self._context.entity_buckets, primitives[0].entity
        paths = [_path(self._context.folder, day, entity, part) for day in self._days for part in range(buckets)]
        tables = [read_work(path, group=self._bucket) for path in paths]
        row_M = np.flatnonzero(has_N)
        part_M = self._day_N[row_M] * buckets + entity_bucket(key_N[row_M], buckets)
        expected = np.bincount(part_M, minlength=len(paths))
        for path, table, rows in zip(paths, tables, expected, strict=True):
            if len(table) != rows:
                raise DataError("answers are not those of these rows", where=path, got=len(table), expected=rows, remedy="delete the file")
        row_M = row_M[share_order(part_M, len(paths))]
        answered = pa.concat_tables(tables).combine_chunks()
        found = {}
        for primitive in primitives:
            value_N = np.full(len(key_N), primitive.blank, np.int64)
            value_N[row_M] = answered[primitive.column].to_numpy()
            found[primitive] = value_N
        return found


class Direct:
    """Answers rows that nobody logged, from the events in reach: one kernel an entity, made when it is first asked."""

    def __init__(self, context: Context, source_days: Sequence[str]) -> None:
        """Takes the source days that the rows reach; all their events, of the columns that shared counters read, are held in memory."""
        self._context, self._days = context, source_days
        self._members = shared_primitives(context)
        self._kernels: dict[tuple[str, ...], CounterKernel] = {}

    def values(self, primitives: list[Primitive], key_N: np.ndarray, has_N: np.ndarray, time_N: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Returns the primitives of one entity at every row, as `Shared` says."""
        entity = primitives[0].entity
        if entity not in self._kernels:
            members = self._members[entity]
            events = read_many(self._context, self._days, range(self._context.user_buckets), columns_needed(members))
            self._kernels[entity] = CounterKernel(entity_log(entity_rows(events, entity, members), self._context.spec))
        values = self._kernels[entity].evaluate(primitives, key_N, time_N)
        return {primitive: np.where(has_N, value_N, primitive.blank) for primitive, value_N in values.items()}


def record_name(day: str, bucket: int) -> str:
    """Returns the name of the record of a (day, entity bucket)."""
    return f"answers/{day}.{bucket:02d}"


def _path(root: Path, day: str, entity: tuple[str, ...], bucket: int) -> Path:
    return root / "answers" / f"day={day}" / f"{entity_label(entity)}.bucket={bucket:02d}.arrows"
