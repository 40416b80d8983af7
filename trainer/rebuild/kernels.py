"""Point-in-time counters by sorting, prefix sums and binary search.

An event enters a window at ``a`` (known, ripe, served) and leaves it at ``event_time + window + 1``, so that the window is
``event_time >= t - window``. A count at t is what entered up to t minus what left up to t: two sorted arrays, two searches, any
window length at the same price. All sums are integers (`FIXED` steps to one), so that they do not depend on where an addition
started, which days were loaded, or how work was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.rebuild.order import GroupedTimes, Queries, running_max

FIXED = 1 << 20  # fixed-point steps to one unit of an action's value
VALUE_LIMIT = float(1 << 31)  # an action's value is cut here before it is summed
NEVER = np.iinfo(np.int64).min  # "no such event" of a `last` signal


@dataclass(frozen=True, order=True)
class Primitive:
    """An integer that is read at an instant; every declared counter is made of these.

    Attributes:
        entity: Names whose values together are the key; empty: everything.
        window_ms: Window.
        signal: ``events`` (how many), ``positive`` (with a value above 0), ``known`` (with a known value), ``sum`` (of values, fixed
            point), ``last`` (event time of the latest), ``distinct`` (different values of `of`).
        action: Action it reads, or "".
        of: Name whose values `distinct` counts, or "".
    """

    entity: tuple[str, ...]
    window_ms: int
    signal: str
    action: str = ""
    of: str = ""

    @property
    def column(self) -> str:
        """Name of the primitive in a file of answers."""
        return ":".join([self.signal, self.action, self.of, str(self.window_ms)])

    @property
    def blank(self) -> int:
        """Value of the primitive where nothing is known."""
        return NEVER if self.signal == "last" else 0


@dataclass(frozen=True)
class EntityLog:
    """Events as one entity sees them.

    Attributes:
        key_N: uint64 hash of the entity's key.
        event_time_N: int64 ms.
        enter: Action (or "" for none) -> int64 ms, when its outcome may be read.
        label: Action -> float64, NaN where unknown.
        of: Name -> uint64 hashes and validity.
    """

    key_N: np.ndarray
    event_time_N: np.ndarray
    enter: Mapping[str, np.ndarray]
    label: Mapping[str, np.ndarray]
    of: Mapping[str, tuple[np.ndarray, np.ndarray]]


class CounterKernel:
    """Evaluates primitives of one entity at many instants: events are sorted once, instants once, and searched once a window."""

    def __init__(self, log: EntityLog) -> None:
        self._log = log
        self._keys_K, self._group_N = dense_groups(log.key_N)
        self._by_event = GroupedTimes(self._group_N, log.event_time_N)
        self._lags = {action: _lag(enter_N, log.event_time_N) for action, enter_N in log.enter.items()}
        self._slowest = {action: int((enter_N - log.event_time_N).max(initial=0)) for action, enter_N in log.enter.items()}
        self._alike = _alike(log.enter)
        self._by_enter: dict[str, GroupedTimes] = {}
        self._prefixes: dict[tuple[int, str, str, int], np.ndarray] = {}

    def evaluate(self, primitives: Sequence[Primitive], key_Q: np.ndarray, time_Q: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Returns the value of each primitive at (key, time): int64 [Q]; 0, or `NEVER` for `last`, where nothing is known."""
        asked = Queries(group_of(self._keys_K, key_Q), time_Q)
        group_U, time_U = asked.group_U, asked.time_U
        entered = {action: self._entered(action, group_U, time_U) for action in {self._alike[p.action] for p in primitives}}
        left = {w: self._by_event.up_to(group_U, time_U - w - 1) for w in {p.window_ms for p in primitives}}
        values = {}
        for primitive in primitives:
            if primitive.signal == "distinct":
                value_U = self._distinct(primitive, group_U, time_U)
            elif primitive.signal == "last":
                value_U = self._last(primitive, entered[self._alike[primitive.action]], group_U, time_U)
            else:
                value_U = self._sum(primitive, entered[self._alike[primitive.action]], left[primitive.window_ms])
            values[primitive] = asked.expand(value_U)
        return values

    def _entered(self, action: str, group_U: np.ndarray, time_U: np.ndarray) -> np.ndarray:
        """Returns how many outcomes may be read at each instant, counted in `_enter_order`."""
        lag = self._lags[action]
        return self._enter_order(action).up_to(group_U, time_U if lag is None else time_U - lag)

    def _enter_order(self, action: str) -> GroupedTimes:
        """Returns the order of entry: that of the events where every outcome waits equally long."""
        action = self._alike[action]
        if self._lags[action] is not None:
            return self._by_event
        if action not in self._by_enter:
            self._by_enter[action] = GroupedTimes(self._group_N, self._log.enter[action])
        return self._by_enter[action]

    def _sum(self, primitive: Primitive, entered_U: np.ndarray, left_U: np.ndarray) -> np.ndarray:
        return self._prefix(primitive, self._enter_order(primitive.action))[entered_U] - self._prefix(primitive, self._by_event)[left_U]

    def _prefix(self, primitive: Primitive, order: GroupedTimes) -> np.ndarray:
        """Returns prefix sums of a signal in an order: int64 [N + 1], shared by all windows that every outcome lives to see."""
        log, action = self._log, primitive.action
        # An outcome that ripens after its event has left the window never counts.
        dies = self._slowest[action] > primitive.window_ms
        key = (id(order), primitive.signal, action, primitive.window_ms if dies else 0)
        if key not in self._prefixes:
            value_N = _SIGNALS[primitive.signal](log, action)
            if dies:
                value_N = np.where(log.event_time_N + primitive.window_ms < log.enter[action], 0, value_N)
            self._prefixes[key] = _prefix(value_N[order.order_N])
        return self._prefixes[key]

    def _last(self, primitive: Primitive, entered_U: np.ndarray, group_U: np.ndarray, time_U: np.ndarray) -> np.ndarray:
        order = self._enter_order(primitive.action)
        log = self._log
        floor = int(log.event_time_N.min()) - 1 if len(log.event_time_N) else 0
        counts_N = _positive(log, primitive.action) > 0 if primitive.action else np.ones(len(log.key_N), bool)
        offset_N = np.where(counts_N, log.event_time_N - floor, 0)[order.order_N]
        latest_N = running_max(self._group_N[order.order_N], offset_N)
        some_U = entered_U > order.before_group(group_U)
        offset_U = np.where(some_U, np.r_[0, latest_N][entered_U], 0)
        last_U = offset_U + floor
        return np.where((offset_U > 0) & (last_U >= time_U - primitive.window_ms), last_U, NEVER)

    def _distinct(self, primitive: Primitive, group_U: np.ndarray, time_U: np.ndarray) -> np.ndarray:
        value_N, valid_N = self._log.of[primitive.of]
        enter_N = self._log.enter[""]
        leave_N = self._log.event_time_N + primitive.window_ms + 1
        use_N = valid_N & (leave_N > enter_N)
        group_M, start_M, end_M = merged_intervals(self._group_N[use_N], value_N[use_N], enter_N[use_N], leave_N[use_N])
        return GroupedTimes(group_M, start_M).up_to(group_U, time_U) - GroupedTimes(group_M, end_M).up_to(group_U, time_U)


