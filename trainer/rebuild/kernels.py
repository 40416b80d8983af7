"""Point-in-time counters by sorting, prefix sums and binary search.

An event enters a window at ``a`` (known, ripe, served) and leaves it at ``event_time + window + 1``, so that the window is
``event_time >= t - window``. A count at t is what entered up to t minus what left up to t: two sorted arrays, two searches, any
window length at the same price. All sums are integers (`FIXED` steps to one), so that they do not depend on where an addition
started, which days were loaded, or how work was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
        """Name of the primitive in a timeline."""
        return ":".join([self.signal, self.action, self.of, str(self.window_ms)])


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

    def take(self, index: np.ndarray) -> EntityLog:
        """Returns the events at `index` (positions or mask)."""
        return EntityLog(
            self.key_N[index],
            self.event_time_N[index],
            {name: value_N[index] for name, value_N in self.enter.items()},
            {name: value_N[index] for name, value_N in self.label.items()},
            {name: (value_N[index], valid_N[index]) for name, (value_N, valid_N) in self.of.items()},
        )


class CounterKernel:
    """Evaluates primitives of one entity at many instants; sorts once, searches once a window and an outcome."""

    def __init__(self, log: EntityLog) -> None:
        self._log = log
        self.keys_K, self._group_N = dense_groups(log.key_N)
        self._by_event = GroupedTimes(self._group_N, log.event_time_N)
        self._alike = _alike(log.enter)
        self._by_enter: dict[str, GroupedTimes] = {}
        self._prefixes: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}

    def groups(self, key_Q: np.ndarray) -> np.ndarray:
        """Returns the dense group of each key, -1 for keys without events."""
        return group_of(self.keys_K, key_Q)

    def evaluate(self, primitives: list[Primitive], group_Q: np.ndarray, time_Q: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Returns the value of each primitive at (group, time): int64 [Q]; 0, or `NEVER` for `last`, where nothing is known."""
        asked = Queries(group_Q, time_Q)
        values = self.evaluate_sorted(primitives, asked.group_U, asked.time_U)
        return {primitive: asked.expand(value_U) for primitive, value_U in values.items()}

    def evaluate_sorted(self, primitives: list[Primitive], group_U: np.ndarray, time_U: np.ndarray) -> dict[Primitive, np.ndarray]:
        """Does what `evaluate` does where the instants are sorted by (group, time) already."""
        asked = {self._alike[primitive.action] for primitive in primitives}
        entered = {action: self._enter_order(action).up_to(group_U, time_U) for action in asked}
        left = {w: self._by_event.up_to(group_U, time_U - w - 1) for w in {p.window_ms for p in primitives}}
        values = {}
        for primitive in primitives:
            if primitive.signal == "distinct":
                values[primitive] = self._distinct(primitive, group_U, time_U)
            elif primitive.signal == "last":
                values[primitive] = self._last(primitive, entered[self._alike[primitive.action]], group_U, time_U)
            else:
                values[primitive] = self._sum(primitive, entered[self._alike[primitive.action]], left[primitive.window_ms])
        return values

    def changes(self, primitives: list[Primitive], first_ms: int, last_ms: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns every (group, time) in [first, last] at which a primitive may change, sorted by both and unique."""
        times = [self._log.enter[action] for action in sorted({self._alike[p.action] for p in primitives} | {""})]
        times += [self._log.event_time_N + window + 1 for window in sorted({p.window_ms for p in primitives})]
        span = last_ms - first_ms + 1
        packed = []
        for time_N in times:
            inside_N = (time_N >= first_ms) & (time_N <= last_ms)
            packed.append(self._group_N[inside_N] * span + (time_N[inside_N] - first_ms))
        packed_M = np.sort(np.concatenate(packed))  # np.unique hashes first, which is slower on mostly distinct values
        packed_M = packed_M[np.r_[True, packed_M[1:] != packed_M[:-1]]] if len(packed_M) else packed_M
        return packed_M // span, packed_M % span + first_ms

    def _enter_order(self, action: str) -> GroupedTimes:
        action = self._alike[action]
        if action not in self._by_enter:
            self._by_enter[action] = GroupedTimes(self._group_N, self._log.enter[action])
        return self._by_enter[action]

    def _sum(self, primitive: Primitive, entered_Q: np.ndarray, left_Q: np.ndarray) -> np.ndarray:
        entered_N, left_N = self._sums(primitive)
        return entered_N[entered_Q] - left_N[left_Q]

    def _sums(self, primitive: Primitive) -> tuple[np.ndarray, np.ndarray]:
        """Returns prefix sums in order of entry and of event time: int64 [N + 1] each, shared by windows where possible."""
        action = primitive.action
        # An outcome that ripens after its event has left the window never counts.
        dead_N = self._log.event_time_N + primitive.window_ms + 1 <= self._log.enter[action]
        key = (primitive.signal, action, primitive.window_ms if dead_N.any() else 0)
        if key not in self._prefixes:
            value_N = np.where(dead_N, 0, _SIGNALS[primitive.signal](self._log, action))
            self._prefixes[key] = _prefix(value_N[self._enter_order(action).order_N]), _prefix(value_N[self._by_event.order_N])
        return self._prefixes[key]

    def _last(self, primitive: Primitive, entered_Q: np.ndarray, group_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        order = self._enter_order(primitive.action)
        log = self._log
        floor = int(log.event_time_N.min()) - 1 if len(log.event_time_N) else 0
        counts_N = _positive(log, primitive.action) > 0 if primitive.action else np.ones(len(log.key_N), bool)
        offset_N = np.where(counts_N, log.event_time_N - floor, 0)[order.order_N]
        latest_N = running_max(self._group_N[order.order_N], offset_N)
        some_Q = entered_Q > order.before_group(group_Q)
        offset_Q = np.where(some_Q, np.r_[0, latest_N][entered_Q], 0)
        last_Q = offset_Q + floor
        return np.where((offset_Q > 0) & (last_Q >= time_Q - primitive.window_ms), last_Q, NEVER)

    def _distinct(self, primitive: Primitive, group_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        value_N, valid_N = self._log.of[primitive.of]
        enter_N = self._log.enter[""]
        leave_N = self._log.event_time_N + primitive.window_ms + 1
        use_N = valid_N & (leave_N > enter_N)
        group_M, start_M, end_M = merged_intervals(self._group_N[use_N], value_N[use_N], enter_N[use_N], leave_N[use_N])
        return GroupedTimes(group_M, start_M).up_to(group_Q, time_Q) - GroupedTimes(group_M, end_M).up_to(group_Q, time_Q)


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


def dense_groups(key_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys, ascending, and the position of each entry's key among them (int64)."""
    distinct_K, code_N = _coded(key_N)
    order_K = np.argsort(distinct_K)
    rank_K = np.empty(len(order_K), np.int64)
    rank_K[order_K] = np.arange(len(order_K))
    return distinct_K[order_K], rank_K[code_N]


def group_of(keys_K: np.ndarray, key_Q: np.ndarray) -> np.ndarray:
    """Returns the position of each key in the sorted, unique `keys_K`; -1 where absent."""
    if not len(keys_K):
        return np.full(len(key_Q), -1, np.int64)
    distinct_D, code_Q = _coded(key_Q)
    position_D = np.minimum(np.searchsorted(keys_K, distinct_D), len(keys_K) - 1)
    return np.where(keys_K[position_D] == distinct_D, position_D, -1)[code_Q]


def _coded(key_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys in order of appearance and the number of each entry's key: a hash table, no sort of all rows."""
    encoded = pa.array(key_N).dictionary_encode()
    return np.asarray(encoded.dictionary), np.asarray(encoded.indices)


def _alike(enter: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns action -> the first one whose outcomes may be read at the same instants: both are sorted and searched once."""
    found: dict[str, str] = {}
    for action, enter_N in enter.items():
        found[action] = next((other for other in found.values() if np.array_equal(enter_N, enter[other])), action)
    return found


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
