"""What is usual: states of earlier healthy days, and how far from them a day may lie before it is called strange.

A value is compared with those of the last days and, once three days of the same weekday are known, with those as well; it is strange
only if it is strange to both. The scale is that of all the days; they are few, so a prior stands in for those that are missing: Student's t
with the prior as pseudo-observations. How improbable a value must be follows from the false alarms that are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.scan.states import ColumnState
from trainer.scan.summary import FileState, Ranking
from trainer.schema.time import parse_day

_PRIOR_DAYS = 6  # how many days the prior scale counts for
_SAME_WEEKDAY = 3
_RUN_DAYS = 30  # the budget of false alarms is for a run that judges this many days
_CLUSTER = 4.0  # rows of one user are not independent: this many count as one


@dataclass(frozen=True)
class Remembered:
    """A healthy day.

    Attributes:
        day: ISO date.
        state: Its state, without what was masked.
        matches: Column -> share of values that the same user had the day before.
        overlaps: Id column -> share of rows whose id was known.
        rankings: Binary action -> how production's scores ranked it.
        counted: Binary action -> how the counting model ranked it.
    """

    day: str
    state: FileState
    matches: dict[str, float] = field(default_factory=dict)
    overlaps: dict[str, float] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    counted: dict[str, Ranking] = field(default_factory=dict)


class History:
    """Healthy days, oldest first, as far back as the policy looks.

    Args:
        most: Days kept.
        fewest: Days needed before anything is called strange.
        false_alarms: False alarms that are allowed in a run of 30 days.
    """

    def __init__(self, most: int, fewest: int, false_alarms: float) -> None:
        self.days: list[Remembered] = []
        self._most, self._fewest, self._allowed = most, fewest, false_alarms

    def add(self, day: Remembered) -> None:
        """Remembers a healthy day; the oldest is forgotten."""
        self.days = [*self.days, day][-self._most :]

    def of_column(self, name: str) -> list[tuple[str, ColumnState]]:
        """Returns (day, state) of the days that have a healthy column of this name."""
        return [(past.day, past.state.columns[name]) for past in self.days if name in past.state.columns and past.state.columns[name].rows]

    def series(self, value: Callable[[Remembered], float | None]) -> list[tuple[str, float]]:
        """Returns (day, value) of the days that have one."""
        found = [(past.day, value(past)) for past in self.days]
        return [(day, number) for day, number in found if number is not None and np.isfinite(number)]

    def usual(self, past: Sequence[tuple[str, float]]) -> float | None:
        """Returns the median of past values; None where they are too few to judge by."""
        return float(np.median([value for _, value in past])) if len(past) >= self._fewest else None

    def strange(
        self,
        day: str,
        value: float,
        past: Sequence[tuple[str, float]],
        *,
        prior: float,
        noise: float,
        tests: int,
        noise_known: bool = False,
    ) -> bool:
        """Tells whether a value is too far from the usual to be chance.

        Args:
            day: Day of the value.
            value: The value, on a scale on which differences mean the same everywhere.
            past: (day, value) of healthy days.
            prior: Day-to-day standard deviation that is believed without evidence.
            noise: Standard error of the value itself.
            tests: Tests made on a day: they share the budget of false alarms.
            noise_known: Whether `noise` is a standard error by the book, and no guess: then a short history leaves only the rest of the
                scale uncertain.
        """
        if len(past) < self._fewest:
            return False
        alpha = self._allowed / _RUN_DAYS / max(tests, 1)
        weekday = parse_day(day).weekday()
        every = [number for _, number in past]
        same = [number for other, number in past if parse_day(other).weekday() == weekday]
        groups = [every, *([same] if len(same) >= _SAME_WEEKDAY else [])]
        return all(_far(value, group, every, prior, noise, noise_known, alpha) for group in groups)


def share_scale(share: float) -> float:
    """Returns the arcsine of a share's root: its sampling error depends on the rows only, not on the share."""
    return float(np.arcsin(np.sqrt(min(max(share, 0.0), 1.0))))


def share_noise(rows: float) -> float:
    """Returns the standard error of `share_scale`, for rows that come in clusters."""
    return 0.5 / float(np.sqrt(max(rows / _CLUSTER, 1.0)))


def _far(value: float, group: Sequence[float], past: Sequence[float], prior: float, noise: float, noise_known: bool, alpha: float) -> bool:
    """Tells whether a value is far from a group's centre, on the scale of all past days: three Mondays know no scale of their own.

    Where part of the variance is known, the degrees of freedom are those of the other part (Satterthwaite, 1946).
    """
    from scipy.special import stdtrit  # half a second to import, and the readers, which are many, never need it

    usual, degrees = float(np.median(past)), float(_PRIOR_DAYS + len(past) - 1)
    # What varied in the past varied by chance too: sampling error is part of the scale, not added to it.
    variance = (_PRIOR_DAYS * max(prior, noise) ** 2 + sum((number - usual) ** 2 for number in past)) / degrees
    if noise_known:
        degrees *= max(variance / max(variance - noise**2, prior**2), 1.0) ** 2
    scale = max(np.sqrt(variance * (1 + 1 / len(group))), noise)
    return bool(abs(value - float(np.median(group))) > scale * -stdtrit(degrees, alpha / 2))
