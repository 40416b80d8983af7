"""Score compatibility: would the rules that were tuned on production's scores notice?

A score multiplied by 1.3 passes every drift alarm and every rank metric, and sends 2.6 times the traffic over a top-1 % threshold. So what
is compared is the traffic over the live thresholds, on the same rows. Where the rules declare none, production's own quantiles stand in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from trainer.errors import ConfigError, nearest
from trainer.gate.decide import Measured, Question, either_side, measure
from trainer.gate.replay import Rule, batch, decide
from trainer.gate.scope import Scope
from trainer.gate.table import PAIR, Predictions, not_applicable
from trainer.metrics import Rows, mean, quotient
from trainer.schema import predictions as names
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.verdict import ALL, Check

SHOWN = "shown items only"


@dataclass(frozen=True)
class Threshold:
    """A live threshold, or a quantile of production that stands in for one.

    Attributes:
        name: Name of the check, say ``share_push`` or ``share_top_1%``.
        score: Action, blend or ``value``.
        at_least: Rows at or above are counted; null where `scores` are a rule's own decisions.
        margin: Tolerated relative change of their share.
        scores: Production's and the challenger's scores of all rows.
        declared: Whether a rule declares it; otherwise it stands in for rules nobody wrote down.
        outcome_N: What the score predicts, NaN where not ripe; null where that is not known.
        against: The model that is compared with.
        repeat_N: Scores of an A/A training, if there are: what a new seed alone changes.
    """

    name: str
    score: str
    at_least: float | None
    margin: float
    scores: tuple[np.ndarray, np.ndarray]
    declared: bool
    outcome_N: np.ndarray | None
    against: str = names.PRODUCTION
    repeat_N: np.ndarray | None = None

    @property
    def words(self) -> str:
        """The condition, as a sentence says it."""
        return f"rule {self.score}" if self.at_least is None else f"threshold {self.score} >= {self.at_least:.5g}"

    def decided(self, score_N: np.ndarray) -> np.ndarray:
        """Returns 1 for rows above, or what a rule decided."""
        return score_N if self.at_least is None else (score_N >= self.at_least).astype(float)

    def over(self, kept_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the decisions on the other model's and on the challenger's scores."""
        theirs_N, ours_N = (self.decided(score_N[kept_N]) for score_N in self.scores)
        return theirs_N, ours_N


