"""Calibration against labels: do the challenger's probabilities mean what they say, and at least as well as production's?

Labels are noisy, production is there: a challenger that moved by less than the slack cannot be farther off than production by more
than the slack, whatever the labels say. That settles most slices without any label. And one that moved by more than the margin for
certain, where labels are sharp enough to say that production was nearer, is caught long before labels alone would show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from trainer.gate.decide import Measured, Question, measure
from trainer.gate.quality import Against
from trainer.gate.scope import Scope, planned, too_few
from trainer.gate.table import BINARY, PAIR, ActionColumns
from trainer.metrics import Estimate, ecce, quotient, ratio
from trainer.schema import predictions as names
from trainer.schema.policy import GatePolicy
from trainer.schema.verdict import ALL, Check


def calibration(
    action: ActionColumns, scope: Scope, policy: GatePolicy, severity: str, usual: float = 0.0, against: str = names.PRODUCTION
) -> list[Question]:
    """Asks whether sum p / sum y is within the margin of 1, or at least no farther from it than production's.

    Args:
        action: The action; production's scores may be absent.
        scope: Ripe rows, grouped.
        policy: Margins.
        severity: Severity of the checks.
        usual: How far the logarithm of sum p moved on all rows: a slice that moved with them is no news.
        against: Prefix of the model that is compared with; its scores may be absent.
    """
    if not action.means:
        return []
    label_N, ours_N = action.label_N[scope.kept_N], action.means[names.CHALLENGER][scope.kept_N]
    theirs_N = action.means[against][scope.kept_N] if against in action.means else None
    few_G = too_few(scope, label_N, action.kind == BINARY, policy)
    ours_G = measure(ratio(ours_N, label_N, scope.rows).log(scope.rows), scope.rows)
    nothing = [Measured(math.nan, math.nan, math.inf)] * scope.rows.groups
    theirs_G, moved_G, same_G = nothing, nothing, np.zeros(scope.rows.groups, bool)
    if theirs_N is not None:
        theirs_G = measure(ratio(theirs_N, label_N, scope.rows).log(scope.rows), scope.rows)
        moved_G = measure(_log_quotient(ours_N, theirs_N, scope), scope.rows)
        same_G = ~scope.differs(ours_N, theirs_N)
    exact, planned_G, how = Measured(0.0, 0.0, math.inf), planned(ours_G, scope), Against.of(against, policy)
    return [
        replace(
            _question(
                action, scope, g, _Seen(ours_G[g], theirs_G[g], exact if same_G[g] else moved_G[g], usual, how), few_G[g], policy, severity
            ),
            planned_se=planned_G[g],
        )
        for g in scope.present
    ]


def _log_quotient(ours_N: np.ndarray, theirs_N: np.ndarray, scope: Scope) -> Estimate:
    return quotient(ours_N, theirs_N, scope.rows).log(scope.rows)


def usual_move(action: ActionColumns, everything: Scope) -> float:
    """How far the logarithm of the challenger's sum p is from production's on all rows; 0 where that is not defined."""
    if not set(PAIR) <= set(action.means):
        return 0.0
    ours_N, theirs_N = (action.means[prefix][everything.kept_N] for prefix in (names.CHALLENGER, names.PRODUCTION))
    value = float(_log_quotient(ours_N, theirs_N, everything).value_G[0])
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class _Seen:
    """What is known of one group, as logarithms.

    Attributes:
        ours: Challenger's sum p / sum y.
        theirs: Production's.
        moved: Challenger's sum p over production's; paired, so it is sharp where labels are not.
        usual: The same on all rows.
        how: The model that is compared with.
    """

    ours: Measured
    theirs: Measured
    moved: Measured
    usual: float
    how: Against


def _question(
    action: ActionColumns, scope: Scope, group: int, seen: _Seen, few: str | None, policy: GatePolicy, severity: str
) -> Question:  # fmt: skip
    factor, moved = scope.factor * seen.how.factor, seen.moved
    tolerated, slack = policy.calibration_margin * factor, policy.calibration_slack * factor
    check = Check(
        name="calibration" + seen.how.suffix, family=seen.how.family or "calibration", action=action.name, slice=scope.slices[group],
        margin=tolerated, severity=severity, n=int(scope.rows.n_G[group]), outcome="pass",
        sentence=f"calibration of {action.name} ({scope.slices[group]}): ",
    )  # fmt: skip
    if moved.upper_absolute(policy.confidence) <= math.log1p(slack):
        words = f"sum p moved by {math.expm1(moved.value):+.2%} against production, tolerated {slack:.0%}"
        check = replace(_filled(check, moved, policy), margin=slack, p=1.0, sentence=check.sentence + words)
        return Question(check=check, upper=math.expm1(moved.upper_absolute(policy.confidence)), se=moved.se, dof=moved.dof)
    return _against_labels(check, seen, few, math.log1p(slack), policy)


def _against_labels(check: Check, seen: _Seen, few: str | None, slack: float, policy: GatePolicy) -> Question:
    margin, ours, theirs, moved = math.log1p(check.margin or 0.0), seen.ours, seen.theirs, seen.moved
    defined = math.isfinite(ours.value) and math.isfinite(ours.se)
    excused = abs(ours.value) - abs(theirs.value) <= slack  # False where one is NaN
    words = "sum p / sum y is not defined"
    if defined:
        low, high = ours.interval(policy.confidence)
        words = f"sum p / sum y = {math.exp(ours.value):.3f} [{math.exp(low):.3f}, {math.exp(min(high, 700)):.3f}]"
    if math.isfinite(theirs.value):
        other = "production" if not seen.how.suffix else seen.how.suffix.removeprefix("_vs_")
        words += f", {other} {math.exp(theirs.value):.3f}" + (" (no farther from 1 than that)" if excused else "")
    p = None
    if excused or defined:
        p = 1.0 if excused else _shown(seen, margin, slack, policy.alpha)
    check = replace(_filled(check, ours, policy), p=p, sentence=f"{check.sentence}{words}, tolerated {check.margin:.0%}")
    bounds = [bound for bound in (ours.upper_absolute(policy.confidence), moved.upper_absolute(policy.confidence)) if math.isfinite(bound)]
    upper = math.expm1(min(bounds, default=math.inf)) if min(bounds, default=math.inf) < 700 else math.inf
    few = few if few or defined else "no positive label"
    return Question(check=check, upper=upper, se=ours.se, dof=ours.dof, too_few=few)


def _shown(seen: _Seen, margin: float, slack: float, alpha: float) -> float:
    """p-value of "calibrated within the margin, or no farther off than production by more than the slack".

    Two ways to be shown wrong, Bonferroni over both. Labels alone put the challenger beyond the margin, and it moved away from production
    by more than the slack. Or it moved by more than the margin beyond what all rows moved, which is known without labels, and labels
    that were not searched for put it beyond the margin at the run's whole alpha.
    """
    off = seen.ours.p_outside(-margin, margin)
    moved = seen.moved
    if not math.isfinite(moved.se):
        return off
    beyond = replace(moved, value=moved.value - seen.usual).p_outside(-margin, margin) if off < alpha else 1.0
    return min(1.0, 2 * min(max(off, moved.p_outside(-slack, slack)), beyond))


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
    if scope.slices != [ALL] or not action.means:
        return []
    label_N = action.label_N[scope.kept_N]
    ours_N, theirs_N = (action.means[prefix][scope.kept_N] for prefix in (names.CHALLENGER, names.PRODUCTION))
    few = too_few(scope, label_N, action.kind == BINARY, policy)[0]
    value, reference = (float(ecce(score_N, label_N, scope.rows, replicates=0).value_G[0]) for score_N in (ours_N, theirs_N))
    harm = value - reference
    excused = not scope.differs(ours_N, theirs_N)[0] or harm <= policy.ecce_margin or value <= policy.ecce_margin
    words = f"{value:.2%} of the base rate, production {reference:.2%}, tolerated {policy.ecce_margin:.0%} more"
    p = 1.0
    if not excused:  # the bootstrap is dear, and its answer matters only here
        p = float(ecce(ours_N, label_N, scope.rows, seed=seed).p_G[0])
        words += f", p {p:.2g}"
    check = Check(
        name="ecce", family="calibration", action=action.name, margin=policy.ecce_margin, n=int(scope.rows.n_G[0]), outcome="pass",
        estimate=harm if math.isfinite(harm) else None, p=p, severity=severity,
        sentence=f"range of the cumulative calibration error of {action.name}: {words}",
    )  # fmt: skip
    return [Question(check=check, upper=0.0, too_few=None if excused else few)]
