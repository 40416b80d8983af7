"""Examples of rows that nobody logged: any (user, item, time), with features and histories as they were known then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config import RebuildConfig
from trainer.errors import DataError
from trainer.logs.calendar import BusinessDays
from trainer.rebuild import plan
from trainer.rebuild.context import Context
from trainer.rebuild.engines import Task, engine_of
from trainer.rebuild.events import read_events, user_bucket
from trainer.rebuild.plan import SourceDays
from trainer.rebuild.pool import Pool
from trainer.rebuild.run import ingest_days, repeats_of_days
from trainer.rebuild.sides import join, side_tables
from trainer.rebuild.store import finished, owned
from trainer.rebuild.tails import day_tokens, prior_tokens
from trainer.rebuild.targets import Sources, with_features
from trainer.rebuild.timelines import record_name, write_timelines
from trainer.schema.examples import FEATURE, LABEL
from trainer.schema.features import FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_start_ms


@dataclass(frozen=True)
class Asked:
    """Rows of one (day, user bucket).

    Attributes:
        row_N: int64, their places among the rows that were asked for.
        examples: The rows in the layout of `trainer.schema.examples`; none is an event, labels are null.
        tail: All tokens of their users up to the day, the day's included.
    """

    row_N: np.ndarray
    examples: pa.Table
    tail: pa.Table


def asked(
    spec: LogSpec, features: FeatureSpec, health: HealthMap, rows: pa.Table, config: RebuildConfig, *, max_history: int, as_of_ms: int
) -> Iterator[Asked]:
    """Rebuilds the features of rows that are in no log; the log's own files of the rebuild are shared with the main job.

    Args:
        spec: The log.
        features: Declared features.
        health: The scan of the log.
        rows: user, item, request_time (int64 ms), and the log's own features by name as far as they are known; others are missing.
        config: Folder, sizes, workers.
        max_history: L, tokens that a history keeps.
        as_of_ms: Knowledge cut-off (ms).

    Yields:
        The rows by day and user bucket.

    Raises:
        DataError: If no healthy day lies before the rows, or ids cannot be of the log's type.
    """
    context = Context(
        spec, features, config.root, config.user_buckets, config.entity_buckets, config.compression, max_history, as_of_ms,
        config.coverage_floor,
    )  # fmt: skip
    time_N = rows["request_time"].to_numpy()
    covering = BusinessDays.covering(time_N, spec.timezone)
    day_N = np.array(covering.days)[covering.index(time_N)]
    days = sorted(set(day_N.tolist()))
    if not any(day <= days[-1] and state.status != "refused" for day, state in health.days.items()):
        raise DataError("the log has no healthy day up to the rows", where="input", got=f"rows until {days[-1]}", expected="a later time")
    with owned(context.folder), Pool(engine_of(config.engine, config.workers)) as pool:
        source = ingest_days(context, health, days[-1], pool)
        repeats_of_days(context, source, pool)
        _timelines(context, source, days, pool)
        rows = _like_examples(context, rows, source.days[-1])
        bucket_N = user_bucket(rows["user"], context.user_buckets)
        for bucket in range(context.user_buckets):
            for day in days:
                row_N = np.flatnonzero((bucket_N == bucket) & (day_N == day))
                if len(row_N):
                    part = rows.take(pa.array(row_N)).combine_chunks()
                    yield Asked(
                        row_N,
                        with_features(context, bucket, part, _sources(context, source, day)),
                        _tokens(context, source, bucket, day, part),
                    )


def _sources(context: Context, source: SourceDays, day: str) -> Sources:
    """What the rows of one day read, whether the log has that day or not."""
    reach = day_start_ms(day, context.spec.timezone) - context.max_window_ms
    return Sources(
        carry_in=[other for other in source.days if other <= day and (source.ingested[other].facts["last_event"] >= reach or other == day)]
        or source.days[:1],
        calendar=[day],
        pool=[],
        scanned=[share for share in source.scanned if share.day <= day],
    )


def _timelines(context: Context, source: SourceDays, days: Sequence[str], pool: Pool) -> None:
    """Runs the entity pass for the days of the rows, skipping what is done."""
    tasks = []
    for day in days:
        key = plan.timeline_key(context, source, day)
        for bucket in range(context.entity_buckets):
            if finished(context.folder, record_name(day, bucket), key) is None:
                arguments = (context, bucket, [day], plan.timeline_sources(context, source, [day]), {day: key})
                tasks.append(Task(write_timelines, arguments))
    pool.run("entities", tasks)


def _like_examples(context: Context, rows: pa.Table, day: str) -> pa.Table:
    """Gives rows the columns and types of examples; `day` is any ingested one, whose events tell the types."""
    spec, schema = context.spec, read_events(context, day, 0).schema
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: _typed(rows, name, schema.field(name).type) for name in ("user", "item")}
    time = rows["request_time"]
    columns |= dict.fromkeys(("request_time", "event_time", "known_at", "available"), time)
    columns["is_event"] = pa.array(np.zeros(len(rows), bool))
    columns["weight"] = pa.array(np.ones(len(rows), np.float32))
    columns |= {LABEL + name: pa.nulls(len(rows), pa.float32()) for name in spec.actions}
    for name in spec.features:
        kind = schema.field(FEATURE + name).type
        columns[FEATURE + name] = _typed(rows, name, kind) if name in rows.column_names else pa.nulls(len(rows), kind)
    return join(pa.table(columns), side_tables(spec)).combine_chunks()


def _typed(rows: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return rows[name].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            "a column cannot be of the log's type", where=f"input: {name}", got=rows.schema.field(name).type, expected=kind,
            remedy=str(error).splitlines()[0],
        ) from error  # fmt: skip


def _tokens(context: Context, source: SourceDays, bucket: int, day: str, rows: pa.Table) -> pa.Table:
    """All tokens of the rows' users up to a day; which of them a row may read is a matter of their availability."""
    users = pc.unique(rows["user"].combine_chunks())
    parts = [prior_tokens(context, bucket, source.days[0])]
    parts += [day_tokens(context, other, bucket) for other in source.days if other <= day]
    return pa.concat_tables([part.filter(pc.is_in(part["user"], value_set=users)) for part in parts]).combine_chunks()