def rule_scores(predictions: Predictions, rules: RuleSet, against: str = names.PRODUCTION) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the other model's and the challenger's scores by name: actions, ``value`` and blends; blends see capped scores.

    Args:
        predictions: The table.
        rules: Caps and blends.
        against: Prefix of the other model.
    """
    pair = (against, names.CHALLENGER)
    found = {
        action.name: (action.scores[against], action.scores[names.CHALLENGER])
        for action in predictions.actions
        if set(pair) <= set(action.scores)
    }
    if set(pair) <= set(predictions.value):
        found[VALUE] = (predictions.value[against], predictions.value[names.CHALLENGER])
    capped = dict(found)
    for cap in rules.caps.values():
        if cap.score in capped:
            theirs_N, ours_N = (np.minimum(score_N, cap.at_most) for score_N in capped[cap.score])
            capped[cap.score] = (theirs_N, ours_N)
    for blend, weights in rules.blends.items():
        if set(weights) <= set(capped):
            theirs_N, ours_N = (np.sum([weight * capped[name][side] for name, weight in weights.items()], axis=0) for side in (0, 1))
            found[blend] = capped[blend] = (theirs_N, ours_N)
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
    predictions: Predictions, rules: RuleSet, policy: GatePolicy, realised_N: np.ndarray | None, against: str = names.PRODUCTION
) -> tuple[list[Threshold], list[Check]]:
    """Returns the thresholds to be compared, and what stands in their way as checks.

    Args:
        predictions: The table.
        rules: Declared rules; production's quantiles stand in for an empty set.
        policy: Margins and quantiles.
        realised_N: Realised value of each row, if it is known.
        against: Prefix of the model that is compared with.
    """
    scores = rule_scores(predictions, rules, against)
    if not rules.empty:
        declared = [(name, rule.score, rule.at_least) for name, rule in rules.thresholds.items()]
        declared += [(name, rule.score, rule.at_most) for name, rule in rules.caps.items()]
        live = [
            Threshold(f"share_{name}", score, at, policy.share_margin, scores[score], True, None, against)
            for name, score, at in declared
            if score in scores
        ]
    else:
        outcomes: dict[str, np.ndarray | None] = {
            action.name: action.label_N for action in predictions.actions if action.means is action.scores
        }
        outcomes[VALUE] = realised_N
        live, skipped = _stand_ins(predictions, scores, outcomes, policy, against)
    if against == names.PRODUCTION:
        repeats = {action.name: action.scores.get(names.REPEAT) for action in predictions.actions}
        return [replace(one, repeat_N=repeats.get(one.score)) for one in live], [] if not rules.empty else skipped
    factor, suffix = policy.reference_factor, f"_vs_{against.rstrip('_')}"
    return [replace(one, name=one.name + suffix, margin=one.margin * factor) for one in live], []


def _supported(policy: GatePolicy, rows: int) -> tuple[list[float], list[float]]:
    """Quantiles that the rows carry, and those they do not; the smallest that they carry stands in for the smaller ones."""
    carried = [share for share in policy.quantiles if rows >= policy.rows_per_quantile / share]
    beyond = [share for share in policy.quantiles if share not in carried]
    if beyond and rows:
        exact = policy.rows_per_quantile / rows
        smallest = math.ceil(exact * 1e3) / 1e3 if exact >= 0.01 else math.ceil(exact * 1e5) / 1e5
        if smallest <= _LARGEST_STAND_IN and smallest < _NEW_STAND_IN * min(carried, default=1.0):
            carried.append(smallest)
    return carried, beyond


_NEW_STAND_IN = 0.7  # a quantile nearer than that to the next one says nothing new
_LARGEST_STAND_IN = 0.25  # beyond, a threshold is no longer about the top of the scores


def _stand_ins(
    predictions: Predictions, scores: dict[str, tuple[np.ndarray, np.ndarray]], outcomes: dict[str, np.ndarray | None], policy: GatePolicy,
    against: str,
) -> tuple[list[Threshold], list[Check]]:  # fmt: skip
    """Production's quantiles as thresholds, as far as the rows fix them."""
    found, skipped = [], []
    carried, beyond = _supported(policy, predictions.rows)
    for name, pair in scores.items():
        for share in beyond:
            needed = math.ceil(policy.rows_per_quantile / share)
            why = f"production's top {share:.4g} of {predictions.rows:,} rows fixes no threshold; {needed:,} rows are needed"
            skipped.append(not_applicable(f"share_top_{share * 100:g}%", "scores", why, action=name))
        for share in carried:
            check = f"share_top_{share * 100:g}%"
            at = float(np.quantile(pair[0], 1 - share, method="inverted_cdf", weights=predictions.weight_N))
            actual = float(predictions.weight_N @ (pair[0] >= at)) / max(float(predictions.weight_N.sum()), 1e-300)
            if actual > 2 * share:
                why = f"production gives one score to {actual:.1%} of the traffic, so its top {share:.4g} is no threshold"
                skipped.append(not_applicable(check, "scores", why, action=name))
                continue
            found.append(Threshold(check, name, at, policy.quantile_share_margin, pair, False, outcomes.get(name), against))
    return found, skipped


def traffic(threshold: Threshold, where: Sequence[Scope], policy: GatePolicy, severity: str) -> list[Question]:
    """Asks in every scope whether the share of traffic over a threshold changed by more than the margin, up or down.

    At a stand-in threshold the change is excused where labels back it. A slice fails only if it is beyond the margin both against
    no change and against the change on all rows: one that moved as everything did is told by the question on all rows, and one that
    stayed where it was has not moved.
    """
    questions: list[Question] = []
    usual = 1.0
    for scope in where:
        shift = _shift(threshold, scope, usual, policy)
        questions += [_share_question(threshold, scope, g, shift, policy, severity) for g in scope.present]
        if scope.slices == [ALL] and math.isfinite(shift.change_G[0].value) and shift.change_G[0].value > 0:
            usual = shift.change_G[0].value
    return questions


