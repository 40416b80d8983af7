"""The brute-force oracle: recomputes features of one row from the events by the plain definition of `trainer.schema.features`.

It shares no code with the kernels, the entity pass, the coverage or the serving rule, and it is slow on purpose: for each counter it looks
at every event and asks whether it counts.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from trainer.rebuild.coverage import DayShare
from trainer.schema.features import CounterSpec
from trainer.schema.logs import LogSpec
from trainer.schema.time import DAY_MS, HOUR_MS, day_end_ms, day_start_ms, parse_duration

_NULL, _UNSEEN = -1, -2
_LARGEST = 2.0**31  # values of actions are cut here before they are summed


class Oracle:
    """Recomputes counters of rows from normalised events, each delivered once."""

    def __init__(
        self, events: pa.Table, spec: LogSpec, counters: Mapping[str, CounterSpec], scanned: Sequence[DayShare], floor: float
    ) -> None:
        """Takes the events.

        Args:
            events: Columns user, item, event_time, known_at, label_*, feature_* (as far as counters name them).
            spec: The log.
            counters: Feature name -> counter, all of them.
            scanned: What scan left of each day, refused days included.
            floor: Share of a window below which a counter is masked.
        """
        self._spec, self._counters, self._days, self._floor = spec, counters, list(scanned), floor
        names = [name for name in events.column_names if name == "user" or name == "item" or name.startswith("feature_")]
        self._codes = {name: _numbered(events[name].to_pylist()) for name in names}
        self._label = {name: np.array(events[name].to_pylist(), float) for name in events.column_names if name.startswith("label_")}
        self._event_time = events["event_time"].to_numpy()
        self._known_at = events["known_at"].to_numpy()

    def features(self, row: Mapping[str, Any]) -> dict[str, float | None]:
        """Returns every counter of a row; None where it is unknown.

        Args:
            row: Columns of the row, the request time among them.
        """
        return {name: self._value(counter, row) for name, counter in self._counters.items()}

    def coverage(self, time: int, window_ms: int, columns: Sequence[str] = ()) -> float:
        """Returns the share of ``[time - window, time)`` that was delivered and not masked in `columns`."""
        zone, covered = self._spec.timezone, 0.0
        for share in self._days:
            begin, end = max(day_start_ms(share.day, zone), time - window_ms), min(day_end_ms(share.day, zone), time)
            lost = sum(1 - share.cells[name] for name in columns if name in share.cells)
            covered += max(0, end - begin) * share.rows * (1 - min(1, lost))
        return covered / window_ms

    def _masked(self, counter: CounterSpec, time: int) -> bool:
        floor = self._floor if counter.coverage_floor is None else counter.coverage_floor
        read = {*counter.entity, *(counter.parent or []), counter.of or ""} & {*self._spec.features, "user"}
        begins = day_start_ms(self._days[0].day, self._spec.timezone)
        possible = min(counter.window_ms, max(0, time - begins)) / counter.window_ms
        return self.coverage(time, counter.window_ms, sorted(read)) < floor * possible

    def _value(self, counter: CounterSpec, row: Mapping[str, Any]) -> float | None:
        if self._masked(counter, row["request_time"]):
            return None
        if any(row[_source(name)] is None for name in counter.entity):
            return None
        if counter.kind in ("rate", "mean"):
            estimate = self._smoothed(counter, row, list(counter.entity))
            return None if math.isnan(estimate) else estimate
        chosen = self._members(counter.entity, counter.window_ms, counter.action, row)
        if counter.action and counter.kind in ("count", "recency"):
            chosen &= self._label[f"label_{counter.action}"] > 0
        match counter.kind:
            case "count":
                return float(chosen.sum())
            case "sum":
                values = self._label[f"label_{counter.action}"][chosen]
                return float(np.clip(values[~np.isnan(values)], -_LARGEST, _LARGEST).sum())
            case "recency":
                times = self._event_time[chosen]
                return float((row["request_time"] - times.max()) / HOUR_MS) if len(times) else None
        seen = set(self._codes[_source(counter.of or "")][1][chosen].tolist())
        return float(len(seen - {_NULL}))

    def _smoothed(self, counter: CounterSpec, row: Mapping[str, Any], entity: list[str]) -> float:
        values = self._label[f"label_{counter.action}"]
        chosen = self._members(entity, counter.window_ms, counter.action, row) & ~np.isnan(values)
        total = float(np.clip(values[chosen], -_LARGEST, _LARGEST).sum())
        number = int(chosen.sum())
        if not entity:
            return (total + (0.5 if counter.kind == "rate" else 0.0)) / (number + 1)
        parent = list(counter.parent or []) if entity == list(counter.entity) else []
        if any(row[_source(name)] is None for name in parent):
            parent = []
        prior = self._smoothed(counter, row, [] if parent == entity else parent)
        return (total + counter.prior * prior) / (number + counter.prior) if number + counter.prior else math.nan

    def _members(self, entity: Sequence[str], window_ms: int, action: str | None, row: Mapping[str, Any]) -> np.ndarray:
        """Marks the events that count: of this key, before the request, in the window, known, ripe and served."""
        time = row["request_time"]
        maturity = self._spec.actions[action].maturity_ms if action else 0
        chosen = (self._event_time < time) & (self._event_time >= time - window_ms)
        seen_until = self._seen_until(time)
        chosen &= (self._known_at <= seen_until) & (self._event_time + maturity <= seen_until) & (self._event_time < seen_until)
        for name in entity:
            numbers, code_N = self._codes[_source(name)]
            chosen &= code_N == numbers.get(row[_source(name)], _UNSEEN)
        return chosen

    def _seen_until(self, time: int) -> int:
        """Returns the last instant whose state serving shows at `time`."""
        serving = self._spec.serving
        until = time - parse_duration(serving.delay)
        if serving.mode == "realtime":
            return until
        period, zone = parse_duration(serving.period), ZoneInfo(self._spec.timezone)
        day = dt.datetime.fromtimestamp(until / 1000, zone).date()
        if period >= DAY_MS:
            while (day - dt.date(1970, 1, 1)).days % (period // DAY_MS):
                day -= dt.timedelta(days=1)
            return day_start_ms(day.isoformat(), self._spec.timezone)
        snapshot = day_start_ms(day.isoformat(), self._spec.timezone)
        while snapshot + period <= until:
            snapshot += period
        return snapshot


def _numbered(values: list[Any]) -> tuple[dict[Any, int], np.ndarray]:
    """Numbers the distinct values of a column; comparing numbers is faster than comparing objects."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values)) if value is not None}
    return numbers, np.array([_NULL if value is None else numbers[value] for value in values], np.int64)


def _source(name: str) -> str:
    return name if name in ("user", "item") else f"feature_{name}"
