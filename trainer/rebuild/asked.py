"""Examples of rows that nobody logged: any (user, item, time), with features and histories as they were known then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config import RebuildConfig
from trainer.errors import DataError
from trainer.logs.calendar import BusinessDays
from trainer.rebuild.answers import Direct
from trainer.rebuild.context import Context
from trainer.rebuild.engines import engine_of
from trainer.rebuild.events import read_events
from trainer.rebuild.order import ranks
from trainer.rebuild.plan import SourceDays
from trainer.rebuild.pool import Pool
from trainer.rebuild.run import ingest_days, repeats_of_days
from trainer.rebuild.sides import join, side_tables
from trainer.rebuild.spill import ROW, Spill
from trainer.rebuild.store import owned
from trainer.rebuild.tails import day_tokens, prior_tokens
from trainer.rebuild.targets import Sources, with_features
from trainer.schema.examples import FEATURE, LABEL
from trainer.schema.features import FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_start_ms


class Rows(Protocol):
    """Rows that are read more than once, some at a time, always in the same order."""

    def times(self) -> Iterator[np.ndarray]:
        """Yields the request times, int64 ms."""

    def tables(self) -> Iterator[pa.Table]:
        """Yields user, item, request_time (int64 ms), and the log's own features by name as far as they are known."""


@dataclass(frozen=True)
class Asked:
    """Rows of one (day, user bucket), or of some of its users where it has very many.

    Attributes:
        row_N: int64, their places among the rows that were asked for.
        examples: The rows in the layout of `trainer.schema.examples`; none is an event, labels are null.
        tail: All tokens of their users up to the day, the day's included.
    """

    row_N: np.ndarray
    examples: pa.Table
    tail: pa.Table


def asked(
    spec: LogSpec,
    features: FeatureSpec,
    health: HealthMap,
    rows: Rows,
    config: RebuildConfig,
    *,
    max_history: int,
    as_of_ms: int,
    scratch: Path,
) -> Iterator[Asked]:
    """Rebuilds the features of rows that are in no log; the log's own files of the rebuild are shared with the main job.

    Memory does not grow with the rows: they are sorted into groups on disk first. It grows with the events that shared counters reach
    from them.

    Args:
        spec: The log.
        features: Declared features.
        health: The scan of the log.
        rows: The rows; features of the log that they do not have are missing.
        config: Folder, sizes, workers.
        max_history: L, tokens that a history keeps.
        as_of_ms: Knowledge cut-off (ms).
        scratch: File for the sorted rows, about as large as they are; the caller removes it.

    Yields:
        Every row once, those of a user and business day together.

    Raises:
        DataError: If no healthy day lies before the rows, ids cannot be of the log's type, or the disk refuses the scratch file.
    """
    context = Context(
        spec, features, config.root, config.user_buckets, config.entity_buckets, config.compression, max_history, as_of_ms,
        config.coverage_floor,
    )  # fmt: skip
    rows_of = _rows_of_days(rows, spec.timezone)
    days = list(rows_of)
    if not any(day <= days[-1] and state.status != "refused" for day, state in health.days.items()):
        raise DataError("the log has no healthy day up to the rows", where="input", got=f"rows until {days[-1]}", expected="a later time")
    with owned(context.folder), Pool(engine_of(config.engine, config.workers)) as pool:
        source = ingest_days(context, health, days[-1], pool)
        repeats_of_days(context, source, pool)
        kinds = _kinds(context, source.days[-1])
        first = next(rows.tables())
        schema = pa.schema([(name, kinds[name]) for name in first.column_names])
        spill = Spill(scratch, schema, rows_of, context.user_buckets, spec.timezone)
        try:
            spill.write(_typed(table, kinds) for table in rows.tables())
        except OSError as error:
            raise DataError("cannot put the rows aside", where=scratch, got=error.strerror or error, remedy="free some space") from error
        sources = {day: _sources(context, source, day) for day in days}
        shared = Direct(context, sorted({other for reached in sources.values() for other in reached.carry_in}))
        for bucket, day, group in spill.groups():
            examples = with_features(context, bucket, _like_examples(context, group, kinds), sources[day], shared)
            yield Asked(group[ROW].to_numpy(), examples, _tokens(context, source, bucket, day, group))


def _rows_of_days(rows: Rows, zone: str) -> dict[str, int]:
    """Counts rows by business day, sorted."""
    counts: Counter[str] = Counter()
    for time_N in rows.times():
        covering = BusinessDays.covering(time_N, zone)
        counts.update({covering.days[day]: int(n) for day, n in zip(*np.unique(covering.index(time_N), return_counts=True), strict=True)})
    return dict(sorted(counts.items()))


def _sources(context: Context, source: SourceDays, day: str) -> Sources:
    """What the rows of one day read, whether the log has that day or not."""
    reach = day_start_ms(day, context.spec.timezone) - context.max_window_ms
    return Sources(
        carry_in=[other for other in source.days if other <= day and (source.ingested[other].facts["last_event"] >= reach or other == day)]
        or source.days[:1],
        since=day,
        pool=[],
        scanned=[share for share in source.scanned if share.day <= day],
    )


def _kinds(context: Context, day: str) -> dict[str, pa.DataType]:
    """Types of what rows may hold, as events have them; `day` is any ingested one."""
    schema = read_events(context, day, 0).schema
    kinds = {name: schema.field(name).type for name in ("user", "item")} | {"request_time": pa.int64()}
    return kinds | {name: schema.field(FEATURE + name).type for name in context.spec.parts}


def _like_examples(context: Context, rows: pa.Table, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Gives rows the columns and types of examples."""
    spec = context.spec
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: rows[name] for name in ("user", "item")}
    columns |= dict.fromkeys(("request_time", "event_time", "known_at", "available"), rows["request_time"])
    columns["is_event"] = pa.array(np.zeros(len(rows), bool))
    columns["weight"] = pa.array(np.ones(len(rows), np.float32))
    columns |= {LABEL + name: pa.nulls(len(rows), pa.float32()) for name in spec.actions}
    for name in spec.parts:
        columns[FEATURE + name] = rows[name] if name in rows.column_names else pa.nulls(len(rows), kinds[name])
    return join(pa.table(columns), side_tables(spec)).combine_chunks()


def _typed(rows: pa.Table, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Casts rows to the log's types."""
    columns = {}
    for name in rows.column_names:
        try:
            columns[name] = rows[name].cast(kinds[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                "a column cannot be of the log's type", where=f"input: {name}", got=rows.schema.field(name).type, expected=kinds[name],
                remedy=str(error).splitlines()[0],
            ) from error  # fmt: skip
    return pa.table(columns)


def _tokens(context: Context, source: SourceDays, bucket: int, day: str, rows: pa.Table) -> pa.Table:
    """All tokens of the rows' users up to a day; which of them a row may read is a matter of their availability.

    Those that tie in time stand in the order of their items, as in tails and examples; clockless ones keep their own.
    """
    users = pc.unique(rows["user"].combine_chunks())
    parts = [prior_tokens(context, bucket, source.days[0])]
    parts += [day_tokens(context, other, bucket) for other in source.days if other <= day]
    tokens = pa.concat_tables([part.filter(pc.is_in(part["user"], value_set=users)) for part in parts]).combine_chunks()
    item_T = np.where(np.asarray(tokens["available"].is_null()), 0, ranks(tokens["item"]))
    return tokens.take(pa.array(np.argsort(item_T, kind="stable")))
