"""Detectors of labels and of the day as a whole: hours, order, ripeness, and whether the labels are still ranked as they were.

A label flip at a base rate of one half moves no mean. It is seen by those who predicted the labels before they were written:
production's logged scores, and a model that only counts (users, items, contexts of earlier days).

Shape suffixes: H hours, E entities, N rows, K hashed ids.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator

import numpy as np

from trainer.scan.history import History
from trainer.scan.summary import FileState, Ranking, rank
from trainer.scan.suspicion import Suspicion
from trainer.scan.values import Watch
from trainer.schema.time import DAY_MS, HOUR_MS, SECOND_MS, day_end_ms, day_start_ms, parse_day, timezone

LOST_HOURS = "missing_hours"

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_BINS = 1 << 16
_PRIOR_COUNTS = (5.0, 20.0, 50.0)  # of users, items, contexts
_FORGET = 0.93  # of the counts are left after a day: half after ten
_MISSING, _MISSING_SHARE, _LEAST_EXPECTED = 0.05, 0.02, 20
_HOUR_DAYS = 2  # of history: from here on an hour that no day was without is missed if it is empty
_ORDERED, _DISORDERED = 0.02, 0.1
_UNRIPE, _EXPECTED_POSITIVES = 0.05, 30
_RANKS, _LEAST_DROP, _FLIPPED_ERRORS = 0.55, 0.01, 3.0
_PRIOR_AUC = 0.006


class Counts:
    """A model that counts: log-odds of smoothed rates by user, item and context, added; ids are hashed into 65,536 cells."""

    def __init__(self) -> None:
        self._shown: dict[str, np.ndarray] = {}
        self._positive: dict[str, np.ndarray] = {}

    def learn(self, state: FileState, skip: Collection[str]) -> None:
        """Counts a healthy day; earlier ones fade. Labels in `skip` are not believed."""
        for action, label_N in state.labels.items():
            if action in skip:
                continue
            shape = (len(state.entity_bins), _BINS)
            shown, positive = (kept.setdefault(action, np.zeros(shape)) for kept in (self._shown, self._positive))
            shown *= _FORGET
            positive *= _FORGET
            known_N = label_N >= 0
            for entity, bin_N in enumerate(state.entity_bins):
                shown[entity] += np.bincount(bin_N[known_N], minlength=_BINS)
                positive[entity] += np.bincount(bin_N[known_N], label_N[known_N], minlength=_BINS)

    def rankings(self, state: FileState) -> dict[str, Ranking]:
        """Returns binary action -> how the counts of earlier days rank the day's labels."""
        found = {
            action: rank(self._scores(action, state.entity_bins), state.labels[action]) for action in self._shown if action in state.labels
        }
        return {action: ranking for action, ranking in found.items() if ranking is not None}

    def _scores(self, action: str, bins_EN: np.ndarray) -> np.ndarray:
        shown, positive = self._shown[action], self._positive[action]
        total = shown[0].sum()
        base = (positive[0].sum() + 0.5) / (total + 1.0)
        score_N = np.zeros(bins_EN.shape[1])
        for entity, bin_N in enumerate(bins_EN):
            prior = _PRIOR_COUNTS[min(entity, 2)]
            rate_K = (positive[entity] + prior * base) / (shown[entity] + prior)
            score_N += (np.log(rate_K) - np.log1p(-rate_K))[bin_N]
        return score_N


def clock_hours(hour_H: np.ndarray, day: str, zone: str) -> np.ndarray:
    """Adds up the hours since midnight by the hour on the clock, [24].

    They differ on the two days a year on which daylight saving begins, so that no clock shows one of the hours, and ends.
    """
    start, end = day_start_ms(day, zone), day_end_ms(day, zone)
    if end - start == DAY_MS:
        return hour_H[:24]
    at = [dt.datetime.fromtimestamp(ms / SECOND_MS, timezone(zone)).hour for ms in range(start, end, HOUR_MS)]
    return np.bincount(at, weights=hour_H[: len(at)], minlength=24)


def lost_hours(history: History, state: FileState, day: str, zone: str) -> Iterator[Suspicion]:
    """Hours (on the clock) without rows in which there used to be some.

    Hours belong to weekdays: a service may sleep on Sunday mornings. So an hour is lost if the weekday had it before, and the other days
    too. Until the weekday has been seen once, an hour that is empty, and that no earlier day was without, is worth a notice and no more.
    """
    had = [(one.day, clock_hours(one.state.hour_H, one.day, zone)) for one in history.days]
    past = [(other, hour_H / hour_H.sum()) for other, hour_H in had if hour_H.sum()]
    if len(past) < _HOUR_DAYS:
        return
    every, same = [share_H for _, share_H in past], [share_H for other, share_H in past if _weekday(other) == _weekday(day)]
    settled = bool(same)
    usual_H = np.minimum(np.median(every, axis=0), np.median(same, axis=0)) if settled else np.min(every, axis=0)
    hour_H, exists_H = clock_hours(state.hour_H, day, zone), clock_hours(np.ones_like(state.hour_H), day, zone) > 0
    present = float(usual_H[hour_H > 0].sum())
    expected_H = usual_H * hour_H.sum() / max(present, 1e-9)
    lost_H = (hour_H <= _MISSING * expected_H * settled) & (expected_H > 0) & exists_H
    rows = float(expected_H[lost_H].sum())
    if usual_H[lost_H].sum() >= _MISSING_SHARE and rows >= _LEAST_EXPECTED:
        hours = ", ".join(map(str, np.flatnonzero(lost_H)))
        evidence = f"no rows in hours {hours}, usually {usual_H[lost_H].sum():.1%} of the day"
        unsure = None if settled else f"{len(past)} days of history, and none of them a {_weekday(day)}"
        yield Suspicion(LOST_HOURS, evidence, round(rows), unsure=unsure)