def replayed(
    name: str, function: Rule, source: pa.Table, scores: dict[str, tuple[np.ndarray, np.ndarray]], where: Sequence[Scope],
    policy: GatePolicy, severity: str,
) -> list[Question]:  # fmt: skip
    """Asks what `traffic` and `churn` ask of a rule that is code.

    Args:
        name: Name of the rule.
        function: The user's function.
        source: The predictions.
        scores: Production's and the challenger's scores by name.
        where: Scopes of all rows.
        policy: Margins.
        severity: Severity of the checks.

    Raises:
        Exception: Whatever the rule raises; the caller fails the check.
    """
    sides = [{(f"score_{score}" if score != VALUE else VALUE): pair[side] for score, pair in scores.items()} for side in (0, 1)]
    theirs_N, ours_N = (decide(function, batch(source, side), len(source)) for side in sides)
    threshold = Threshold(f"share_{name}", name, None, policy.share_margin, (theirs_N, ours_N), True, None)
    return [*traffic(threshold, where, policy, severity), *churn(threshold, where[0], policy)]


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
        usual: Change on all rows; 1 where these are all rows.
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
    theirs_N, ours_N = threshold.over(scope.kept_N)
    rows, margin = scope.rows, threshold.margin * scope.factor

    def beyond(expected: float) -> list[float]:
        high, low = expected * (1 + margin), expected / (1 + margin)
        up_G, down_G = (
            _at_least_counting(measure(mean(x_N, rows), rows), theirs_N, edge, rows)
            for x_N, edge in ((ours_N - high * theirs_N, high), (low * theirs_N - ours_N, low))
        )
        return [either_side(up.p_above(0.0), down.p_above(0.0)) for up, down in zip(up_G, down_G, strict=True)]

    # Both must be shown (intersection-union): the larger p-value is that of "not beyond the margin against one of them".
    p_G = [max(pair) for pair in zip(*(beyond(expected) for expected in {1.0, usual}), strict=True)]
    same_G = ~scope.differs(ours_N, theirs_N)
    change_G = measure(quotient(ours_N, theirs_N, rows), rows)
    exact = Measured(1.0, 0.0, math.inf)
    return _Shift(
        shares_G=(mean(theirs_N, rows).value_G, mean(ours_N, rows).value_G),
        seen_G=np.maximum(rows.sum_G((ours_N > 0).astype(float)), rows.sum_G((theirs_N > 0).astype(float))),
        change_G=[exact if same else found for same, found in zip(same_G.tolist(), change_G, strict=True)],
        p_G=p_G,
        backed_G=_backed(threshold, scope, ours_N != theirs_N, policy), same_G=same_G, margin=margin, usual=usual,
    )  # fmt: skip


def _at_least_counting(found_G: Sequence[Measured], theirs_N: np.ndarray, edge: float, rows: Rows) -> list[Measured]:
    """Standard errors no smaller than counting noise at the edge of the margin.

    If production's rows stay (edge < 1) or multiply (edge > 1) by chance, their number alone varies by as much; few rows that all moved
    the same way show less than that, and would be certain of nothing much.
    """
    spread_G = np.sqrt(rows.sum_G(rows.weight_N**2 * theirs_N**2) * max(edge * (1 - edge), edge - 1)) / np.maximum(rows.total_G, 1e-300)
    return [replace(found, se=max(found.se, least)) for found, least in zip(found_G, spread_G.tolist(), strict=True)]


def _backed(threshold: Threshold, scope: Scope, moved_N: np.ndarray, policy: GatePolicy) -> list[bool]:
    """Whether labels say that the challenger is right about the rows that changed sides, by squared error.

    Either they show it on those rows alone; or they favour it there, and show it for certain on all rows of the group.
    """
    if threshold.declared or threshold.outcome_N is None or not policy.excuse_backed:
        return [False] * scope.rows.groups
    outcome_N = threshold.outcome_N[scope.kept_N]
    theirs_N, ours_N = ((score_N[scope.kept_N] - outcome_N) ** 2 for score_N in threshold.scores)
    gain_N = np.where(np.isfinite(outcome_N), theirs_N - ours_N, 0.0)
    there_G, all_G = (measure(mean(x_N, scope.rows), scope.rows) for x_N in (np.where(moved_N, gain_N, 0.0), gain_N))
    return [
        there.value > 0 and (_shown(there, 1 - policy.confidence) or _shown(everywhere, policy.alpha))
        for there, everywhere in zip(there_G, all_G, strict=True)
    ]