def merged_intervals(
    group_N: np.ndarray, value_N: np.ndarray, enter_N: np.ndarray, leave_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins overlapping intervals [enter, leave) of the same (group, value).

    Returns:
        Group, start and end of each joined interval; a value is present in a group from start (included) to end (excluded).
    """
    if not len(group_N):
        return group_N, enter_N, leave_N
    order_N = np.lexsort((enter_N, value_N, group_N))
    group_N, value_N, enter_N, leave_N = group_N[order_N], value_N[order_N], enter_N[order_N], leave_N[order_N]
    new_pair_N = np.r_[True, (group_N[1:] != group_N[:-1]) | (value_N[1:] != value_N[:-1])]
    floor = int(leave_N.min())
    reach_N = running_max(np.cumsum(new_pair_N) - 1, leave_N - floor) + floor  # windows end in order of event time, not of entry
    starts_N = new_pair_N | np.r_[True, enter_N[1:] > reach_N[:-1]]
    first_M = np.flatnonzero(starts_N)
    last_M = np.r_[first_M[1:], len(group_N)] - 1
    return group_N[first_M], enter_N[first_M], reach_N[last_M]


def dense_groups(key_N: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """Returns the distinct keys in order of appearance, and the position of each entry's key among them (int64)."""
    encoded = pa.array(key_N).dictionary_encode()
    return encoded.dictionary, np.asarray(encoded.indices, np.int64)


def group_of(keys_K: pa.Array, key_Q: np.ndarray) -> np.ndarray:
    """Returns the position of each key among the distinct `keys_K`; -1 where absent."""
    return np.asarray(pc.fill_null(pc.index_in(pa.array(key_Q), value_set=keys_K), -1), np.int64)


def _alike(enter: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns action -> the first one whose outcomes may be read at the same instants: both are sorted and searched once."""
    found: dict[str, str] = {}
    for action, enter_N in enter.items():
        same = (other for other in found.values() if enter[other] is enter_N or np.array_equal(enter_N, enter[other]))
        found[action] = next(same, action)
    return found


def _lag(enter_N: np.ndarray, event_time_N: np.ndarray) -> int | None:
    """Returns how long after its event each outcome may be read (ms), or None where that differs from event to event."""
    if not len(enter_N):
        return 0
    lag = int(enter_N[0] - event_time_N[0])
    return lag if np.array_equal(enter_N, event_time_N + lag) else None


def _prefix(value_N: np.ndarray) -> np.ndarray:
    result = np.zeros(len(value_N) + 1, np.int64)
    np.cumsum(value_N, out=result[1:])
    return result


def _positive(log: EntityLog, action: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (log.label[action] > 0).astype(np.int64)


def _fixed(log: EntityLog, action: str) -> np.ndarray:
    value_N = np.clip(np.nan_to_num(log.label[action], nan=0.0), -VALUE_LIMIT, VALUE_LIMIT)
    return np.rint(value_N * FIXED).astype(np.int64)


_SIGNALS: dict[str, Callable[[EntityLog, str], np.ndarray]] = {
    "events": lambda log, action: np.ones(len(log.key_N), np.int64),
    "positive": _positive,
    "known": lambda log, action: np.isfinite(log.label[action]).astype(np.int64),
    "sum": _fixed,
}
