"""Score compatibility: would the rules that were tuned on production's scores notice?

A score multiplied by 1.3 passes every drift alarm and every rank metric, and sends 2.6 times the traffic over a top-1 % threshold. So what
is compared is the traffic over the live thresholds, on the same rows. Where the rules declare none, production's own quantiles stand in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import ConfigError, nearest
from trainer.gate.decide import Measured, Question, measure
from trainer.gate.scope import Scope
from trainer.gate.table import Predictions, not_applicable
from trainer.metrics import mean, quotient
from trainer.schema import predictions as names
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.verdict import ALL, Check

PAIR = (names.PRODUCTION, names.CHALLENGER)


@dataclass(frozen=True)
class Threshold:
    """A live threshold, or a quantile of production that stands in for one.

    Attributes:
        name: Name of the check, say ``share_push`` or ``share_top_1%``.
        score: Action, blend or ``value``.
        at_least: Rows at or above are counted.
        margin: Tolerated relative change of their share.
        scores: Production's and the challenger's scores of all rows.
    """

    name: str
    score: str
    at_least: float
    margin: float
    scores: tuple[np.ndarray, np.ndarray]


def rule_scores(predictions: Predictions, rules: RuleSet) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns production's and the challenger's scores by name: actions, ``value`` and blends; blends see capped scores.

    Raises:
        ConfigError: If a blend or rule refers to a score that does not exist.
    """
    found = {
        action.name: (action.scores[names.PRODUCTION], action.scores[names.CHALLENGER])
        for action in predictions.actions
        if set(PAIR) <= set(action.scores)
    }
    if predictions.value:
        found[VALUE] = (predictions.value[names.PRODUCTION], predictions.value[names.CHALLENGER])
    capped = dict(found)
    for cap in rules.caps.values():
        if cap.score in capped:
            production_N, challenger_N = (np.minimum(score_N, cap.at_most) for score_N in capped[cap.score])
            capped[cap.score] = (production_N, challenger_N)
    for blend, weights in rules.blends.items():
        if set(weights) <= set(capped):
            production_N, challenger_N = (
                np.sum([weight * capped[name][side] for name, weight in weights.items()], axis=0) for side in (0, 1)
            )
            found[blend] = (production_N, challenger_N)
    return found


def check_rules(rules: RuleSet, predictions: Predictions) -> list[Check]:
    """Finds rules whose score is not in the predictions.

    A name that nothing could ever provide is an error of the configuration; an action whose columns are absent here makes its rules
    not applicable.

    Raises:
        ConfigError: If a rule refers to a name that is no action of the table, no blend and not ``value``.
    """
    known = {action.name for action in predictions.actions} | {VALUE} | set(rules.blends)
    references = [
        *((f"rules.thresholds.{name}", name, rule.score) for name, rule in rules.thresholds.items()),
        *((f"rules.caps.{name}", name, rule.score) for name, rule in rules.caps.items()),
        *((f"rules.top_k.{name}", name, rule.score) for name, rule in rules.top_k.items()),
        *((f"rules.blends.{name}", name, score) for name, weights in rules.blends.items() for score in weights),
    ]
    available = rule_scores(predictions, rules)
    absent = []
    for where, name, score in references:
        if score not in known:
            raise ConfigError("a rule refers to an unknown score", where=where, got=score, remedy=nearest(score, known))
        if score not in available and not where.startswith("rules.blends"):
            absent.append(not_applicable(f"share_{name}", "scores", f"no pair of scores {score} to replay the rule on", action=score))
    return absent


def thresholds(predictions: Predictions, rules: RuleSet, policy: GatePolicy) -> tuple[list[Threshold], list[Check]]:
    """Returns the thresholds to be compared, and what stands in their way as checks."""
    scores = rule_scores(predictions, rules)
    if not rules.empty:
        declared = [(name, rule.score, rule.at_least) for name, rule in rules.thresholds.items()]
        declared += [(name, rule.score, rule.at_most) for name, rule in rules.caps.items()]
        live = [
            Threshold(f"share_{name}", score, at, policy.share_margin, scores[score]) for name, score, at in declared if score in scores
        ]
        return live, []
    found, skipped = [], []
    for name, pair in scores.items():
        for share in policy.quantiles:
            check = f"share_top_{share * 100:g}%"
            if predictions.rows < policy.rows_per_quantile / share:
                needed = math.ceil(policy.rows_per_quantile / share)
                why = f"production's top {share:.4g} of {predictions.rows:,} rows fixes no threshold; {needed:,} rows are needed"
                skipped.append(not_applicable(check, "scores", why, action=name))
                continue
            at = float(np.quantile(pair[0], 1 - share, method="inverted_cdf", weights=predictions.weight_N))
            actual = float(predictions.weight_N @ (pair[0] >= at)) / max(float(predictions.weight_N.sum()), 1e-300)
            if actual > 2 * share:
                why = f"production gives one score to {actual:.1%} of the traffic, so its top {share:.4g} is no threshold"
                skipped.append(not_applicable(check, "scores", why, action=name))
                continue
            found.append(Threshold(check, name, at, policy.quantile_share_margin, pair))
    return found, skipped


