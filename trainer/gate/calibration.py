"""Calibration against labels: do the challenger's probabilities mean what they say, and at least as well as production's?

Labels are noisy, production is there: a challenger that moved by less than the slack cannot be farther off than production by more
than the slack, whatever the labels say. That settles most slices without any label. And one that moved by more than the margin for
certain, where labels are sharp enough to say that production was nearer, is caught long before labels alone would show it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from trainer.gate.decide import Measured, Question, measure
from trainer.gate.scope import Scope, too_few
from trainer.gate.table import BINARY, ActionColumns
from trainer.metrics import Estimate, ecce, quotient, ratio
from trainer.schema import predictions as names
from trainer.schema.policy import GatePolicy
from trainer.schema.verdict import ALL, Check


def calibration(action: ActionColumns, scope: Scope, policy: GatePolicy, severity: str) -> list[Question]:
    """Asks whether sum p / sum y is within the margin of 1, or at least no farther from it than production's.

    Args:
        action: The action; production's scores may be absent.
        scope: Ripe rows, grouped.
        policy: Margins.
        severity: Severity of the checks.
    """
    label_N, ours_N = action.label_N[scope.kept_N], action.scores[names.CHALLENGER][scope.kept_N]
    theirs_N = action.scores[names.PRODUCTION][scope.kept_N] if names.PRODUCTION in action.scores else None
    few_G = too_few(scope, label_N, action.kind == BINARY, policy)
    ours_G = measure(ratio(ours_N, label_N, scope.rows).log(scope.rows), scope.rows)
    nothing = [Measured(math.nan, math.nan, math.inf)] * scope.rows.groups
    theirs_G, moved_G, same_G = nothing, nothing, np.zeros(scope.rows.groups, bool)
    if theirs_N is not None:
        theirs_G = measure(ratio(theirs_N, label_N, scope.rows).log(scope.rows), scope.rows)
        moved_G = measure(_log_quotient(ours_N, theirs_N, scope), scope.rows)
        same_G = ~scope.differs(ours_N, theirs_N)
    exact = Measured(0.0, 0.0, math.inf)
    return [
        _question(action, scope, g, ours_G[g], theirs_G[g], exact if same_G[g] else moved_G[g], few_G[g], policy, severity)
        for g in scope.present
    ]


def _log_quotient(ours_N: np.ndarray, theirs_N: np.ndarray, scope: Scope) -> Estimate:
    return quotient(ours_N, theirs_N, scope.rows).log(scope.rows)


def _question(
    action: ActionColumns, scope: Scope, group: int, ours: Measured, theirs: Measured, moved: Measured, few: str | None,
    policy: GatePolicy, severity: str,
) -> Question:  # fmt: skip
    tolerated, slack = policy.calibration_margin * scope.factor, policy.calibration_slack * scope.factor
    check = Check(
        name="calibration", family="calibration", action=action.name, slice=scope.slices[group], margin=tolerated, severity=severity,
        n=int(scope.rows.n_G[group]), outcome="pass", sentence=f"calibration of {action.name} ({scope.slices[group]}): ",
    )  # fmt: skip
    if moved.upper_absolute(policy.confidence) <= math.log1p(slack):
        words = f"sum p moved by {math.expm1(moved.value):+.2%} against production, tolerated {slack:.0%}"
        check = replace(_filled(check, moved, policy), margin=slack, p=1.0, sentence=check.sentence + words)
        return Question(check=check, upper=math.expm1(moved.upper_absolute(policy.confidence)), se=moved.se, dof=moved.dof)
    return _against_labels(check, ours, theirs, moved, few, slack, policy)


_SHARP = 4.0  # standard errors of the labels that a move must span before their point estimate may speak against it


def _against_labels(
    check: Check, ours: Measured, theirs: Measured, moved: Measured, few: str | None, slack: float, policy: GatePolicy
) -> Question:
    margin = math.log1p(check.margin or 0.0)
    defined = math.isfinite(ours.value) and math.isfinite(ours.se)
    excused = abs(ours.value) - abs(theirs.value) <= math.log1p(slack)  # False where one is NaN
    words = "sum p / sum y is not defined"
    if defined:
        low, high = ours.interval(policy.confidence)
        words = f"sum p / sum y = {math.exp(ours.value):.3f} [{math.exp(low):.3f}, {math.exp(min(high, 700)):.3f}]"
    if math.isfinite(theirs.value):
        words += f", production {math.exp(theirs.value):.3f}" + (" (no farther from 1 than that)" if excused else "")
    p = None
    if excused or defined:
        p = 1.0 if excused else _either(ours, moved, margin)
    check = replace(_filled(check, ours, policy), p=p, sentence=f"{check.sentence}{words}, tolerated {check.margin:.0%}")
    bounds = [bound for bound in (ours.upper_absolute(policy.confidence), moved.upper_absolute(policy.confidence)) if math.isfinite(bound)]
    upper = math.expm1(min(bounds, default=math.inf)) if min(bounds, default=math.inf) < 700 else math.inf
    few = few if few or defined else "no positive label"
    return Question(check=check, upper=upper, se=ours.se, dof=ours.dof, too_few=few)


def _either(ours: Measured, moved: Measured, margin: float) -> float:
    """p-value of "neither off by more than the margin nor moved by more than it, against sharp labels" (Bonferroni over both)."""
    off = ours.p_outside(-margin, margin)
    sharp = math.isfinite(moved.se) and _SHARP * ours.se <= abs(moved.value)
    return min(1.0, 2 * min(off, moved.p_outside(-margin, margin))) if sharp else off


def _filled(check: Check, log_value: Measured, policy: GatePolicy) -> Check:
    """Adds an estimate and its interval, read as relative distances from 1."""
    low, high = log_value.interval(policy.confidence)
    return replace(check, estimate=_relative(log_value.value), low=_relative(low), high=_relative(high))


def _relative(log_value: float) -> float | None:
    return math.expm1(log_value) if math.isfinite(log_value) and log_value < 700 else None


def cumulative(action: ActionColumns, scope: Scope, policy: GatePolicy, severity: str, seed: int) -> list[Question]:
    """Asks whether the challenger is miscalibrated anywhere along its scores (ECCE), more than production by more than the margin.

    The ratio sees a scale; this sees a stretch that leaves the ratio at 1. Global only: its bootstrap is dear, and the ratio covers slices.
    """
    if scope.slices != [ALL]:
        return []
    label_N = action.label_N[scope.kept_N]
    ours_N, theirs_N = (action.scores[prefix][scope.kept_N] for prefix in (names.CHALLENGER, names.PRODUCTION))
    few = too_few(scope, label_N, action.kind == BINARY, policy)[0]
    ours, theirs = (ecce(score_N, label_N, scope.rows, seed=seed) for score_N in (ours_N, theirs_N))
    value, reference = float(ours.value_G[0]), float(theirs.value_G[0])
    harm = value - reference
    excused = not scope.differs(ours_N, theirs_N)[0] or harm <= policy.ecce_margin or value <= policy.ecce_margin
    words = f"{value:.2%} of the base rate, production {reference:.2%}, tolerated {policy.ecce_margin:.0%} more, p {float(ours.p_G[0]):.2g}"
    check = Check(
        name="ecce", family="calibration", action=action.name, margin=policy.ecce_margin, n=int(scope.rows.n_G[0]), outcome="pass",
        estimate=harm if math.isfinite(harm) else None, p=1.0 if excused else float(ours.p_G[0]), severity=severity,
        sentence=f"range of the cumulative calibration error of {action.name}: {words}",
    )  # fmt: skip
    return [Question(check=check, upper=0.0, too_few=None if excused else few)]
