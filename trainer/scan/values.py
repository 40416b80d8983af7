"""Detectors of columns that decode and lie, one column at a time: against the same column on healthy days.

Each returns at most one suspicion a column; the first in the order of `examine` wins, because one mishap shows in many ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from trainer.logs.conform import INTEGER, REAL
from trainer.logs.roles import KEY, LABEL
from trainer.scan.history import History, share_noise, share_scale
from trainer.scan.states import ColumnState
from trainer.scan.suspicion import Suspicion

_NEW_SHARE = 0.05  # of cells: less is not worth a mask
_ZERO_JUMP = 0.2
_RARE = 0.01  # a value that no healthy day had in more cells is new
_WHOLE = 0.999
_COLLAPSED = 0.5
_EXPECTED = 30  # values other than zero that must be missing before their absence means something
_UNIT = 1.5  # octaves: a factor of about three
_SPREAD = 0.6  # octaves by which the spread of a column in another unit may differ
_FAR_ID = 3  # octaves above the largest id seen
_SWAP_FAR, _SWAP_NEAR = 0.5, 0.25  # total variation between distributions
_OWNED = 0.9  # of a value's rows, and of the item's: then the value is the item's
_SENTINELS = (
    "-1",
    "-99",
    "-999",
    "-9999",
    "99",
    "999",
    "9999",
    "99999",
    "1970",
    "",
    "NULL",
    "null",
    "None",
    "nan",
    "NaN",
    "N/A",
    "unknown",
    "\\N",
)
_PRIOR_SHARE, _PRIOR_OCTAVE = 0.04, 0.15


@dataclass(frozen=True)
class Watch:
    """What detectors of single columns go by.

    Attributes:
        history: Healthy days.
        day: Day that is judged.
        roles: Monitored source column -> role.
        types: Source column -> logical type.
        ids: Columns that hold ids or categories.
        user: Column of the user.
        item: Column of the item.
        tests: Tests that share the day's budget of false alarms.
        bot_share: Share of the rows above which one user is a bot.
    """

    history: History
    day: str
    roles: Mapping[str, str]
    types: Mapping[str, str]
    ids: set[str]
    user: str
    item: str
    tests: int
    bot_share: float

    def number(self, name: str) -> bool:
        return self.types.get(name) in (INTEGER, REAL) and name not in self.ids


def examine(watch: Watch, columns: Mapping[str, ColumnState]) -> list[Suspicion]:
    """Examines every monitored column of a day (or file)."""
    found = {suspicion.feature: suspicion for suspicion in swapped(watch, columns)}
    for name, state in columns.items():
        if name in found or not state.rows or len(watch.history.of_column(name)) == 0:
            continue
        sentinel = partial(new_value, items=columns.get(watch.item))
        detectors = (collapsed, foreign_ids) if watch.roles[name] == KEY else (nulls, frozen, other_unit, sentinel)
        suspicion = next((one for detector in detectors if (one := detector(watch, name, state)) is not None), None)
        if suspicion is not None:
            found[name] = suspicion
    return list(found.values())


def nulls(watch: Watch, name: str, state: ColumnState) -> Suspicion | None:
    """More nulls than usual: they are masked as they are, but somebody should know."""
    past = [(day, share_scale(one.nulls / one.rows)) for day, one in watch.history.of_column(name)]
    share, usual = state.nulls / state.rows, watch.history.usual(past)
    if usual is None or share < np.sin(usual) ** 2 + _NEW_SHARE or not _strange_share(watch, share, past, state.rows):
        return None
    return Suspicion("null_spike", f"{share:.1%} of cells are null, usual {np.sin(usual) ** 2:.1%}", state.nulls, name)


def frozen(watch: Watch, name: str, state: ColumnState) -> Suspicion | None:
    """Zero (or the empty text) where there used to be values; or one value in the whole column."""
    if not state.valid or not state.top:
        return None
    value, count = max(state.top.items(), key=lambda entry: entry[1])
    share, past = count / state.valid, [(day, one.share_of(value)) for day, one in watch.history.of_column(name)]
    usual = watch.history.usual(past)
    missing = min((1 - before) * state.valid for _, before in past)
    if usual is None or missing < _EXPECTED:
        return None  # it was (nearly) constant before
    scaled = [(day, share_scale(before)) for day, before in past]
    whole = share >= _WHOLE
    if (
        value in ("0", "", "-0")
        and share > usual + (0 if whole else _ZERO_JUMP)
        and (whole or _strange_share(watch, share, scaled, state.valid))
    ):
        kind = "labels_all_zero" if watch.roles[name] == LABEL and whole else "zero_filled"
        return Suspicion(kind, f"{share:.1%} of cells are zero, usual {usual:.1%}", count, name)
    if whole and max(before for _, before in past) < _WHOLE:
        return Suspicion("constant", f"{share:.1%} of cells are {value}, usual {usual:.1%}", count, name)
    return None


def new_value(watch: Watch, name: str, state: ColumnState, items: ColumnState | None) -> Suspicion | None:
    """A frequent value that no healthy day had: a sentinel. (In another unit every value is new, so that is asked first.)

    A sentinel is found with many items. A value that is found with one, which is as new as the value and always has it, belongs to that
    item: a hit of the day. Where such a value is called like a sentinel, the hit's features were not there yet.
    """
    for value, count in state.top.items():
        share, past = count / max(state.valid, 1), [(day, one.share_of(value)) for day, one in watch.history.of_column(name)]
        if share < _NEW_SHARE or max(before for _, before in past) > _RARE or (name in watch.ids and value not in _SENTINELS):
            continue
        if items is not None and value not in _SENTINELS and _of_a_new_item(watch, state, value, items):
            continue
        if _strange_share(watch, share, [(day, share_scale(before)) for day, before in past], state.valid):
            return Suspicion("sentinel_spike", f"{share:.1%} of cells are {value}, which no healthy day has", count, name, values=[value])
    return None


def _of_a_new_item(watch: Watch, state: ColumnState, value: str, items: ColumnState) -> bool:
    """Tells whether nearly all rows of a value have one item, which nearly always has the value, and no healthy day knew that item well."""
    item, rows = state.owners.get(value, ("", 0))
    past = [one for _, one in watch.history.of_column(watch.item)]
    if not past or max(one.share_of(item) for one in past) > _RARE:
        return False
    return rows >= _OWNED * state.top[value] and rows >= _OWNED * items.top.get(item, state.rows)


def other_unit(watch: Watch, name: str, state: ColumnState) -> Suspicion | None:
    """The same distribution, multiplied."""
    if not watch.number(name):
        return None
    low, middle, high = state.log_quantiles((0.1, 0.5, 0.9))
    past = [(day, one.log_quantiles((0.1, 0.5, 0.9))) for day, one in watch.history.of_column(name)]
    middles = [(day, float(quantiles[1])) for day, quantiles in past if np.isfinite(quantiles[1])]
    usual = watch.history.usual(middles)
    if usual is None or not np.isfinite(middle) or abs(middle - usual) < _UNIT:
        return None
    spread = float(np.median([quantiles[2] - quantiles[0] for _, quantiles in past if np.isfinite(quantiles[1])]))
    if abs((high - low) - spread) > _SPREAD * max(1.0, spread / 4):
        return None
    noise = (spread / 2 + 0.1) / np.sqrt(max(state.valid / 8, 1))
    if not watch.history.strange(watch.day, float(middle), middles, prior=_PRIOR_OCTAVE, noise=float(noise), tests=watch.tests):
        return None
    return Suspicion("unit_change", f"the median is {2 ** (middle - usual):.4g} times the usual one", state.valid, name)


def collapsed(watch: Watch, name: str, state: ColumnState) -> Suspicion | None:
    """One id for half of the rows; or one user who does more than a person can. An item may do so: that is a hit."""
    if not state.valid or not state.top:
        return None
    value, count = max(state.top.items(), key=lambda entry: entry[1])
    share = count / state.valid
    usual = max((max(one.top.values(), default=0) / max(one.valid, 1) for _, one in watch.history.of_column(name)), default=0.0)
    if share >= _COLLAPSED and share > 2 * usual:
        who = [value] if name == watch.user else []  # rows of users can be told apart again, those of items cannot
        return Suspicion("id_collapse", f"{share:.1%} of rows have {name} {value}, usual at most {usual:.1%}", count, name, values=who)
    if name == watch.user and share >= watch.bot_share and share > 5 * usual:
        return Suspicion("bot_user", f"{share:.1%} of rows have {name} {value}, usual at most {usual:.1%}", count, name, values=[value])
    return None


def foreign_ids(watch: Watch, name: str, state: ColumnState) -> Suspicion | None:
    """Ids far above all that were seen, or negative ones where there were none."""
    past = [one for _, one in watch.history.of_column(name) if one.valid]
    if watch.types.get(name) != INTEGER or not past or watch.history.usual([("", 0.0)] * len(past)) is None:
        return None
    largest, smallest = max(one.maximum for one in past), min(one.minimum for one in past)
    high = float(2.0 ** (np.ceil(np.log2(max(largest, 2))) + _FAR_ID))
    low = 0.0 if smallest >= 0 else -float(2.0 ** (np.ceil(np.log2(-smallest + 1)) + _FAR_ID))
    if low <= state.minimum and state.maximum <= high:
        return None
    evidence = f"ids from {state.minimum:.0f} to {state.maximum:.0f}, believable {low:.0f} to {high:.0f}"
    return Suspicion("out_of_range_id", evidence, 0, name, bounds=(low, high))


def swapped(watch: Watch, columns: Mapping[str, ColumnState]) -> Iterator[Suspicion]:
    """Two columns that each look like the other did."""
    names = [name for name in columns if watch.number(name) and columns[name].valid and watch.roles[name] != KEY]
    usual = {name: shares for name in names if (shares := _usual_shares(watch.history.of_column(name))) is not None}
    today = {name: columns[name].shares() for name in usual}
    moved = [name for name in usual if _apart(today[name], usual[name]) > _SWAP_FAR]
    for one in moved:
        for other in moved:
            if one < other and _apart(today[one], usual[other]) < _SWAP_NEAR and _apart(today[other], usual[one]) < _SWAP_NEAR:
                for name, like in ((one, other), (other, one)):
                    yield Suspicion("swapped_columns", f"has the usual distribution of {like}", columns[name].rows, name)


def _usual_shares(past: Sequence[tuple[str, ColumnState]]) -> np.ndarray | None:
    shares = [state.shares() for _, state in past if state.valid]
    return np.mean(shares, axis=0) if shares else None


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation between two distributions, in half octaves: finer cells would only add noise."""
    return 0.5 * float(np.abs(np.add.reduceat(one - other, np.arange(0, len(one), 4))).sum())


def _strange_share(watch: Watch, share: float, past: Sequence[tuple[str, float]], rows: int) -> bool:
    return watch.history.strange(watch.day, share_scale(share), past, prior=_PRIOR_SHARE, noise=share_noise(rows), tests=watch.tests)
