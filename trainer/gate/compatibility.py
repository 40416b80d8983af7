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
from trainer.gate.decide import Measured, Question, either_side, measure
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
        declared: Whether a rule declares it; otherwise it stands in for rules nobody wrote down.
        outcome_N: What the score predicts, NaN where not ripe; null where that is not known.
    """

    name: str
    score: str
    at_least: float
    margin: float
    scores: tuple[np.ndarray, np.ndarray]
    declared: bool
    outcome_N: np.ndarray | None


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


def thresholds(
    predictions: Predictions, rules: RuleSet, policy: GatePolicy, realised_N: np.ndarray | None
) -> tuple[list[Threshold], list[Check]]:
    """Returns the thresholds to be compared, and what stands in their way as checks.

    Args:
        predictions: The table.
        rules: Declared rules; production's quantiles stand in for an empty set.
        policy: Margins and quantiles.
        realised_N: Realised value of each row, if it is known.
    """
    scores = rule_scores(predictions, rules)
    if not rules.empty:
        declared = [(name, rule.score, rule.at_least) for name, rule in rules.thresholds.items()]
        declared += [(name, rule.score, rule.at_most) for name, rule in rules.caps.items()]
        live = [
            Threshold(f"share_{name}", score, at, policy.share_margin, scores[score], True, None)
            for name, score, at in declared
            if score in scores
        ]
        return live, []
    outcomes: dict[str, np.ndarray | None] = {action.name: action.label_N for action in predictions.actions}
    outcomes[VALUE] = realised_N
    return _stand_ins(predictions, scores, outcomes, policy)


def _stand_ins(
    predictions: Predictions, scores: dict[str, tuple[np.ndarray, np.ndarray]], outcomes: dict[str, np.ndarray | None], policy: GatePolicy
) -> tuple[list[Threshold], list[Check]]:
    """Production's quantiles as thresholds, as far as the rows fix them."""
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
            found.append(Threshold(check, name, at, policy.quantile_share_margin, pair, False, outcomes.get(name)))
    return found, skipped


def traffic(threshold: Threshold, where: Sequence[Scope], policy: GatePolicy, severity: str) -> list[Question]:
    """Asks in every scope whether the share of traffic over a threshold changed by more than the margin, up or down.

    At a stand-in threshold the change is excused where labels back it. If they do so on all rows, a slice is compared with the
    change on all rows: a better model spreads its scores everywhere, and only a slice that moved differently is news.
    """
    questions: list[Question] = []
    usual = 1.0
    for scope in where:
        shift = _shift(threshold, scope, usual, policy)
        questions += [_share_question(threshold, scope, g, shift, policy, severity) for g in scope.present]
        if scope.slices == [ALL] and shift.backed_G[0] and math.isfinite(shift.change_G[0].value) and shift.change_G[0].value > 0:
            usual = shift.change_G[0].value
    return questions


@dataclass(frozen=True)
class _Shift:
    """Traffic over a threshold in every group.

    Attributes:
        shares_G: Production's and the challenger's share.
        seen_G: Rows above, of the model that has more.
        change_G: The challenger's share over production's.
        p_G: p-value of "the change is within the margin".
        backed_G: Whether labels back the change.
        same_G: Whether both models decide every row alike.
        margin: Tolerated relative change.
        usual: Change that is expected, 1 unless all rows changed with the labels' backing.
    """

    shares_G: tuple[np.ndarray, np.ndarray]
    seen_G: np.ndarray
    change_G: list[Measured]
    p_G: list[float]
    backed_G: list[bool]
    same_G: np.ndarray
    margin: float
    usual: float