def traffic(threshold: Threshold, scope: Scope, policy: GatePolicy, severity: str) -> list[Question]:
    """Asks in every group whether the share of traffic over a threshold changed by more than the margin, up or down.

    The test is on ``challenger - (1 + margin) * production`` and its mirror image, which need no logarithm: a challenger that sends
    nothing over the threshold is tested like any other.
    """
    theirs_N, ours_N = ((score_N[scope.kept_N] >= threshold.at_least).astype(float) for score_N in threshold.scores)
    margin = threshold.margin * scope.factor
    rows = scope.rows
    ours_G, theirs_G = rows.sum_G(rows.weight_N * ours_N), rows.sum_G(rows.weight_N * theirs_N)
    counted_G = [rows.sum_G(x_N) for x_N in (ours_N, theirs_N)]
    change_G = measure(quotient(ours_N, theirs_N, rows), rows)
    up_G, down_G = (measure(mean(x_N, rows), rows) for x_N in (ours_N - (1 + margin) * theirs_N, theirs_N / (1 + margin) - ours_N))
    same_G = ~scope.differs(ours_N, theirs_N)
    questions = []
    for g in scope.present:
        seen = int(max(counted_G[0][g], counted_G[1][g]))
        few = f"{seen:,} rows above, {policy.min_positives:,} needed" if seen < policy.min_positives and not same_G[g] else None
        found = Measured(1.0, 0.0, math.inf) if same_G[g] else change_G[g]
        p = min(1.0, up_G[g].p_above(0.0) + down_G[g].p_above(0.0)) if not same_G[g] and _sure(up_G[g], down_G[g]) else 1.0
        shares = [float(x_G[g] / rows.total_G[g]) if rows.total_G[g] > 0 else math.nan for x_G in (theirs_G, ours_G)]
        questions.append(_share_question(threshold, scope, g, found, p, shares, few, margin, policy, severity))
    return questions


def _sure(*found: Measured) -> bool:
    return all(math.isfinite(one.se) for one in found)


def _share_question(
    threshold: Threshold, scope: Scope, group: int, change: Measured, p: float, shares: Sequence[float], few: str | None,
    margin: float, policy: GatePolicy, severity: str,
) -> Question:  # fmt: skip
    low, high = change.interval(policy.confidence)
    known = math.isfinite(change.value) and math.isfinite(change.se)
    if not known and few is None:
        few = "production sends nothing over it" if p > policy.alpha else None
    # Relative to production's share; a change down is bounded by the mirror image of the margin up, 1 / (1 + margin).
    bounds = change.upper(policy.confidence) - 1, _mirror(2 * change.value - change.upper(policy.confidence))
    estimate = change.value - 1 if known else None
    words = f"{shares[0]:.4%} -> {shares[1]:.4%} of the traffic"
    words += f" ({change.value:.2f} times [{max(low, 0):.2f}, {high:.2f}])" if known else ""
    check = Check(
        name=threshold.name, family="scores", action=threshold.score, slice=scope.slices[group], estimate=estimate,
        low=low - 1 if known else None, high=high - 1 if known else None, margin=margin, p=p, n=int(scope.rows.n_G[group]),
        outcome="pass", severity=severity,
        sentence=f"{threshold.score} >= {threshold.at_least:.5g} ({scope.slices[group]}): {words}, tolerated {margin:.0%}",
    )  # fmt: skip
    upper = max(bounds) if known else math.inf
    return Question(check=check, upper=upper, se=change.se, dof=change.dof, too_few=few)


def _mirror(low: float) -> float:
    """How many times more traffic production sends, less one, if the challenger sends `low` times production's."""
    return 1 / low - 1 if low > 0 else math.inf


def churn(threshold: Threshold, scope: Scope, policy: GatePolicy) -> list[Question]:
    """Asks how much of production's traffic over a threshold the challenger replaced: equal shares can be other rows."""
    if scope.slices != [ALL]:
        return []
    theirs_N, ours_N = ((score_N[scope.kept_N] >= threshold.at_least).astype(float) for score_N in threshold.scores)
    [lost] = measure(quotient(theirs_N * (1 - ours_N), theirs_N, scope.rows), scope.rows)
    if not math.isfinite(lost.value):
        return []
    low, high = lost.interval(policy.confidence)
    check = Check(
        name=threshold.name.replace("share_", "churn_", 1), family="scores", action=threshold.score, margin=policy.churn_budget,
        estimate=lost.value, low=low, high=high, p=lost.p_above(policy.churn_budget), n=int(scope.rows.n_G[0]), outcome="pass",
        severity="warn",
        sentence=f"{lost.value:.1%} of production's rows with {threshold.score} >= {threshold.at_least:.5g} are no longer there",
    )  # fmt: skip
    return [Question(check=check, upper=lost.upper(policy.confidence), se=lost.se, dof=lost.dof)]


def mean_scores(predictions: Predictions, scope: Scope, policy: GatePolicy) -> Iterator[Check]:
    """States how far the mean score moved, label-free; information, because a repair of production moves it too."""
    for action in predictions.actions:
        if not set(PAIR) <= set(action.scores):
            continue
        moved = quotient(action.scores[names.CHALLENGER][scope.kept_N], action.scores[names.PRODUCTION][scope.kept_N], scope.rows)
        [found] = measure(moved, scope.rows)
        if math.isfinite(found.value):
            low, high = found.interval(policy.confidence)
            yield Check(
                name="mean_score", family="scores", action=action.name, estimate=found.value - 1, low=low - 1, high=high - 1,
                n=int(scope.rows.n_G[0]), outcome="pass", severity="info",
                sentence=f"the mean score of {action.name} moved by {found.value - 1:+.2%}",
            )  # fmt: skip
