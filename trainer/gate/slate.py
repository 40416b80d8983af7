"""Slate composition: what would stand on top if the challenger ranked? A gain bought with popular, long or few items shows here.

The log holds only what was shown, so both models re-rank the same shown rows: this sees a tilt within slates, not what the challenger
would have fetched from elsewhere.
"""

from __future__ import annotations

import math

import numpy as np

from trainer.gate.compatibility import PAIR, rule_scores
from trainer.gate.decide import Measured, Question, measure
from trainer.gate.scope import Scope
from trainer.gate.table import Predictions, not_applicable
from trainer.metrics import Estimate, mean, quotient
from trainer.metrics.rows import only_where
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.verdict import Check

SHOWN = "re-ranked among the shown items"


def top_of_slates(score_N: np.ndarray, slate_N: np.ndarray, top_k: int) -> np.ndarray:
    """Marks the rows that lead their slate: the best `top_k`, at most the better half of a slate; ties by row."""
    order_N = np.lexsort((np.arange(len(score_N)), -score_N, slate_N))
    size_S = np.bincount(slate_N)
    rank_N = np.empty(len(score_N), np.int64)
    rank_N[order_N] = np.arange(len(score_N)) - (np.cumsum(size_S) - size_S)[slate_N[order_N]]
    return rank_N < np.minimum(top_k, size_S // 2)[slate_N]


def composition(predictions: Predictions, scope: Scope, policy: GatePolicy, severity: str) -> list[Question | Check]:
    """Asks what the top of the slates is made of by value, challenger against production.

    Compared are every flag among the slice columns (share, say of new items), every number (mean, say duration), the popularity of
    the items (log of their rows in this table), and how much of the top the most shown hundredth of the items takes.

    Returns:
        Questions, or one check that says why there are none.
    """
    if not predictions.value:
        return [not_applicable("slate", "slate", "value_production or value_challenger is absent", action=VALUE)]
    theirs_N, ours_N = (top_of_slates(predictions.value[prefix], predictions.slate_N, policy.top_k).astype(float) for prefix in PAIR)
    if not theirs_N.any():
        return [not_applicable("slate", "slate", f"no slate ({predictions.slates}) has two rows", action=VALUE)]
    questions: list[Question | Check] = []
    for name, x_N in _contents(predictions).items():
        estimate, reference = _relative_change(x_N, theirs_N, ours_N, scope)
        [found] = measure(estimate, scope.rows)
        if math.isfinite(found.value):
            questions.append(_question(name, found, reference, scope, policy, severity))
    return questions


def _contents(predictions: Predictions) -> dict[str, np.ndarray]:
    """What is averaged over the top of the slates; NaN where a row has no value."""
    found = {f"slate_{name}": x_N for name, x_N in predictions.numbers.items()}
    if predictions.item_N is not None:
        shown_I = np.bincount(predictions.item_N)
        found["slate_popularity"] = np.log1p(shown_I)[predictions.item_N]
        head_I = np.zeros(len(shown_I))
        head_I[np.argsort(-shown_I, kind="stable")[: max(1, len(shown_I) // 100)]] = 1.0
        found["slate_head_items"] = head_I[predictions.item_N]
    return found


def _relative_change(x_N: np.ndarray, theirs_N: np.ndarray, ours_N: np.ndarray, scope: Scope) -> tuple[Estimate, float]:
    """Change of the mean of `x_N` over the top, relative to production's; for signed numbers relative to their spread."""
    known_N = np.isfinite(x_N)
    x_N = np.where(known_N, x_N, 0.0)
    ours = quotient(x_N * ours_N, known_N * ours_N, scope.rows)
    theirs = quotient(x_N * theirs_N, known_N * theirs_N, scope.rows)
    reference = float(theirs.value_G[0])
    if known_N.any() and x_N.min() < 0:
        [center] = mean(x_N, scope.rows).value_G
        scale = math.sqrt(float(mean((x_N - center) ** 2, scope.rows).value_G[0]))
        change = ours.minus(theirs)
        change = Estimate(change.value_G / scale, change.influence_N / scale) if scale > 0 else change
    else:
        change = ours.log(scope.rows).minus(theirs.log(scope.rows))
    return only_where(change, np.isfinite(change.value_G), scope.rows), reference


def _question(name: str, found: Measured, reference: float, scope: Scope, policy: GatePolicy, severity: str) -> Question:
    low, high = found.interval(policy.confidence)
    known = math.isfinite(found.se)
    margin = math.log1p(policy.composition_margin)
    check = Check(
        name=name, family="slate", action=VALUE, estimate=found.value, low=low if known else None, high=high if known else None,
        margin=policy.composition_margin, p=found.p_outside(-margin, margin) if known else None, n=int(scope.rows.n_G[0]),
        outcome="pass", severity=severity,
        sentence=f"{name.removeprefix('slate_')} on top of the slates ({SHOWN}) moved by {found.value:+.2%} from {reference:.4g}",
    )  # fmt: skip
    upper = found.upper_absolute(policy.confidence)
    return Question(check=check, upper=upper, se=found.se, dof=found.dof, too_few=None if known else "fewer than two users")


def overlap(predictions: Predictions, rules: RuleSet, scope: Scope, policy: GatePolicy) -> list[Question]:
    """Asks of every top-k rule how many of production's rows the challenger drops."""
    scores = rule_scores(predictions, rules)
    questions = []
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
        questions.append(Question(check=check, upper=lost.upper(policy.confidence), se=lost.se, dof=lost.dof))
    return questions