def _shift(threshold: Threshold, scope: Scope, usual: float, policy: GatePolicy) -> _Shift:
    """Measures the traffic; the test is on ``challenger - (1 + margin) * production`` and its mirror image.

    These need no logarithm, so a challenger that sends nothing over the threshold is tested like any other.
    """
    theirs_N, ours_N = ((score_N[scope.kept_N] >= threshold.at_least).astype(float) for score_N in threshold.scores)
    rows, margin = scope.rows, threshold.margin * scope.factor
    high, low = usual * (1 + margin), usual / (1 + margin)
    up_G, down_G = (measure(mean(x_N, rows), rows) for x_N in (ours_N - high * theirs_N, low * theirs_N - ours_N))
    same_G = ~scope.differs(ours_N, theirs_N)
    change_G = measure(quotient(ours_N, theirs_N, rows), rows)
    exact = Measured(1.0, 0.0, math.inf)
    return _Shift(
        shares_G=(mean(theirs_N, rows).value_G, mean(ours_N, rows).value_G),
        seen_G=np.maximum(rows.sum_G(ours_N), rows.sum_G(theirs_N)),
        change_G=[exact if same else found for same, found in zip(same_G.tolist(), change_G, strict=True)],
        p_G=[either_side(up.p_above(0.0), down.p_above(0.0)) for up, down in zip(up_G, down_G, strict=True)],
        backed_G=_backed(threshold, scope, ours_N != theirs_N, policy), same_G=same_G, margin=margin, usual=usual,
    )  # fmt: skip


def _backed(threshold: Threshold, scope: Scope, moved_N: np.ndarray, policy: GatePolicy) -> list[bool]:
    """Whether the challenger's squared error on the rows that changed sides is shown to be smaller than production's."""
    if threshold.declared or threshold.outcome_N is None or not policy.excuse_backed:
        return [False] * scope.rows.groups
    outcome_N = threshold.outcome_N[scope.kept_N]
    theirs_N, ours_N = ((score_N[scope.kept_N] - outcome_N) ** 2 for score_N in threshold.scores)
    gain_N = np.where(moved_N & np.isfinite(outcome_N), theirs_N - ours_N, 0.0)
    return [
        math.isfinite(gain.se) and gain.value > 0 and gain.p_above(0.0) < policy.alpha
        for gain in measure(mean(gain_N, scope.rows), scope.rows)
    ]


def _share_question(threshold: Threshold, scope: Scope, group: int, shift: _Shift, policy: GatePolicy, severity: str) -> Question:
    change, same, seen = shift.change_G[group], bool(shift.same_G[group]), int(shift.seen_G[group])
    known = math.isfinite(change.value) and math.isfinite(change.se)
    backed = shift.backed_G[group] and not same
    p = 1.0 if same or backed or not math.isfinite(shift.p_G[group]) else shift.p_G[group]
    few = None
    if not same and seen < policy.min_positives:
        few = f"{seen:,} rows above, {policy.min_positives:,} needed"
    elif not known and p > policy.alpha:
        few = "production sends nothing over it"
    low, high = change.interval(policy.confidence)
    words = f"{shift.shares_G[0][group]:.4%} -> {shift.shares_G[1][group]:.4%} of the traffic"
    words += f" ({change.value:.2f} times [{max(low, 0):.2f}, {high:.2f}])" if known else ""
    words += f" where all rows together changed {shift.usual:.2f} times" if shift.usual != 1 else ""
    words += ", backed by labels on the rows that changed sides" if backed else ""
    check = Check(
        name=threshold.name, family="scores", action=threshold.score, slice=scope.slices[group], margin=shift.margin, p=p,
        estimate=change.value - 1 if known else None, low=low - 1 if known else None, high=high - 1 if known else None,
        n=int(scope.rows.n_G[group]), outcome="pass", severity=severity,
        sentence=f"{threshold.score} >= {threshold.at_least:.5g} ({scope.slices[group]}): {words}, tolerated {shift.margin:.0%}",
    )  # fmt: skip
    upper = -math.inf if backed else _farthest(change, shift.usual, policy)
    return Question(check=check, upper=upper, se=change.se, dof=change.dof, too_few=few)


def _farthest(change: Measured, usual: float, policy: GatePolicy) -> float:
    """One-sided bound of how far the change may be from the usual one; down counts as its mirror image, 1 / change."""
    if not math.isfinite(change.value) or not math.isfinite(change.se):
        return math.inf
    high = change.upper(policy.confidence) / usual
    low = (2 * change.value - change.upper(policy.confidence)) / usual
    return max(high - 1, 1 / low - 1 if low > 0 else math.inf)


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
