"""Raw rows to events: internal columns by the specification's expressions, with what cannot be true made null and counted.

The result has the columns of `trainer.schema.examples` that do not depend on other rows: user, item, request, event_time,
request_time, known_at, weight, label_*, feature_* (of the log; side tables come later), logged_*, carried_*, and two of its own:
``delivery`` (uint64, equal for repeated deliveries of one event) and ``row`` (position in the day).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.logs.conform import Finding
from trainer.logs.hashing import combine, hash_ids
from trainer.logs.roles import carried_columns
from trainer.logs.values import Values, bounded, categorical, evaluated, list_parts, numbers, vector_parts
from trainer.schema.examples import CARRIED, FEATURE, LABEL, LOGGED, SERVED
from trainer.schema.logs import ColumnSpec, LogSpec, TimeSpec
from trainer.schema.time import DAY_MS, TICKS_PER_MS, day_end_ms, day_start_ms

EARLIEST_MS = 7 * DAY_MS  # an event further before its partition's day is no late row but a broken clock
_UNITS = (1e3, 1e-3, 1e6, 1e-6)  # between seconds, milliseconds, microseconds and nanoseconds
LATEST_MS = DAY_MS  # the same after the day's end: partitions cut in another timezone, clocks that run ahead


@dataclass(frozen=True)
class Normalised:
    """Events of one file.

    Attributes:
        table: Events in reading order.
        findings: What was made null or dropped.
        dropped: Rows that are no events: no user, item or time.
    """

    table: pa.Table
    findings: list[Finding]
    dropped: int


def normalise(table: pa.Table, spec: LogSpec, day: str, first_row: int = 0) -> Normalised:
    """Turns conformed rows into events.

    Three clamps keep a day's features independent of later days, whatever clocks say: a row is not known before its
    partition's day begins, a request is not later than that day's end, and not later than its own event.

    Args:
        table: Conformed columns of one file.
        spec: The log.
        day: Business day of the partition.
        first_row: Position of the file's first row in the day.

    Returns:
        Events, findings and the number of dropped rows.

    Raises:
        ConfigError: If an expression does not fit the log's columns.
    """
    findings: list[Finding] = []
    times, keep_N = _times(table, spec, day, findings)
    for column in (spec.user, spec.item):
        keep_N &= _present(table[column], column, findings)
    rows_N = np.arange(first_row, first_row + len(table))
    dropped = int(len(table) - keep_N.sum())
    if dropped:
        table, rows_N = table.filter(pa.array(keep_N)), rows_N[keep_N]
        times = {name: value_N[keep_N] for name, value_N in times.items()}
    columns: dict[str, pa.Array] = {"user": _whole(table[spec.user]), "item": _whole(table[spec.item])}
    if spec.request:
        columns["request"] = _whole(table[spec.request])
    columns |= {name: pa.array(value_N) for name, value_N in times.items()}
    columns["weight"] = _weights(table, spec, findings)
    columns |= _labels(table, spec, findings)
    for name, feature in spec.features.items():
        columns |= {FEATURE + part: value for part, value in feature_values(table, name, feature, spec.timezone, findings).items()}
    columns |= _extras(table, spec, findings)
    columns["delivery"] = pa.array(_delivery(table, spec, columns))
    columns["row"] = pa.array(rows_N)
    return Normalised(pa.table(columns), findings, dropped)


def feature_values(table: pa.Table, name: str, spec: ColumnSpec, zone: str, findings: list[Finding]) -> dict[str, pa.Array]:
    """Evaluates a feature column: int64 | string (categorical) or float32 (numeric), null where missing or out of range.

    A vector becomes its numbers, all null where one of them is not a believable one. A list becomes its first distinct values in
    ascending order, so that a list in another order is the same one, then nulls; an empty list is a missing one.

    Args:
        table: Conformed source columns.
        name: Feature name; also the column, unless the specification has an expression.
        spec: The feature.
        zone: Timezone of calendar functions.
        findings: Receives what was made null, and lists that have more values than count.

    Returns:
        The features by name (`ColumnSpec.parts`).
    """
    source = spec.expression or name
    if spec.kind == "categorical":
        return {name: categorical(table, source, zone, spec.minimum, spec.maximum, findings)}
    if spec.is_listed:
        names = list(spec.parts(name))
        if spec.kind == "list":
            return dict(zip(names, list_parts(table[source], source, len(names), findings), strict=True))
        return dict(zip(names, vector_parts(table[source], source, spec, len(names), findings), strict=True))
    values = bounded(evaluated(table, source, zone), source, spec.minimum, spec.maximum, findings)
    return {name: pa.array(values.value_N.astype(np.float32), mask=~values.valid_N)}


def _times(table: pa.Table, spec: LogSpec, day: str, findings: list[Finding]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns event, request and knowledge time (int64 ms) and which rows have believable ones."""
    start, last = day_start_ms(day, spec.timezone), day_end_ms(day, spec.timezone) - 1
    event = instant_ms(table, spec.event_time, spec.timezone)
    keep_N = _counted(event.valid_N, "null_key", _time_name(spec.event_time, "event_time"), "{} rows without an event time", findings)
    plausible_N = (event.value_N >= start - EARLIEST_MS) & (event.value_N <= last + LATEST_MS)
    keep_N &= _in_unit(event, plausible_N, start - EARLIEST_MS, last + LATEST_MS, _time_name(spec.event_time, "event_time"), findings)
    keep_N &= _counted(
        plausible_N | ~event.valid_N | ~keep_N, "time_out_of_day", _time_name(spec.event_time, "event_time"),
        f"{{}} rows more than 7 days before or 1 day after {day}", findings,
    )  # fmt: skip
    known = instant_ms(table, spec.known_at, spec.timezone, event)
    name = _time_name(spec.known_at, "known_at")
    keep_N &= _counted(known.valid_N | ~keep_N, "null_key", name, "{} rows without a knowledge time", findings)
    request = instant_ms(table, spec.request_time, spec.timezone, event)
    usable_N = request.valid_N & (request.value_N >= start - EARLIEST_MS) & (request.value_N <= event.value_N)
    request_N = np.where(usable_N, request.value_N, event.value_N)
    name = _time_name(spec.request_time, "request_time")
    _counted(usable_N | ~keep_N, "out_of_range", name, "{} rows: event time stands in", findings, "count")
    times = {
        "event_time": event.value_N,
        "request_time": np.minimum(request_N, last),
        "known_at": np.maximum(np.maximum(known.value_N, event.value_N), start),
    }
    return times, keep_N


