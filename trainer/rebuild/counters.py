"""Declared counters to primitives, and primitives to feature values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from trainer.errors import ConfigError, nearest
from trainer.rebuild.kernels import FIXED, NEVER, Primitive
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.time import HOUR_MS

AUTO_WINDOW = "7d"
AUTO_PRIORS = {"user": 5.0}  # ids of people have short histories; everything else leans on 20 pseudo-impressions

Read = Callable[[Primitive], tuple[np.ndarray, np.ndarray]]
"""Reads a primitive for every row: int64 values, and whether the row has that entity's key."""


def resolve_counters(spec: LogSpec, features: FeatureSpec) -> dict[str, CounterSpec]:
    """Returns all counters, derived ones included, after checking every name they use.

    Raises:
        ConfigError: If a counter names an unknown column or action, or a rate of an action that is not binary.
    """
    counters = {**(_derived(spec) if features.auto else {}), **features.counters}
    known = entity_names(spec)
    for name, counter in counters.items():
        where = f"features.counters.{name}"
        for column in [*counter.entity, *(counter.parent or []), *([counter.of] if counter.of else [])]:
            if column not in known:
                raise ConfigError("a counter names an unknown column", where=where, got=column, remedy=nearest(column, known))
        action = counter.action
        if action is not None and action not in spec.actions:
            raise ConfigError("a counter names an unknown action", where=where, got=action, remedy=nearest(action, spec.actions))
        if counter.kind == "rate" and action and spec.actions[action].kind != "binary":
            raise ConfigError("a rate needs a binary action", where=where, got=action, remedy="use kind: mean")
        if counter.parent is not None and counter.kind not in ("rate", "mean"):
            raise ConfigError("only a rate or a mean has a parent", where=where, got=counter.kind, remedy="remove `parent`")
    return counters


def entity_names(spec: LogSpec) -> list[str]:
    """Returns the names a counter's key may use: ids and categorical features of the log and of side tables."""
    side = [(name, column) for table in spec.side_tables.values() for name, column in table.columns.items()]
    return ["user", "item", *(name for name, column in [*spec.features.items(), *side] if column.kind == "categorical")]


def _derived(spec: LogSpec) -> dict[str, CounterSpec]:
    """Counts by user, item and each categorical log feature, and rates of every gated binary action.

    A click-only log has no rates: every event is a click, and negatives never enter counters.
    """
    names = ["user", "item", *(name for name, column in spec.features.items() if column.kind == "categorical")]
    actions = [] if spec.negatives else [name for name in spec.gated_actions if spec.actions[name].kind == "binary"]
    counters: dict[str, CounterSpec] = {}
    for name in names:
        counters[f"auto_{name}_count_{AUTO_WINDOW}"] = CounterSpec(kind="count", entity=[name], window=AUTO_WINDOW)
        for action in actions:
            counters[f"auto_{name}_{action}_rate_{AUTO_WINDOW}"] = CounterSpec(
                kind="rate", entity=[name], action=action, window=AUTO_WINDOW, prior=AUTO_PRIORS.get(name, 20.0)
            )
    return counters


def primitives_of(counter: CounterSpec) -> list[Primitive]:
    """Returns the primitives that a counter is made of, its parents' included."""
    entity, window, action = tuple(counter.entity), counter.window_ms, counter.action or ""
    match counter.kind:
        case "count":
            return [Primitive(entity, window, "positive" if action else "events", action)]
        case "sum":
            return [Primitive(entity, window, "sum", action)]
        case "recency":
            return [Primitive(entity, window, "last", action)]
        case "distinct":
            return [Primitive(entity, window, "distinct", "", counter.of or "")]
    return [Primitive(level, window, signal, action) for level in _levels(counter) for signal in ("sum", "known")]


def _levels(counter: CounterSpec) -> list[tuple[str, ...]]:
    """Returns the entity, its parent and everything, without repeats: a rate leans on the next of them."""
    return list(dict.fromkeys([tuple(counter.entity), tuple(counter.parent or ()), ()]))


def all_primitives(counters: Iterable[CounterSpec]) -> list[Primitive]:
    """Returns the distinct primitives of counters, sorted."""
    return sorted({primitive for counter in counters for primitive in primitives_of(counter)})


def counter_values(counter: CounterSpec, read: Read, time_N: np.ndarray) -> np.ndarray:
    """Computes a counter from its primitives.

    Args:
        counter: The counter.
        read: Reads a primitive at every row.
        time_N: Request time of every row, int64 ms.

    Returns:
        float32 [N], NaN where the row lacks the entity's key, or nothing is known (recency; a rate without prior or data).
    """
    first = primitives_of(counter)[0]
    value_N, has_key_N = read(first)
    match counter.kind:
        case "count" | "distinct":
            result_N = value_N.astype(np.float64)
        case "sum":
            result_N = value_N / FIXED
        case "recency":
            result_N = np.where(value_N == NEVER, np.nan, (time_N - np.where(value_N == NEVER, 0, value_N)) / HOUR_MS)
        case _:
            result_N = _smoothed(counter, read, len(time_N))
    return np.where(has_key_N, result_N, np.nan).astype(np.float32)


def _smoothed(counter: CounterSpec, read: Read, rows: int) -> np.ndarray:
    """Rate or mean: ``(sum + prior * parent) / (known + prior)``, level by level from everything down to the entity.

    Everything itself starts from one pseudo-observation: 0.5 for a rate, 0 for a mean.
    """
    estimate_N = np.zeros(rows)
    for level in reversed(_levels(counter)):
        sum_N, has_key_N = read(Primitive(level, counter.window_ms, "sum", counter.action or ""))
        known_N, _ = read(Primitive(level, counter.window_ms, "known", counter.action or ""))
        if level == ():
            cold = 0.5 if counter.kind == "rate" else 0.0
            estimate_N = (sum_N / FIXED + cold) / (known_N + 1.0)
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            level_N = (sum_N / FIXED + counter.prior * estimate_N) / (known_N + counter.prior)
        estimate_N = np.where(has_key_N, level_N, estimate_N)
    return estimate_N
