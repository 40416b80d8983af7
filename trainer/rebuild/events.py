"""Ingestion: one pass over a day's healthy chunks that leaves normalised events by user bucket; and reading them back.

events/day=D/bucket=B.arrows      all events of the day, repeated deliveries included
repeats/day=D.arrows              positions of the repeated deliveries
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import DataError
from trainer.logs.deliver import delivered
from trainer.logs.hashing import hash_ids
from trainer.logs.normalise import first_deliveries, normalise
from trainer.rebuild.context import Context
from trainer.rebuild.sides import join, side_tables
from trainer.rebuild.store import Record, finish
from trainer.rebuild.work import read_work, write_work
from trainer.schema.examples import LABEL
from trainer.schema.health import DayHealth
from trainer.schema.logs import LogSpec

_CONTROL = ("event_time", "known_at", "row")


def ingest(context: Context, day: str, health: DayHealth, types: dict[str, str], key: str) -> Record:
    """Reads, normalises and buckets one day.

    Args:
        context: The rebuild.
        day: Business day.
        health: What scan left of it.
        types: Source column -> logical type.
        key: Key of the task.

    Returns:
        The record; its facts are row counts and the span of the day's times.

    Raises:
        DataError: If a file changed since it was scanned, or nothing usable is left.
    """
    tables, row = [], 0
    for file in health.files:
        if file.quarantined:
            continue
        tables.append(normalise(delivered(context.spec, file, health, types), context.spec, day, row).table)
        row += file.rows
    if not tables or not sum(map(len, tables)):
        raise DataError("a day has no usable row", where=day, remedy="refuse the day: the scan should have; run it again")
    events = join(pa.concat_tables(tables).combine_chunks(), side_tables(context.spec))
    bucket_N = user_bucket(events["user"], context.user_buckets)
    files = {}
    for bucket in range(context.user_buckets):
        path = events_path(context.folder, day, bucket)
        files[str(path.relative_to(context.folder))] = write_work(path, events.filter(pa.array(bucket_N == bucket)))
    return finish(context.folder, f"events/{day}", Record(key, files, _facts(context.spec, events)))


def mark_repeats(context: Context, day: str, earlier: Sequence[str], key: str) -> Record:
    """Finds the repeated deliveries of a day.

    Args:
        context: The rebuild.
        day: Business day.
        earlier: Earlier days whose event times overlap with the day's.
        key: Key of the task.

    Returns:
        The record; its facts are the number of repeats, and of those whose labels are not the kept delivery's.
    """
    repeats, other_labels = [], 0
    for bucket in range(context.user_buckets):
        columns = ["delivery", "known_at", "row"]
        events = read_work(events_path(context.folder, day, bucket), columns)
        past = [read_work(events_path(context.folder, other, bucket), ["delivery"])["delivery"].to_numpy() for other in earlier]
        delivery_N, known_N, row_N = (events[name].to_numpy() for name in columns)
        kept_N = first_deliveries(delivery_N, known_N, row_N, np.concatenate(past) if past else np.zeros(0, np.uint64))
        repeats.append(row_N[~kept_N])
        if not kept_N.all():
            other_labels += _other_labels(context, day, earlier, bucket, kept_N)
    path = _repeats_path(context.folder, day)
    row_M = np.sort(np.concatenate(repeats))
    digest = write_work(path, pa.table({"row": row_M}))
    record = Record(key, {str(path.relative_to(context.folder)): digest}, {"repeats": len(row_M), "other_labels": other_labels})
    return finish(context.folder, f"repeats/{day}", record)


def _other_labels(context: Context, day: str, earlier: Sequence[str], bucket: int, kept_N: np.ndarray) -> int:
    """Counts the repeats whose labels differ from those of the delivery that is kept: what a log that updates its rows would lose."""
    labels = [LABEL + name for name in context.spec.actions]
    names = ["delivery", "known_at", "row", *labels]
    today = read_work(events_path(context.folder, day, bucket), names)
    lost = today.filter(pa.array(~kept_N))
    before = [read_work(events_path(context.folder, other, bucket), names) for other in earlier]
    parts = [part.filter(pc.is_in(part["delivery"], value_set=lost["delivery"])) for part in (*before, today.filter(pa.array(kept_N)))]
    part_M = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    kept = pa.concat_tables(parts)
    order_M = np.lexsort((kept["row"].to_numpy(), kept["known_at"].to_numpy(), part_M, kept["delivery"].to_numpy()))
    kept = kept.take(pa.array(order_M))
    first_M = np.searchsorted(kept["delivery"].to_numpy(), lost["delivery"].to_numpy())  # the first day that has it, the first known
    differs_M = np.zeros(len(lost), bool)
    for name in labels:
        then_M, now_M = kept[name].to_numpy()[first_M], lost[name].to_numpy()
        differs_M |= (then_M != now_M) & ~(np.isnan(then_M) & np.isnan(now_M))
    return int(differs_M.sum())


def read_events(context: Context, day: str, bucket: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the events of a (day, user bucket) that were known by the cut-off, each once, in reading order.

    Args:
        context: The rebuild.
        day: Business day.
        bucket: User bucket.
        columns: Columns to return; default all.
    """
    wanted = None if columns is None else [*dict.fromkeys([*columns, *_CONTROL])]
    events = read_work(events_path(context.folder, day, bucket), wanted)
    repeated_M = read_work(_repeats_path(context.folder, day))["row"].to_numpy()
    keep_N = events["known_at"].to_numpy() <= context.as_of_ms
    if len(repeated_M):
        keep_N &= ~np.isin(events["row"].to_numpy(), repeated_M)
    events = events if keep_N.all() else events.filter(pa.array(keep_N))
    return events if columns is None else events.select(list(columns))


def read_many(context: Context, days: Sequence[str], buckets: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Reads and concatenates events of several days and buckets, in that order."""
    tables = [read_events(context, day, bucket, columns) for day in days for bucket in buckets]
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def user_bucket(users: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Returns the bucket of each user: the same on every machine and in every version."""
    return (hash_ids(users) % np.uint64(buckets)).astype(np.int64)


def events_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of the events of a (day, user bucket)."""
    return root / "events" / f"day={day}" / f"bucket={bucket:02d}.arrows"


def _repeats_path(root: Path, day: str) -> Path:
    return root / "repeats" / f"day={day}.arrows"


def _facts(spec: LogSpec, events: pa.Table) -> dict[str, int]:
    """Spans of the day's times, from which later tasks find what they depend on."""
    event_N, known_N, request_N = (events[name].to_numpy() for name in ("event_time", "known_at", "request_time"))
    maturity = max(action.maturity_ms for action in spec.actions.values())
    return {
        "rows": len(events),
        "first_event": int(event_N.min()),
        "last_event": int(event_N.max()),
        "first_request": int(request_N.min()),
        "last_ripe": int(np.maximum(known_N, event_N + maturity).max()),
    }