def _in_unit(event: Values, plausible_N: np.ndarray, first: int, last: int, name: str, findings: list[Finding]) -> np.ndarray:
    """Marks rows that are not in another unit: whose time would lie in the day if it were multiplied by a power of a thousand."""
    right_N = np.ones(len(plausible_N), bool)
    strange_N = event.valid_N & ~plausible_N
    for factor in _UNITS if strange_N.any() else ():
        value_N = event.value_N * factor
        wrong_N = strange_N & right_N & (value_N >= first) & (value_N <= last)
        right_N &= _counted(~wrong_N, "time_unit", name, f"{{}} rows would lie in the day if multiplied by {factor:g}", findings)
    return right_N


def instant_ms(table: pa.Table, spec: TimeSpec | None, zone: str, otherwise: Values | None = None) -> Values:
    """Evaluates an instant in milliseconds; one without column or expression counts from `otherwise`."""
    delay = spec.delay_ms if spec else 0
    if spec is not None and spec.expression:
        values = evaluated(table, spec.expression, zone)
        value_N = np.floor(np.where(values.valid_N, values.value_N, 0)).astype(np.int64)
    elif spec is not None and spec.column:
        values = evaluated(table, spec.column, zone)
        value_N = _to_ms(values, "ms" if pa.types.is_timestamp(table[spec.column].type) else spec.unit)
    elif otherwise is not None:
        values, value_N = otherwise, otherwise.value_N
    else:
        values, value_N = Values(np.zeros(len(table)), np.zeros(len(table), bool)), np.zeros(len(table), np.int64)
    return Values(np.where(values.valid_N, value_N + delay, 0), values.valid_N)


def _to_ms(values: Values, unit: str) -> np.ndarray:
    value_N = np.where(values.valid_N, values.value_N, 0)
    ticks = TICKS_PER_MS[unit]
    if ticks < 1:
        return np.floor(value_N * round(1 / ticks)).astype(np.int64)
    return np.floor(value_N).astype(np.int64) // int(ticks)


def _time_name(spec: TimeSpec | None, role: str) -> str:
    return (spec.column if spec else None) or role


def _present(column: pa.ChunkedArray, name: str, findings: list[Finding]) -> np.ndarray:
    return _counted(np.asarray(column.is_valid()), "null_key", name, "{} rows without an id", findings)


