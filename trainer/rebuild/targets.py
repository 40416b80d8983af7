"""Examples: the events of a (day, user bucket) and their sampled negatives, with point-in-time features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.logs.calendar import BusinessDays
from trainer.rebuild.answers import Answers, Shared
from trainer.rebuild.context import Context
from trainer.rebuild.counters import Read, all_primitives, counter_values
from trainer.rebuild.coverage import Calendar, DayShare, coverage_features, thin_rows
from trainer.rebuild.entities import columns_needed, entity_log, entity_rows, is_user_keyed, keys_of
from trainer.rebuild.events import read_events, read_many
from trainer.rebuild.kernels import CounterKernel, Primitive
from trainer.rebuild.negatives import candidates, drawn_rows, negatives_path, with_negatives
from trainer.rebuild.order import GroupedTimes, ranks
from trainer.rebuild.parity import matches
from trainer.rebuild.serving import ripe, served
from trainer.rebuild.sides import side_tables
from trainer.rebuild.store import Record, finish, write_table
from trainer.rebuild.work import read_work, write_work
from trainer.schema.examples import FEATURE, LABEL, examples_path
from trainer.schema.expression import Column, evaluate
from trainer.schema.logs import LogSpec

_OWN = ("delivery", "row")  # columns of ingestion that examples do not have


@dataclass(frozen=True)
class Sources:
    """What a run of days reads.

    Attributes:
        carry_in: Source days that the windows of the run's rows reach, the run's own days included.
        since: Calendar day of the run's first request.
        pool: Source days whose items may be drawn as negatives.
        scanned: Scanned days up to the last one, refused ones included: what coverage counts.
    """

    carry_in: list[str]
    since: str
    pool: list[str]
    scanned: list[DayShare]


def write_negatives(context: Context, bucket: int, days: Sequence[str], pool_days: Sequence[str], keys: dict[str, str]) -> list[Record]:
    """Draws the negatives of consecutive days of one user bucket of a click-only log.

    Args:
        context: The rebuild.
        bucket: User bucket.
        days: Source days, in order.
        pool_days: Source days whose items may be drawn.
        keys: Day -> key of its record.

    Returns:
        One record a day.
    """
    spec, tables = context.spec, side_tables(context.spec)
    if spec.negatives is None:
        raise ValueError("this log declares no sampler")
    pool = candidates(read_many(context, pool_days, range(context.user_buckets), ["item", "event_time", "known_at"]), spec.negatives)
    records = []
    for day in days:
        path = negatives_path(context.folder, day, bucket)
        digest = write_work(path, drawn_rows(_events(context, day, bucket), pool, spec, tables))
        record = Record(keys[day], {str(path.relative_to(context.folder)): digest})
        records.append(finish(context.folder, f"negatives/{day}.{bucket:02d}", record))
    return records


def write_examples(context: Context, bucket: int, days: Sequence[str], sources: Sources, keys: dict[str, str]) -> list[Record]:
    """Builds the examples of consecutive days of one user bucket.

    Args:
        context: The rebuild.
        bucket: User bucket.
        days: Source days, in order.
        sources: What their rows read.
        keys: Day -> key of its record.

    Returns:
        One record a day; facts are rows, events and negatives.
    """
    parts = [target_rows(context, day, bucket) for day in days]
    rows = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    day_N = np.repeat(np.arange(len(days)), [len(part) for part in parts])
    rows = with_features(context, bucket, rows, sources, Answers(context, days, bucket, day_N))
    records, first = [], 0
    for day, part in zip(days, parts, strict=True):
        table = sorted_rows(rows.slice(first, len(part)))
        first += len(part)
        path = examples_path(context.folder, day, bucket)
        digest = write_table(path, table, context.compression)
        events = int(pc.sum(table["is_event"].cast(pa.int64())).as_py() or 0)
        facts = {"rows": len(table), "events": events, "negatives": len(table) - events, "matches": matches(context, table)}
        record = Record(keys[day], {str(path.relative_to(context.folder)): digest}, facts)
        records.append(finish(context.folder, f"examples/{day}.{bucket:02d}", record))
    return records


def target_rows(context: Context, day: str, bucket: int) -> pa.Table:
    """Returns the rows of a (day, user bucket) without counters: events with ripe labels, then their negatives."""
    events = _events(context, day, bucket)
    if not context.spec.negatives:
        return events
    return with_negatives(events, read_work(negatives_path(context.folder, day, bucket)), context.spec)


def _events(context: Context, day: str, bucket: int) -> pa.Table:
    events = read_events(context, day, bucket).drop_columns(list(_OWN))
    events = ripe_labels(events, context.spec, context.as_of_ms)
    events = events.append_column("available", pa.array(available(events, context.spec)))
    return events.append_column("is_event", pa.array(np.ones(len(events), bool)))


def with_features(context: Context, bucket: int, rows: pa.Table, sources: Sources, shared: Shared) -> pa.Table:
    """Appends counters, calendar features and coverage to rows with a request time; `shared` knows the counters without the user."""
    time_N = rows["request_time"].to_numpy()
    zone = context.spec.timezone
    read = _reader(context, bucket, rows, sources.carry_in, shared)
    calendar = Calendar(sources.scanned, zone, time_N)
    thin = thin_rows(calendar, context.counters, context.spec, context.coverage_floor)
    for name, counter in context.counters.items():
        value_N = counter_values(counter, read, time_N)
        rows = rows.append_column(FEATURE + name, _nullable(np.where(thin[name], np.float32(np.nan), value_N) if name in thin else value_N))
    if context.features.calendar:
        hour = evaluate("hour(t)", {"t": Column(time_N)}, zone)
        rows = rows.append_column(FEATURE + "hour", pa.array(hour.values_N.astype(np.int64)))
        rows = rows.append_column(FEATURE + "weekday", pa.array(BusinessDays.covering(time_N, zone).weekday(time_N)))
    if context.features.coverage:
        for name, (window, columns) in coverage_features(context.counters.values(), context.spec).items():
            rows = rows.append_column(FEATURE + name, pa.array((calendar.covered_ms(window, columns) / window).astype(np.float32)))
    return rows


def numeric_names(context: Context) -> dict[str, str]:
    """Returns every numeric feature -> its transform."""
    plain = {name: column.transform for name, column in context.spec.all_parts.items() if column.kind == "numeric"}
    counted = {name: counter.numeric_transform for name, counter in context.counters.items()}
    covered = dict.fromkeys(coverage_features(context.counters.values(), context.spec), "none") if context.features.coverage else {}
    return {**plain, **counted, **covered}


def categorical_names(context: Context) -> list[str]:
    """Returns every categorical feature; those of a list one by one."""
    names = [name for name, column in context.spec.all_parts.items() if column.kind == "categorical"]
    return [*names, *(["hour", "weekday"] if context.features.calendar else [])]


def available(events: pa.Table, spec: LogSpec) -> np.ndarray:
    """Returns when each event may stand in a history: known, over, its history actions ripe, and seen by serving."""
    return served(ripe(events["event_time"].to_numpy(), events["known_at"].to_numpy(), spec.history_maturity_ms), spec)


def ripe_labels(events: pa.Table, spec: LogSpec, as_of_ms: int) -> pa.Table:
    """Makes labels (those present) null that are not ripe at the cut-off: unknown, never negative."""
    event_N, known_N = events["event_time"].to_numpy(), events["known_at"].to_numpy()
    for name, action in spec.actions.items():
        if LABEL + name not in events.column_names:
            continue
        ripe_N = ripe(event_N, known_N, action.maturity_ms) <= as_of_ms
        if not ripe_N.all():
            index = events.column_names.index(LABEL + name)
            events = events.set_column(index, LABEL + name, pc.if_else(pa.array(ripe_N), events[LABEL + name], None))
    return events


def sorted_rows(table: pa.Table) -> pa.Table:
    """Sorts rows by (user, available, event_time, item), then events before negatives, then by order of drawing."""

    def ties(row_M: np.ndarray) -> list[np.ndarray]:
        tied = table.select(["event_time", "item", "is_event"]).take(pa.array(row_M))
        return [tied["event_time"].to_numpy(), ranks(tied["item"]), ~tied["is_event"].to_numpy()]

    order = GroupedTimes(ranks(table["user"]), table["available"].to_numpy(), ties)
    return table.take(pa.array(order.order_N)).combine_chunks()


def _reader(context: Context, bucket: int, rows: pa.Table, carry_in: Sequence[str], shared: Shared) -> Read:
    """Returns a function that reads primitives for all rows: user-keyed ones from the bucket's events, others from `shared`."""
    time_N = rows["request_time"].to_numpy()
    values: dict[Primitive, np.ndarray] = {}
    has_key: dict[tuple[str, ...], np.ndarray] = {}
    primitives = all_primitives(context.counters.values())
    own = [primitive for primitive in primitives if is_user_keyed(primitive.entity)]
    events = read_many(context, carry_in, [bucket], columns_needed(own)) if own else None
    for entity in sorted({primitive.entity for primitive in primitives}):
        members = [primitive for primitive in primitives if primitive.entity == entity]
        key_N, has_key[entity] = keys_of(rows, entity)
        if is_user_keyed(entity):
            kernel = CounterKernel(entity_log(entity_rows(events, entity, members), context.spec))
            values |= kernel.evaluate(members, key_N, time_N)
        else:
            values |= shared.values(members, key_N, has_key[entity], time_N)
    return lambda primitive: (values[primitive], has_key[primitive.entity])


def _nullable(value_N: np.ndarray) -> pa.Array:
    return pa.array(value_N, mask=np.isnan(value_N))
