"""Worst slices: searched on one half of the users, tested on the other. A slice that was searched for proves nothing where it was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import stdtr, stdtrit

from trainer.metrics import arrange, mean, row_loss, spread
from trainer.schema import predictions as names
from trainer.schema.ids import hash_ids

ALPHA = 0.05
_KEPT = 5
_VALUES = 30  # per column; rarer ones are too small to say anything
_PAIRED = 12  # of which pairs with other columns are formed
_BINS = 5
_LEAST = 100  # rows of a slice, in each half
_POSITIVES = 20  # rows with a positive label, in each half: without any, every rise of the score looks like certain harm


@dataclass(frozen=True)
class Worst:
    """A slice on which the challenger loses most against production.

    Attributes:
        slice: ``<column>=<value>``, or two joined by ``, ``.
        action: Action.
        n: Rows in the half that tested it.
        harm: Increase of the mean loss there, relative to production's on all rows of that half.
        low: Lower end of its one-sided interval, Holm's level.
        p: p-value of "no increase".
        confirmed: Whether Holm's procedure over the tested slices rejects that.
    """

    slice: str
    action: str
    n: int
    harm: float
    low: float
    p: float
    confirmed: bool


def worst_slices(predictions: pa.Table, kept: int = _KEPT) -> list[Worst]:
    """Searches single values and pairs of values of all slice columns.

    Args:
        predictions: Table with labels, production and challenger scores.
        kept: Slices that are tested.

    Returns:
        The tested slices, surest first; empty where nothing can be compared.
    """
    actions = [name.removeprefix(names.LABEL) for name in predictions.column_names if name.startswith(names.LABEL)]
    actions = [name for name in actions if {names.PRODUCTION + name, names.CHALLENGER + name} <= set(predictions.column_names)]
    if not actions or not predictions.num_rows:
        return []
    user_N = hash_ids(pc.fill_null(predictions["user"].cast(pa.string()), ""))
    search_N = (user_N >> np.uint64(33)).astype(np.int64) % 2 == 0
    found = []
    for action in actions:
        label_N, harm_N, base_N = _harm(predictions, action)
        known_N = np.isfinite(harm_N)
        halves = [known_N & side_N for side_N in (search_N, ~search_N)]
        for name, member_N in _slices(predictions):
            chosen_N, tested_N = (member_N & half_N for half_N in halves)
            if all(part_N.sum() >= _LEAST and (label_N[part_N] > 0).sum() >= _POSITIVES for part_N in (chosen_N, tested_N)):
                value, se, _ = _mean(harm_N[chosen_N], user_N[chosen_N])
                if value > 0 and se > 0:
                    found.append((value / se, name, action, tested_N, harm_N, base_N))
    found.sort(key=lambda entry: -entry[0])
    tested = [_test(name, action, member_N, harm_N, base_N, user_N) for _, name, action, member_N, harm_N, base_N in found[:kept]]
    return _holm(tested)


def _harm(predictions: pa.Table, action: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, increase of the loss and production's loss of each row; losses are NaN where a label is not ripe or a score no number."""
    label_N, theirs_N, ours_N = (
        np.asarray(pc.fill_null(predictions[prefix + action].cast(pa.float64()), np.nan))
        for prefix in (names.LABEL, names.PRODUCTION, names.CHALLENGER)
    )
    known_N = np.isfinite(label_N) & np.isfinite(theirs_N) & np.isfinite(ours_N)
    binary = bool(np.isin(label_N[known_N], (0.0, 1.0)).all() and (theirs_N[known_N] <= 1).all())
    losses = [np.where(known_N, row_loss("binary" if binary else "count", score_N, label_N), np.nan) for score_N in (theirs_N, ours_N)]
    return label_N, losses[1] - losses[0], losses[0]


def _slices(predictions: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Single values of the slice columns, then pairs across columns; the most frequent values of each."""
    own = (*names.KEYS, names.WEIGHT)
    prefixes = (names.LABEL, *names.SCORES, "value_")
    columns = [name for name in predictions.column_names if name not in own and not name.startswith(prefixes)]
    values = {name: _values(predictions[name], name) for name in columns}
    for slices in values.values():
        yield from slices
    for one, two in combinations(columns, 2):
        for left, left_N in values[one][:_PAIRED]:
            for right, right_N in values[two][:_PAIRED]:
                yield f"{left}, {right}", left_N & right_N


def _values(column: pa.ChunkedArray, name: str) -> list[tuple[str, np.ndarray]]:
    distinct = pc.count_distinct(column, mode="all").as_py()
    if distinct > _VALUES and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        x_N = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))
        edges = np.unique(np.nanquantile(x_N, np.linspace(0, 1, _BINS + 1)))
        bin_N = np.clip(np.searchsorted(edges, x_N, side="right") - 1, 0, len(edges) - 2)
        return [
            (f"{name}=[{low:.4g},{high:.4g})", np.isfinite(x_N) & (bin_N == place)) for place, (low, high) in enumerate(pairwise(edges))
        ]
    text = pc.fill_null(column.combine_chunks().cast(pa.string()), "null").dictionary_encode()
    code_N, words = np.asarray(text.indices), text.dictionary.to_pylist()
    order = np.argsort(-np.bincount(code_N, minlength=len(words)), kind="stable")[:_VALUES]
    return [(f"{name}={words[place]}", code_N == place) for place in order.tolist()]


def _mean(x_N: np.ndarray, user_N: np.ndarray) -> tuple[float, float, float]:
    """Mean with its user-clustered standard error and degrees of freedom."""
    rows = arrange(user_N)
    estimate = mean(x_N, rows)
    found = spread(estimate, rows)
    return float(estimate.value_G[0]), float(found.se_G[0]), float(found.dof_G[0])


def _test(
    name: str, action: str, member_N: np.ndarray, harm_N: np.ndarray, base_N: np.ndarray, user_N: np.ndarray
) -> tuple[Worst, float, float, float]:
    value, se, dof = _mean(harm_N[member_N], user_N[member_N])
    p = float(stdtr(dof, -value / se)) if se > 0 else float(value <= 0)
    base = float(np.nanmean(base_N))
    return Worst(name, action, int(member_N.sum()), value / base, value / base, p, False), value / base, se / base, dof


def _holm(tested: list[tuple[Worst, float, float, float]]) -> list[Worst]:
    """Confirms in order of p, each at alpha over what is left, until one is not confirmed."""
    settled, going = [], True
    for rank, (worst, value, se, dof) in enumerate(sorted(tested, key=lambda entry: entry[0].p)):
        level = ALPHA / (len(tested) - rank)
        going = going and worst.p <= level
        low = value - float(stdtrit(dof, 1 - level)) * se if se > 0 else value
        settled.append(Worst(worst.slice, worst.action, worst.n, worst.harm, low, worst.p, going))
    return settled
