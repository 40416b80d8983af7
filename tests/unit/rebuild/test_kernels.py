"""The kernel against counting by hand, where all outcomes wait equally long and where they do not; and the order of entries that tie."""

import numpy as np
import pytest

from trainer.rebuild.kernels import FIXED, NEVER, CounterKernel, EntityLog, Primitive
from trainer.rebuild.order import GroupedTimes

WINDOWS = (50, 400)
PRIMITIVES = [
    Primitive(("k",), window, signal, action, of)
    for window in WINDOWS
    for signal, action, of in (
        ("events", "", ""), ("positive", "a", ""), ("known", "a", ""), ("sum", "a", ""), ("last", "", ""), ("last", "a", ""),
        ("distinct", "", "o"),
    )
]  # fmt: skip


def _by_hand(log, primitive, key, time):
    entered = log.enter[primitive.action] <= time
    chosen = (log.key_N == key) & entered & (log.event_time_N >= time - primitive.window_ms)
    value_N = log.label.get(primitive.action)
    match primitive.signal:
        case "events":
            return chosen.sum()
        case "positive":
            return (value_N[chosen] > 0).sum()
        case "known":
            return np.isfinite(value_N[chosen]).sum()
        case "sum":
            return round(np.nansum(value_N[chosen]) * FIXED)
        case "last":
            chosen &= np.ones(len(chosen), bool) if value_N is None else value_N > 0
            return log.event_time_N[chosen].max() if chosen.any() else NEVER
    return len(set(log.of["o"][0][chosen & log.of["o"][1]].tolist()))


@pytest.mark.parametrize("lags", ["equal", "equal and longer than a window", "of an action only", "different"])
def test_counts_by_hand(lags):
    random = np.random.default_rng(3)
    event_N = random.integers(0, 1000, 300)
    late_N = event_N + random.integers(1, 120, 300)
    if lags == "different":
        own, ripe = late_N, np.maximum(late_N, event_N + 40)
    else:
        wait, longer = {"equal": (1, 40), "equal and longer than a window": (60, 60), "of an action only": (1, late_N - event_N)}[lags]
        own, ripe = event_N + wait, event_N + longer
    label_N = np.where(random.random(300) < 0.2, np.nan, random.integers(0, 3, 300) / 2)
    counted = (random.integers(0, 6, 300).astype(np.uint64), random.random(300) < 0.9)
    log = EntityLog(random.integers(0, 8, 300).astype(np.uint64), event_N, {"": own, "a": ripe}, {"a": label_N}, {"o": counted})
    key_Q, time_Q = random.integers(0, 10, 500).astype(np.uint64), random.integers(-50, 1600, 500)  # keys 8 and 9 are unknown
    values = CounterKernel(log).evaluate(PRIMITIVES, key_Q, time_Q)
    for primitive in PRIMITIVES:
        expected = [_by_hand(log, primitive, key, time) for key, time in zip(key_Q, time_Q, strict=True)]
        assert values[primitive].tolist() == expected, primitive
        assert len(set(expected)) > 2 or primitive.window_ms < 60, "a check of what never changes checks nothing"


def test_ties_are_broken_by_the_columns_given_then_by_input_order():
    group_N, time_N, second_N = (np.array(column) for column in ([1, 0, 1, 1, 0, 1], [5, 9, 5, 5, 9, 2], [7, 1, 3, 7, 1, 9]))
    order = GroupedTimes(group_N, time_N, lambda row_M: [second_N[row_M]])
    assert order.order_N.tolist() == [1, 4, 5, 2, 0, 3]
    assert order.up_to(np.array([0, 1, 1, -1]), np.array([9, 4, 5, 9])).tolist() == [2, 3, 6, 0]