def _shown(gain: Measured, level: float) -> bool:
    return math.isfinite(gain.se) and gain.p_above(0.0) < level


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
    words = f"{shift.shares_G[0][group]:.4%} -> {shift.shares_G[1][group]:.4%} of the traffic ({SHOWN})"
    words += f" ({change.value:.2f} times [{max(low, 0):.2f}, {high:.2f}])" if known else ""
    words += f" where all rows together changed {shift.usual:.2f} times" if abs(shift.usual - 1) >= 0.005 else ""
    words += ", backed by labels on the rows that changed sides" if backed else ""
    check = Check(
        name=threshold.name, family="scores", action=threshold.score, slice=scope.slices[group], margin=shift.margin, p=p,
        estimate=change.value - 1 if known else None, low=low - 1 if known else None, high=high - 1 if known else None,
        n=int(scope.rows.n_G[group]), outcome="pass", severity=severity,
        sentence=f"{threshold.words} ({scope.slices[group]}): {words}, tolerated {shift.margin:.0%}",
    )  # fmt: skip
    upper = -math.inf if backed else min(_farthest(change, expected, policy) for expected in (1.0, shift.usual))
    return Question(check=check, upper=upper, se=change.se, dof=change.dof, too_few=few, holds=few is None)


def _farthest(change: Measured, usual: float, policy: GatePolicy) -> float:
    """One-sided bound of how far the change may be from the usual one; down counts as its mirror image, 1 / change."""
    if not math.isfinite(change.value) or not math.isfinite(change.se):
        return math.inf
    high = change.upper(policy.confidence) / usual
    low = (2 * change.value - change.upper(policy.confidence)) / usual
    return max(high - 1, 1 / low - 1 if low > 0 else math.inf)


def churn(threshold: Threshold, scope: Scope, policy: GatePolicy) -> list[Question]:
    """Asks how much of production's traffic over a threshold the challenger replaced: equal shares can be other rows.

    With scores of an A/A training the tolerated churn follows what another seed alone replaces; otherwise it is a budget.
    """
    if scope.slices != [ALL]:
        return []
    theirs_N, ours_N = threshold.over(scope.kept_N)
    [lost] = measure(quotient(np.maximum(theirs_N - ours_N, 0.0), theirs_N, scope.rows), scope.rows)
    if not math.isfinite(lost.value):
        return []
    margin, floor = policy.churn_budget, "a budget"
    if threshold.repeat_N is not None:
        again_N = threshold.decided(threshold.repeat_N[scope.kept_N])
        [noise] = measure(quotient(np.maximum(theirs_N - again_N, 0.0), theirs_N, scope.rows), scope.rows)
        margin = max(policy.churn_floor_factor * noise.value, _SMALLEST_CHURN)
        floor = f"{policy.churn_floor_factor:g} times the {noise.value:.1%} of an A/A training"
    low, high = lost.interval(policy.confidence)
    check = Check(
        name=threshold.name.replace("share_", "churn_", 1), family="scores", action=threshold.score, margin=margin,
        estimate=lost.value, low=low, high=high, p=lost.p_above(margin), n=int(scope.rows.n_G[0]), outcome="pass", severity="warn",
        sentence=f"{lost.value:.1%} of production's rows over {threshold.words} are no longer there, tolerated {margin:.1%} ({floor})",
    )  # fmt: skip
    return [Question(check=check, upper=lost.upper(policy.confidence), se=lost.se, dof=lost.dof, holds=False)]


_SMALLEST_CHURN = 0.001  # an A/A training that replaced nothing leaves the challenger a thousandth


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