def _weekday(day: str) -> str:
    return _WEEKDAYS[parse_day(day).weekday()]


def disorder(history: History, state: FileState) -> Iterator[Suspicion]:
    """Rows out of order where files used to be sorted."""
    usual = history.usual(history.series(lambda day: day.state.inversions))
    if usual is not None and usual <= _ORDERED and state.inversions >= _DISORDERED:
        rows = round(state.inversions * state.rows)
        yield Suspicion("out_of_order", f"{state.inversions:.1%} of rows lie before their predecessor, usual {usual:.1%}; sorted", rows)


def unripe(history: History, state: FileState, columns: dict[str, str], day: str, zone: str) -> Iterator[Suspicion]:
    """Last hours of the day without a positive: the join ran before the labels had happened.

    Args:
        history: Healthy days.
        state: The day.
        columns: Binary action -> its source column.
        day: Business day.
        zone: Its timezone.
    """
    for action, column in columns.items():
        past = [one.state.label_hours[action].sum(axis=1) for one in history.days if action in one.state.label_hours]
        usual = history.usual([("", positives / known) for known, positives in past if known])
        known_H, positive_H = state.label_hours.get(action, np.zeros((2, 1), np.int64))
        if usual is None or not positive_H.any():
            continue
        after = int(np.flatnonzero(positive_H > _UNRIPE * known_H * usual).max(initial=-1)) + 1
        expected = float(known_H[after:].sum() * usual)
        if after > 0 and expected >= _EXPECTED_POSITIVES and positive_H[after:].sum() <= _UNRIPE * expected:
            evidence = f"{positive_H[after:].sum()} positives from hour {after} on, about {expected:.0f} expected: not ripe"
            rows = int(known_H[after:].sum() - positive_H[after:].sum())
            yield Suspicion("unripe_labels", evidence, rows, column, values=["0"], from_ms=day_start_ms(day, zone) + after * HOUR_MS)


def misranked(
    watch: Watch, state: FileState, counted: dict[str, Ranking], columns: dict[str, str], distrusted: Collection[str]
) -> Iterator[Suspicion]:
    """Labels that those who predicted them no longer rank as they did.

    Args:
        watch: What to go by.
        state: The day; holds how production's logged scores ranked it.
        counted: Binary action -> how the counting model ranked it.
        columns: Binary action -> its source column.
        distrusted: Actions whose logged scores are damaged themselves.
    """
    for action, column in columns.items():
        logged = None if action in distrusted else state.rankings.get(action)
        by_counts = counted.get(action)
        past_logged = watch.history.series(lambda day, name=action: found.auc if (found := day.rankings.get(name)) else None)  # type: ignore[misc]
        past_counts = watch.history.series(lambda day, name=action: found.auc if (found := day.counted.get(name)) else None)  # type: ignore[misc]
        who, ranking, past = ("production's scores", logged, past_logged) if logged else ("counting", by_counts, past_counts)
        usual = watch.history.usual(past)
        if ranking is None or usual is None or usual < _RANKS:
            continue
        rows = ranking.positives + ranking.negatives
        said = f"{who} rank {action} with AUC {ranking.auc:.3f}, usual {usual:.3f}"
        noise, dropped = 1.2 * ranking.error, ranking.auc < usual - _LEAST_DROP
        if ranking.auc + _FLIPPED_ERRORS * ranking.error < 0.5:
            yield Suspicion("label_flip", said, rows, column)
        elif dropped and watch.history.strange(
            watch.day, ranking.auc, past, prior=_PRIOR_AUC, noise=noise, tests=4 * len(columns), noise_known=True
        ):
            if logged and _counts_disagree(watch.history, ranking, usual, by_counts, past_counts):
                continue
            yield Suspicion("label_noise", said, rows, column)


def _counts_disagree(history: History, logged: Ranking, usual: float, counted: Ranking | None, past: list[tuple[str, float]]) -> bool:
    """Tells whether the counting model still ranks the labels: then it is the scores that changed."""
    before = history.usual(past)
    if counted is None or before is None or before < _RANKS:
        return False
    lost = 1 - (logged.auc - 0.5) / (usual - 0.5)
    also_lost = 1 - (counted.auc - 0.5) / (before - 0.5)
    sure = 2 * counted.error / (before - 0.5)
    return also_lost + sure < 0.5 * lost
