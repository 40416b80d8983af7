"""Tails: the histories that precede a day, so that a night never rereads all of the past.

The state of a bucket is the tail of every user: the last L tokens that were available when the day began, and the tokens of
earlier partitions that were not yet. It moves forward by stretches of days; the tails of the days in between are cut out of
one sorted table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError, nearest
from trainer.rebuild.context import Context
from trainer.rebuild.events import read_events, user_bucket
from trainer.rebuild.order import GroupedTimes, ranks
from trainer.rebuild.sides import join, read_side_file, side_tables
from trainer.rebuild.store import Record, finish, read_columns, write_table
from trainer.rebuild.targets import available, ripe_labels
from trainer.schema.examples import FEATURE, LABEL, examples_path, final_tail_path, tail_path
from trainer.schema.logs import LogSpec, PriorHistorySpec, parts_of
from trainer.schema.time import add_days, day_start_ms

STRETCH_TOKENS = 1_000_000  # tokens of a bucket that are sorted together
_BEFORE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TailPlan:
    """Days of one bucket whose tails are wanted.

    Attributes:
        state_day: Day whose full tail is on disk and starts the walk; None starts from the prior history.
        source_days: Source days to walk over, in order, from `state_day` on.
        wanted: Those whose tails are written, with the keys of their records.
        final_day: Day after the last source day.
        final_key: Key of its full tail.
    """

    state_day: str | None
    source_days: list[str]
    wanted: dict[str, str]
    final_day: str
    final_key: str


def write_tails(context: Context, bucket: int, plan: TailPlan) -> list[Record]:
    """Writes the wanted tails of a bucket, and the final one with every user.

    Returns:
        Records of the wanted days in order, then that of the final tail.
    """
    records = []
    if plan.state_day is None:
        state = prior_tokens(context, bucket, plan.source_days[0])
    else:
        state = read_columns(final_tail_path(context.folder, plan.state_day, bucket))
    for days, tokens in _stretches(context, bucket, plan.source_days):
        history = History.of(state, tokens)
        for position, day in enumerate(days):
            if day not in plan.wanted:
                continue
            users = read_columns(examples_path(context.folder, day, bucket), ["user"])["user"]
            tail = history.tail(day_start_ms(day, context.spec.timezone), position, context.max_history, users)
            path = tail_path(context.folder, day, bucket)
            record = Record(plan.wanted[day], {str(path.relative_to(context.folder)): write_table(path, tail, context.compression)})
            records.append(finish(context.folder, f"tails/{day}.{bucket:02d}", record))
        after = day_start_ms(add_days(days[-1], 1), context.spec.timezone)
        state = history.tail(after, len(days), context.max_history)
    path = final_tail_path(context.folder, plan.final_day, bucket)
    record = Record(plan.final_key, {str(path.relative_to(context.folder)): write_table(path, state, context.compression)})
    return [*records, finish(context.folder, final_record_name(plan.final_day, bucket), record)]


@dataclass(frozen=True)
class History:
    """Tokens of all users of a bucket, sorted; cuts out the tail of any day.

    Attributes:
        tokens: Sorted by user, clockless tokens first, then availability.
        users: Distinct users, ascending.
        order: The same order; finds how many tokens were available at an instant.
        user_N: Position of each token's user in `users`.
        available_N: int64 ms; before all others for clockless tokens.
        part_N: Which day of the stretch brought the token; -1 if it was there before.
    """

    tokens: pa.Table
    users: pa.Array
    order: GroupedTimes
    user_N: np.ndarray
    available_N: np.ndarray
    part_N: np.ndarray

    @classmethod
    def of(cls, state: pa.Table, days: list[pa.Table]) -> History:
        """Merges a state with the tokens of the days that follow it."""
        tokens = pa.concat_tables([state, *days]).combine_chunks()
        part_N = np.repeat(np.arange(-1, len(days)), [len(state), *map(len, days)])
        users = pc.unique(tokens["user"].combine_chunks())
        users = users.take(pc.sort_indices(users))
        user_N = np.asarray(pc.index_in(tokens["user"], value_set=users), np.int64)
        first_known = pc.min(tokens["available"]).as_py()
        available_N = np.asarray(pc.fill_null(tokens["available"], 0 if first_known is None else first_known - 1), np.int64)

        def ties(row_M: np.ndarray) -> list[np.ndarray]:
            tied = tokens.select(["available", "event_time", "item"]).take(pa.array(row_M))
            clockless_M = np.asarray(tied["available"].is_null())  # these keep their own order
            return [np.asarray(pc.fill_null(tied["event_time"], 0), np.int64), np.where(clockless_M, 0, ranks(tied["item"]))]

        order = GroupedTimes(user_N, available_N, ties)
        sort_N = order.order_N
        return cls(tokens.take(pa.array(sort_N)).combine_chunks(), users, order, user_N[sort_N], available_N[sort_N], part_N[sort_N])

    def tail(self, start_ms: int, position: int, length: int, users: pa.ChunkedArray | None = None) -> pa.Table:
        """Returns the last tokens before a day.

        Args:
            start_ms: Beginning of the business day.
            position: Position of the day in the stretch; tokens of this and later days are left out.
            length: L, tokens available before `start_ms` that a user keeps; all available later are kept.
            users: Users wanted; default all.
        """
        chosen_U = np.arange(len(self.users))
        if users is not None:
            found = pc.index_in(pc.unique(users.combine_chunks()), value_set=self.users).drop_null()
            chosen_U = np.sort(np.asarray(found, np.int64))
        until_U = self.order.up_to(chosen_U, np.full(len(chosen_U), start_ms - 1))
        first_U = np.maximum(self.order.before_group(chosen_U), until_U - length)
        size_U = until_U - first_U
        before_M = np.arange(size_U.sum()) + np.repeat(first_U - (np.cumsum(size_U) - size_U), size_U)
        chosen_V = np.zeros(len(self.users), bool)
        chosen_V[chosen_U] = True
        later_M = np.flatnonzero((self.available_N >= start_ms) & (self.part_N < position) & chosen_V[self.user_N])
        row_M = np.sort(np.r_[before_M, later_M]) if len(later_M) else before_M
        return self.tokens.take(pa.array(row_M)).combine_chunks()


def _stretches(context: Context, bucket: int, days: list[str]) -> Iterator[tuple[list[str], list[pa.Table]]]:
    """Yields consecutive days with their tokens, at most about `STRETCH_TOKENS` at a time."""
    held: list[str] = []
    tables: list[pa.Table] = []
    for day in days:
        held.append(day)
        tables.append(day_tokens(context, day, bucket))
        if sum(map(len, tables)) >= STRETCH_TOKENS:
            yield held, tables
            held, tables = [], []
    if held:
        yield held, tables


def final_record_name(day: str, bucket: int) -> str:
    """Returns the name of the record of a full tail."""
    return f"tails/all-{day}.{bucket:02d}"


def token_columns(spec: LogSpec) -> list[str]:
    """Returns the columns of a tail."""
    features = [*item_features(spec), *token_features(spec)]
    labels = [LABEL + name for name in spec.history_actions]
    return ["user", "item", "event_time", "available", *labels, *(FEATURE + name for name in features)]


def item_features(spec: LogSpec) -> list[str]:
    """Returns the categorical features that are functions of the item: those of static item tables."""
    tables = [table for table in spec.side_tables.values() if table.entity == "item" and table.static]
    return [name for table in tables for name, column in parts_of(table.columns).items() if column.kind == "categorical"]


def token_features(spec: LogSpec) -> list[str]:
    """Returns the features of the log that history tokens carry."""
    return [name for name, column in spec.parts.items() if column.token]


def day_tokens(context: Context, day: str, bucket: int) -> pa.Table:
    """Returns the events of a (day, bucket) as tokens."""
    columns = token_columns(context.spec)
    events = read_events(context, day, bucket, [*(name for name in columns if name != "available"), "known_at"])
    events = ripe_labels(events, context.spec, context.as_of_ms)
    events = events.append_column("available", pa.array(available(events, context.spec)))
    return events.select(columns)


def prior_tokens(context: Context, bucket: int, day: str) -> pa.Table:
    """Returns the clockless history of the bucket's users as tokens in the order of the log; empty without one.

    Args:
        context: The rebuild.
        bucket: User bucket.
        day: Any ingested day: its events tell the columns' types.
    """
    spec = context.spec
    sample = day_tokens(context, day, bucket).slice(0, 0)
    if spec.prior_history is None:
        return sample
    table = _prior_table(spec.root, spec.prior_history.path, spec.prior_history.key)
    bucket_N = user_bucket(table[spec.prior_history.key], context.user_buckets)
    return _exploded(context, table.filter(pa.array(bucket_N == bucket)), spec.prior_history, sample.schema)


@lru_cache(maxsize=4)
def _prior_table(root: str, path: str, key: str) -> pa.Table:
    table = read_side_file(Path(root) / path, "data.prior_history")
    if key not in table.column_names:
        remedy = nearest(key, table.column_names)
        raise ConfigError("the prior history lacks a mapped column", where=f"data.prior_history ({path})", got=key, remedy=remedy)
    return table


def _exploded(context: Context, table: pa.Table, prior: PriorHistorySpec, schema: pa.Schema) -> pa.Table:
    """One token an entry of the sequence, the last L of each user; an action's bit is membership in its list."""
    for column in (prior.sequence, *prior.actions.values()):
        if column not in table.column_names:
            remedy = nearest(column, table.column_names)
            where = f"data.prior_history ({prior.path})"
            raise ConfigError("the prior history lacks a mapped column", where=where, got=column, remedy=remedy)
    sequence = table[prior.sequence].combine_chunks()
    length_U = np.asarray(pc.fill_null(pc.list_value_length(sequence), 0), np.int64)
    user_N = np.repeat(np.arange(len(table)), length_U)
    item = pc.list_flatten(sequence)
    last_N = np.arange(len(user_N)) >= np.repeat(np.cumsum(length_U) - context.max_history, length_U)
    user_N, item = user_N[last_N], item.filter(pa.array(last_N))
    columns: dict[str, pa.Array] = {
        "user": table[prior.key].combine_chunks().take(pa.array(user_N)).cast(schema.field("user").type),
        "item": item.cast(schema.field("item").type),
    }
    for action, column in prior.actions.items():
        if LABEL + action in schema.names:
            columns[LABEL + action] = pa.array(_membership(table[column], user_N, item).astype(np.float32))
    rows = pa.table({**columns, "request_time": pa.array(np.full(len(user_N), _BEFORE))})
    rows = join(rows, [side for side in side_tables(context.spec) if side.entity == "item" and side.history is None])
    return pa.table({field.name: _as(rows, field) for field in schema}, schema=schema)


def _as(rows: pa.Table, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    return rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)


def _membership(lists: pa.ChunkedArray, user_N: np.ndarray, item: pa.Array) -> np.ndarray:
    """Tells for each (row, item) whether the row's list holds the item."""
    column = lists.combine_chunks()
    length_U = np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
    owner_M = np.repeat(np.arange(len(column)), length_U)
    members = pc.list_flatten(column).cast(item.type)
    items = pc.unique(pa.concat_arrays([members, item]))
    pair_M = owner_M * len(items) + np.asarray(pc.index_in(members, value_set=items), np.int64)
    return np.isin(user_N * len(items) + np.asarray(pc.index_in(item, value_set=items), np.int64), pair_M)
