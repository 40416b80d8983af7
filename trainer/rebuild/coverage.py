"""Coverage: how much of a window's log could be counted, and counters that saw too little of it.

A refused or absent day, rows set aside and masked cells make a counter count too little. Each window says which share of it
was countable, apart for counters that read maskable columns, and a counter whose share falls below a floor is masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.schema.expression import columns_of
from trainer.schema.features import CounterSpec
from trainer.schema.health import DayHealth
from trainer.schema.logs import LogSpec
from trainer.schema.time import DAY_MS, HOUR_MS, MINUTE_MS, day_end_ms, day_start_ms

USER = "user"  # as counters name it


@dataclass(frozen=True)
class DayShare:
    """How much of a scanned day can be counted.

    Attributes:
        day: Business day.
        rows: Share of its rows that are used; 0 for a refused day, repeated deliveries not counted. Rows that are missed, such as
            those of lost hours, belong to the day.
        cells: Feature of the log, or ``user`` -> share of its cells that are not masked, where that is not all. A masked user is a
            stranger: his rows count for everything but himself.
    """

    day: str
    rows: float
    cells: dict[str, float] = field(default_factory=dict)

    def of(self, columns: Iterable[str]) -> float:
        """Returns the share of the day that a counter of these features sees: damage in different rows, at worst."""
        return self.rows * max(0.0, 1.0 - sum(1.0 - self.cells.get(name, 1.0) for name in columns))


def day_share(spec: LogSpec, day: str, health: DayHealth) -> DayShare:
    """Returns what scan left of a day."""
    if health.status == "refused":
        return DayShare(day, 0.0)
    lost: dict[str | None, int] = {}  # without a feature: rows that should be there and are not
    for fault in health.faults:
        if fault.action == "mask":
            lost[fault.feature] = lost.get(fault.feature, 0) + fault.rows
    cells = {}
    for name, column in spec.features.items():
        sources = columns_of(column.expression or name)
        masked = health.used if sources & set(health.masked_columns) else min(health.used, sum(lost.get(source, 0) for source in sources))
        if masked:
            cells[name] = 1.0 - masked / health.used
    if strangers := min(health.used, lost.get(spec.user, 0)):
        cells[USER] = 1.0 - strangers / health.used
    return DayShare(day, health.used / max(health.used + health.dropped + lost.get(None, 0), 1), cells)


class Calendar:
    """The scanned days around some rows. Windows and columns with the same health are looked up once."""

    def __init__(self, shares: Sequence[DayShare], zone: str, time_N: np.ndarray) -> None:
        """Lays the days out in time.

        Args:
            shares: Scanned days in order, refused ones included.
            zone: Timezone of the business days.
            time_N: Request times, int64 ms.
        """
        self._shares, self._time_N = shares, time_N
        self._start_D = np.array([day_start_ms(share.day, zone) for share in shares], np.int64)
        self._end_D = np.array([day_end_ms(share.day, zone) for share in shares], np.int64)
        self._found: dict[tuple[int, bytes], np.ndarray] = {}

    def covered_ms(self, window_ms: int, columns: Iterable[str] = ()) -> np.ndarray:
        """Returns how much of the window [t - w, t) can be counted: float64 ms [N].

        Args:
            window_ms: Window.
            columns: Features of the log that the counter reads.
        """
        columns = list(columns)
        share_D = np.array([share.of(columns) for share in self._shares])
        key = (window_ms, share_D.tobytes())
        if key not in self._found:
            self._found[key] = self._before(self._time_N, share_D) - self._before(self._time_N - window_ms, share_D)
        return self._found[key]

    def thin(self, window_ms: int, columns: Sequence[str], floor: float) -> np.ndarray:
        """Marks rows whose window lost so much that the counter says little: bool [N].

        Time before the first scanned day is nobody's damage: there the log begins, and coverage alone tells it.
        """
        if self._undamaged(columns):
            return np.zeros(len(self._time_N), bool)
        reach_N = np.clip(self._time_N - self._start_D[0], 0, window_ms)
        return self.covered_ms(window_ms, columns) < floor * reach_N

    def _undamaged(self, columns: Sequence[str]) -> bool:
        """Tells whether all of the log can be counted, from its beginning to the last request."""
        gapless = np.array_equal(self._start_D[1:], self._end_D[:-1]) and bool((self._time_N <= self._end_D[-1]).all())
        return gapless and all(share.of(columns) == 1.0 for share in self._shares)

    def _before(self, instant_N: np.ndarray, share_D: np.ndarray) -> np.ndarray:
        """Returns how much can be counted before each instant: float64 ms [N]."""
        whole_D1 = np.r_[0.0, np.cumsum((self._end_D - self._start_D) * share_D)]
        last_N = np.searchsorted(self._start_D, instant_N, side="right") - 1
        day_N = np.maximum(last_N, 0)
        inside_N = (np.minimum(instant_N, self._end_D[day_N]) - self._start_D[day_N]) * share_D[day_N]
        return np.where(last_N >= 0, whole_D1[day_N] + inside_N, 0.0)


def maskable_columns(counter: CounterSpec, spec: LogSpec) -> tuple[str, ...]:
    """Returns the features of the log that a counter reads, and ``user``: their cells can be masked, those of items and labels cannot."""
    names = {*counter.entity, *(counter.parent or []), counter.of}
    return tuple(sorted(name for name in names if name in spec.features or name == USER))


def coverage_features(counters: Iterable[CounterSpec], spec: LogSpec) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Returns coverage feature -> window (ms) and the maskable columns it is about, shortest window first.

    Every window has one for the rows of the log (``coverage_7d``), and one for each set of features that a counter with this window
    reads (``coverage_7d_tab``). Strangers are in none: they are rare, and only the floor knows them.
    """
    groups = {(counter.window_ms, columns) for counter in counters for columns in ((), _features_read(counter, spec))}
    return {"_".join(["coverage", _duration_name(window), *columns]): (window, columns) for window, columns in sorted(groups)}


def _features_read(counter: CounterSpec, spec: LogSpec) -> tuple[str, ...]:
    return tuple(name for name in maskable_columns(counter, spec) if name in spec.features)


def floor_of(counter: CounterSpec, default: float) -> float:
    """Returns the share of its window below which a counter is masked."""
    return default if counter.coverage_floor is None else counter.coverage_floor


def thin_rows(calendar: Calendar, counters: Mapping[str, CounterSpec], spec: LogSpec, floor: float) -> dict[str, np.ndarray]:
    """Returns counter -> rows in which it is masked (bool [N]), for counters with such rows."""
    found: dict[tuple[int, tuple[str, ...], float], np.ndarray] = {}
    masks = {}
    for name, counter in counters.items():
        key = (counter.window_ms, maskable_columns(counter, spec), floor_of(counter, floor))
        if key not in found:
            found[key] = calendar.thin(*key)
        if found[key].any():
            masks[name] = found[key]
    return masks


def _duration_name(window_ms: int) -> str:
    for unit, size in (("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS)):
        if window_ms % size == 0:
            return f"{window_ms // size}{unit}"
    return f"{window_ms}ms"
