"""Business days of instants, vectorised; daylight saving is honoured."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from trainer.schema.time import SECOND_MS, add_days, day_start_ms, days_between, parse_day, timezone


@dataclass(frozen=True)
class BusinessDays:
    """Consecutive business days.

    Attributes:
        days: ISO dates.
        starts_D: First instant (ms) of each day, and of the day after the last: int64 [D + 1].
    """

    days: list[str]
    starts_D: np.ndarray

    @classmethod
    def between(cls, first: str, last: str, zone: str) -> BusinessDays:
        """Returns the days from `first` to `last`, both included."""
        days = days_between(first, last)
        return cls(days, np.array([day_start_ms(day, zone) for day in [*days, add_days(last, 1)]], np.int64))

    @classmethod
    def covering(cls, time_N: np.ndarray, zone: str) -> BusinessDays:
        """Returns the days that hold all of `time_N` (int64 ms)."""
        if not len(time_N):
            return cls.between("1970-01-01", "1970-01-01", zone)
        return cls.between(local_day(int(time_N.min()), zone), local_day(int(time_N.max()), zone), zone)

    @property
    def ordinal(self) -> int:
        """Number of the first day since 1970-01-01, so that every n-th day is the same whatever was loaded."""
        return (parse_day(self.days[0]) - dt.date(1970, 1, 1)).days

    def index(self, time_N: np.ndarray) -> np.ndarray:
        """Returns the position of each instant's day; -1 before the first day, D after the last."""
        return np.searchsorted(self.starts_D, time_N, side="right") - 1

    def weekday(self, time_N: np.ndarray) -> np.ndarray:
        """Returns the local day of the week, Monday 0."""
        return (parse_day(self.days[0]).weekday() + self.index(time_N)) % 7


def local_day(time_ms: int, zone: str) -> str:
    """Returns the business day (ISO) of an instant."""
    return dt.datetime.fromtimestamp(time_ms // SECOND_MS, timezone(zone)).date().isoformat()


def known_late(event_time_N: np.ndarray, known_at_N: np.ndarray, zone: str) -> np.ndarray:
    """Marks rows that became known only after the end of the business day of their event: bool [N]."""
    days = BusinessDays.covering(event_time_N, zone)
    return known_at_N > days.starts_D[days.index(event_time_N) + 1]