def _counted(
    good_N: np.ndarray, kind: str, feature: str, evidence: str, findings: list[Finding], action: str = "quarantine_row"
) -> np.ndarray:
    bad = int(len(good_N) - good_N.sum())
    if bad:
        findings.append(Finding(kind, feature, bad, action, evidence.format(bad)))
    return good_N.copy()


def _weights(table: pa.Table, spec: LogSpec, findings: list[Finding]) -> pa.Array:
    """Inverse sampling rate; a rate that is no rate gives weight 1."""
    if not spec.negative_rate:
        return pa.array(np.ones(len(table), np.float32))
    rate = bounded(evaluated(table, spec.negative_rate, spec.timezone), spec.negative_rate, 1e-9, 1.0, findings)
    return pa.array((1.0 / np.where(rate.valid_N, rate.value_N, 1.0)).astype(np.float32))


def _labels(table: pa.Table, spec: LogSpec, findings: list[Finding]) -> dict[str, pa.Array]:
    labels = {}
    for name, action in spec.actions.items():
        value = evaluated(table, action.expression, spec.timezone)
        value = bounded(value, action.expression, 0.0, 1.0 if action.kind == "binary" else None, findings)
        if action.kind == "binary":
            valid_N = value.valid_N & ((value.value_N == 0) | (value.value_N == 1))
            _counted(valid_N | ~value.valid_N, "out_of_range", action.expression, "{} labels between 0 and 1", findings, "mask")
            value = Values(value.value_N, valid_N)
        labels[LABEL + name] = pa.array(value.value_N.astype(np.float32), mask=~value.valid_N)
    return labels


def _extras(table: pa.Table, spec: LogSpec, findings: list[Finding]) -> dict[str, pa.Array]:
    extras: dict[str, pa.Array] = {}
    for action, column in spec.logged_scores.items():
        top = 1.0 if spec.actions[action].kind == "binary" else None
        score = bounded(evaluated(table, column, spec.timezone), column, 0.0, top, findings)
        extras[LOGGED + action] = pa.array(score.value_N.astype(np.float64), mask=~score.valid_N)
    for name, source in spec.logged_features.items():
        extras[SERVED + name] = _served(table, source, spec.timezone, findings)
    for name, column in carried_columns(spec).items():
        extras[CARRIED + name] = _whole(table[column])
    return extras


def _served(table: pa.Table, source: str, zone: str, findings: list[Finding]) -> pa.Array:
    """Returns a feature's logged value: text as it stands, else float64."""
    if source in table.column_names and pa.types.is_string(table[source].type):
        return _whole(table[source])
    value = bounded(evaluated(table, source, zone), source, None, None, findings)
    return pa.array(value.value_N.astype(np.float64), mask=~value.valid_N)


def _delivery(table: pa.Table, spec: LogSpec, columns: dict[str, pa.Array]) -> np.ndarray:
    """Hash of what makes two rows one event; 64 bits, so two events of one million collide with probability 3e-8."""
    user_N = hash_ids(columns["user"])
    key_N = combine(user_N, hash_ids(columns["item"]), hash_ids(columns["event_time"]))
    if not spec.event_id:
        return key_N
    identified_N = np.asarray(table[spec.event_id].is_valid())
    return np.where(identified_N, combine(user_N, hash_ids(table[spec.event_id])), key_N)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if column.type == pa.bool_():
        return numbers(column)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def first_deliveries(delivery_N: np.ndarray, known_at_N: np.ndarray, row_N: np.ndarray, earlier_M: np.ndarray) -> np.ndarray:
    """Marks the delivery of each event that is kept: the first known one of the first day that has it.

    Earlier days come first, whatever their `known_at`: otherwise a day's events would change when a later day is loaded.

    Args:
        delivery_N: Delivery hashes of one day.
        known_at_N: When each row became visible.
        row_N: Position in the day; breaks ties.
        earlier_M: Delivery hashes of earlier days.

    Returns:
        bool [N], True where the row is kept.
    """
    keep_N = np.ones(len(delivery_N), bool)
    sorted_N = np.sort(delivery_N)
    repeated_R = np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])  # few are: the others need no order
    if len(repeated_R):
        row_M = np.flatnonzero(np.isin(delivery_N, repeated_R))
        row_M = row_M[np.lexsort((row_N[row_M], known_at_N[row_M], delivery_N[row_M]))]
        keep_N[row_M[1:][delivery_N[row_M[1:]] == delivery_N[row_M[:-1]]]] = False
    return keep_N & ~np.isin(delivery_N, earlier_M) if len(earlier_M) else keep_N
