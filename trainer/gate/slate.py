"""Slate composition: what would stand on top if the challenger ranked? A gain bought with popular, long or few items shows here.

The log holds only what was shown, so both models re-rank the same shown rows: this sees a tilt within slates, not what the challenger
would have fetched from elsewhere. Popular items may well deserve their place: the check does not say that the challenger is wrong, it
says that the product would look different, which somebody has to want.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from trainer.gate.compatibility import PAIR, rule_scores
from trainer.gate.contents import Content
from trainer.gate.decide import Measured, Question, either_side, measure
from trainer.gate.scope import Scope
from trainer.gate.table import Predictions, not_applicable
from trainer.metrics import Estimate, Rows, concentration, mean, quotient, rank_biased_overlap
from trainer.metrics.ranking import ranks
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.verdict import Check

SHOWN = "re-ranked among the shown items"


def top_of_slates(score_N: np.ndarray, slate_N: np.ndarray, top_k: int) -> np.ndarray:
    """Marks the rows that lead their slate: the best `top_k`, at most the better half of a slate; ties by row."""
    size_S = np.bincount(slate_N)
    return ranks(score_N, slate_N, len(size_S)) < np.minimum(top_k, size_S // 2)[slate_N]


@dataclass(frozen=True)
class _Moved:
    """How far one quantity moved on top of the slates.

    Attributes:
        before: Production's value.
        change: The challenger's, relative to production's (to the spread of the rows, for signed numbers).
        p: p-value of "the change is within the margin".
        few: Why it is not tested, or null.
    """

    before: float
    change: Measured
    p: float | None
    few: str | None


def composition(predictions: Predictions, scope: Scope, policy: GatePolicy, severity: str) -> list[Question | Check]:
    """Asks what the top of the slates is made of by value, challenger against production.

    Compared are the contents of `trainer.gate.contents`, the concentration on authors and topics, and how often a user meets the same
    item again.

    Returns:
        Questions, or one check that says why there are none.
    """
    if not predictions.value:
        return [not_applicable("slate", "slate", "value_production or value_challenger is absent", action=VALUE)]
    theirs_N, ours_N = (top_of_slates(predictions.value[prefix], predictions.slate_N, policy.top_k).astype(float) for prefix in PAIR)
    if not theirs_N.any():
        return [not_applicable("slate", "slate", f"no slate ({predictions.slates}) has two rows", action=VALUE)]
    before, after = _with_top(scope, theirs_N), _with_top(scope, ours_N)
    found: list[Question | Check] = []
    for content in predictions.contents:
        moved = _moved(_of_top(content, before), _of_top(content, after), content, scope, policy)
        found.append(_question(content.name, content.words, moved, scope, policy, severity))
    if predictions.item_N is not None:
        pair_N = _user_items(predictions.user_N, predictions.item_N)
        repeated = Content("slate_repeats", "share of rows that show a user the same item again", np.zeros(0))
        moved = _moved(_repeats(pair_N, before), _repeats(pair_N, after), repeated, scope, policy)
        found.append(_question(repeated.name, repeated.words, moved, scope, policy, severity))
    return found


def _with_top(scope: Scope, top_N: np.ndarray) -> Rows:
    return replace(scope.rows, weight_N=scope.rows.weight_N * top_N)


def _of_top(content: Content, top: Rows) -> tuple[Estimate, float]:
    """Mean or concentration of the top, and how many rows carry it."""
    if content.code_N is not None:
        return concentration(content.code_N, top), float((top.weight_N > 0).sum())
    x_N = content.x_N if content.x_N is not None else np.zeros(len(top.weight_N))
    known_N = np.isfinite(x_N)
    x_N = np.where(known_N, x_N, 0.0)
    return quotient(x_N, known_N.astype(float), top), float(((top.weight_N > 0) & (x_N != 0)).sum())


def _user_items(user_N: np.ndarray, item_N: np.ndarray) -> np.ndarray:
    return np.unique(user_N * (int(item_N.max(initial=0)) + 1) + item_N, return_inverse=True)[1]


def _repeats(pair_N: np.ndarray, top: Rows) -> tuple[Estimate, float]:
    """Share of the top that shows a user an item again: of k rows of one (user, item), k - 1 do."""
    counted_N = top.weight_N > 0
    times_P = np.bincount(pair_N, weights=counted_N)
    again_N = np.where(counted_N, 1 - 1 / np.maximum(times_P, 1)[pair_N], 0.0)
    return mean(again_N, top), float(again_N.sum())


def _moved(theirs: tuple[Estimate, float], ours: tuple[Estimate, float], content: Content, scope: Scope, policy: GatePolicy) -> _Moved:
    """Compares; the test is on ``challenger - (1 + margin) * production`` and its mirror image, which need no logarithm.

    A challenger that removes new items altogether is tested like any other.
    """
    (before, seen), (after, seen_after) = theirs, ours
    margin, rows = policy.composition_margin, scope.rows
    value, difference = float(before.value_G[0]), after.minus(before)
    if difference.value_G[0] == 0 and not difference.influence_N.any():
        return _Moved(value, Measured(0.0, 0.0, math.inf), 1.0, None)
    few = None
    if max(seen, seen_after) < policy.min_positives:
        few = f"{max(seen, seen_after):,.0f} rows on top have it, {policy.min_positives:,} needed"
    if content.x_N is not None and np.nanmin(content.x_N, initial=0.0) < 0:
        spread = float(np.nanstd(content.x_N))
        [change] = measure(difference.times(1 / spread if spread > 0 else 1.0), rows)
        return _Moved(value, change, change.p_outside(-margin, margin), few)
    [change] = measure(after.over(before, rows), rows)
    [up], [down] = (measure(x, rows) for x in (after.minus(before.times(1 + margin)), before.times(1 / (1 + margin)).minus(after)))
    p = either_side(up.p_above(0.0), down.p_above(0.0)) if math.isfinite(up.se) else None
    return _Moved(value, replace(change, value=change.value - 1), p, few)


def _question(name: str, words: str, moved: _Moved, scope: Scope, policy: GatePolicy, severity: str) -> Question:
    change, known = moved.change, math.isfinite(moved.change.value) and math.isfinite(moved.change.se)
    low, high = change.interval(policy.confidence)
    told = f"moved by {change.value:+.2%} [{low:+.2%}, {high:+.2%}]" if known else "appeared"
    check = Check(
        name=name, family="slate", action=VALUE, margin=policy.composition_margin, n=int(scope.rows.n_G[0]), outcome="pass",
        estimate=change.value if known else None, low=low if known else None, high=high if known else None,
        p=moved.p, severity=severity,
        sentence=f"{words} on top of the slates ({SHOWN}) {told} from {moved.before:.4g}, tolerated {policy.composition_margin:.0%}",
    )  # fmt: skip
    few = moved.few or (None if moved.p is not None else "fewer than two users, or nobody has it")
    upper = change.upper_absolute(policy.confidence) if known else math.inf
    return Question(check=check, upper=upper, se=change.se, dof=change.dof, too_few=few, holds=False)


def overlap(predictions: Predictions, rules: RuleSet, scope: Scope, policy: GatePolicy) -> Iterator[Question | Check]:
    """Asks of every top-k rule how many of production's rows the challenger drops, and states how alike both orders are."""
    scores = rule_scores(predictions, rules)
    for name, rule in rules.top_k.items():
        if rule.score not in scores:
            continue
        theirs_N, ours_N = (top_of_slates(score_N, predictions.slate_N, rule.k).astype(float) for score_N in scores[rule.score])
        [lost] = measure(quotient(theirs_N * (1 - ours_N), theirs_N, scope.rows), scope.rows)
        if not math.isfinite(lost.value):
            continue
        low, high = lost.interval(policy.confidence)
        check = Check(
            name=f"churn_{name}", family="scores", action=rule.score, estimate=lost.value, low=low, high=high, margin=policy.churn_budget,
            p=lost.p_above(policy.churn_budget), n=int(scope.rows.n_G[0]), outcome="pass", severity="warn",
            sentence=f"{lost.value:.1%} of production's top {rule.k} by {rule.score} are replaced ({SHOWN})",
        )  # fmt: skip
        yield Question(check=check, upper=lost.upper(policy.confidence), se=lost.se, dof=lost.dof, holds=False)
    if predictions.value:
        yield from _alike(predictions, scope, policy)


def _alike(predictions: Predictions, scope: Scope, policy: GatePolicy) -> Iterator[Check]:
    """Rank-biased overlap of the slates by value; information, because a better order is another order."""
    values = [predictions.value[prefix] for prefix in PAIR]
    [found] = measure(rank_biased_overlap(values[0], values[1], predictions.slate_N, scope.rows), scope.rows)
    if math.isfinite(found.value):
        found = Measured(1.0, 0.0, math.inf) if np.array_equal(values[0], values[1]) else found
        low, high = found.interval(policy.confidence)
        yield Check(
            name="overlap", family="scores", action=VALUE, estimate=1 - found.value, low=1 - high, high=1 - low, outcome="pass",
            n=int(scope.rows.n_G[0]), severity="info",
            sentence=f"rank-biased overlap of the slates by value is {found.value:.3f} ({SHOWN}; 1 is the same order)",
        )  # fmt: skip
