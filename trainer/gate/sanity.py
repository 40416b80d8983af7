"""Labels against production's own record: is it the model that moved, or what it is measured with?

Production did not change since it was judged. If its own calibration on these rows is off against its record, then labels, features or
the world changed, and a challenger that is off by as much has shown nothing wrong: a person looks at the data (HOLD). A challenger that
moved away from production is not excused by that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trainer.gate.compatibility import PAIR
from trainer.gate.decide import Measured, excess_p, measure
from trainer.gate.scope import Scope, scopes, too_few
from trainer.gate.table import BINARY, ActionColumns, Predictions, not_applicable
from trainer.metrics import normalised_loss, quotient, ratio
from trainer.schema import predictions as names
from trainer.schema.policy import GatePolicy
from trainer.schema.record import Recorded
from trainer.schema.verdict import ALL, Check

NAME = "label_sanity"


def label_sanity(table: Predictions, policy: GatePolicy, record: Mapping[str, Recorded] | None) -> list[Check]:
    """Compares production on these rows with its record, action by action.

    Two numbers, because one is blind where the other sees: flipped labels move sum p / sum y of a rare action and NE of a frequent one.
    The record's own uncertainty is taken from these rows, scaled to its size; the tests of all actions share the policy's alpha.

    Returns:
        One check an action with production's scores: it holds where production moved, by more than the margin for certain.
    """
    compared = [action for action in table.actions if names.PRODUCTION in action.scores]
    if not compared:
        return []
    if record is None:
        why = "production's recorded calibration is not at hand (gate.production_record), so a fault of the labels looks like the model's"
        return [not_applicable(NAME, "data", why)]
    level = policy.alpha / (2 * len(compared))
    return [_against_record(action, table, policy, record.get(action.name), level) for action in compared]


def _against_record(action: ActionColumns, table: Predictions, policy: GatePolicy, recorded: Recorded | None, level: float) -> Check:
    [scope] = scopes(replace(table, slices=[]), policy, ~np.isnan(action.label_N))
    label_N, score_N = action.label_N[scope.kept_N], action.scores[names.PRODUCTION][scope.kept_N]
    n = int(scope.rows.n_G[0])
    if recorded is None or (recorded.ratio is None and recorded.ne is None):
        return not_applicable(NAME, "data", f"production's record says nothing of {action.name}", action=action.name)
    few = too_few(scope, label_N, action.kind == BINARY, policy)[0]
    if few is not None:
        return not_applicable(NAME, "data", f"cannot compare {action.name} with production's record: {few}", action=action.name)
    [now] = measure(ratio(score_N, label_N, scope.rows).log(scope.rows), scope.rows)
    [loss] = measure(normalised_loss(action.kind, score_N, label_N, scope.rows).log(scope.rows), scope.rows)
    scaled, harder = (_moved(found, then, n, recorded.n) for found, then in ((now, recorded.ratio), (loss, recorded.ne)))
    margin, ne_margin = math.log1p(policy.record_margin), math.log1p(policy.record_ne_margin)
    p_ratio = scaled.p_outside(-margin, margin) if scaled else 1.0
    p_loss = excess_p(harder.value - ne_margin, harder.se, harder.dof) if harder else 1.0
    holds = min(p_ratio, p_loss) < level
    parts = [f"sum p / sum y {math.exp(now.value):.3f}, recorded {recorded.ratio:.3f}"] if scaled else []
    parts += [f"NE {math.exp(loss.value):.4f}, recorded {recorded.ne:.4f}"] if harder else []
    change = _observed_rate(action, label_N, scope, recorded)
    words = "it moved, so labels, features or the world did: look at the data before the model" if holds else "as recorded"
    low, high = scaled.interval(policy.confidence) if scaled else (math.nan, math.nan)
    return Check(
        name=NAME, family="data", action=action.name, estimate=math.expm1(scaled.value) if scaled else None,
        low=math.expm1(low) if scaled else None, high=math.expm1(min(high, 700.0)) if scaled else None, margin=policy.record_margin,
        p=min(1.0, 2 * min(p_ratio, p_loss)), n=n, outcome="hold" if holds else "pass", severity=policy.severity.get(NAME, "block"),
        sentence=f"production on {action.name} against its own record: {', '.join(parts)}{change}: {words}",
    )  # fmt: skip


def _moved(now: Measured, then: float | None, n: int, recorded_n: int | None) -> Measured | None:
    """Change of a logarithm against the record; None where one of them is not known."""
    if then is None or then <= 0 or not (math.isfinite(now.value) and math.isfinite(now.se)):
        return None
    return Measured(now.value - math.log(then), now.se * math.sqrt(1 + n / max(recorded_n or n, 1)), now.dof)


def _observed_rate(action: ActionColumns, label_N: np.ndarray, scope: Scope, recorded: Recorded) -> str:
    if action.kind != BINARY or recorded.base_rate is None:
        return ""
    rate = float(scope.rows.weight_N @ label_N / scope.rows.weight_N.sum())
    return f", positives {rate:.2%}, recorded {recorded.base_rate:.2%}"


def temper(checks: Sequence[Check], table: Predictions, policy: GatePolicy) -> list[Check]:
    """Turns failed calibration checks into holds where production itself is off against its record and the challenger stayed with it.

    Excused is only what is paired with production and close to it: sum p within the calibration margin of production's for certain, and
    no failed ranking or loss of the action. A challenger that moved, or is worse, has failed whatever the labels are.
    """
    suspect = {check.action for check in checks if check.name == NAME and check.outcome == "hold"}
    worse = {check.action for check in checks if check.family in ("ranking", "loss") and check.outcome == "fail"}
    stayed = {
        (action.name, place)
        for action in table.actions
        if action.name in suspect - worse and set(PAIR) <= set(action.scores)
        for place in _stayed(action, table, policy)
    }
    return [_held(check) if (check.action, check.slice) in stayed else check for check in checks]


def _stayed(action: ActionColumns, table: Predictions, policy: GatePolicy) -> set[str]:
    """Slices, and ``all``, in which the challenger's sum p is within the margin of production's; none if not so on all rows."""
    found: set[str] = set()
    for scope in scopes(table, policy, ~np.isnan(action.label_N)):
        ours_N, theirs_N = (action.scores[prefix][scope.kept_N] for prefix in (names.CHALLENGER, names.PRODUCTION))
        moved_G = measure(quotient(ours_N, theirs_N, scope.rows).log(scope.rows), scope.rows)
        limit = math.log1p(policy.calibration_margin * scope.factor)
        found |= {scope.slices[g] for g in scope.present if moved_G[g].upper_absolute(policy.confidence) <= limit}
    return found if ALL in found else set()


def _held(check: Check) -> Check:
    if check.family != "calibration" or check.outcome != "fail":
        return check
    words = "held, not rejected: production is off against its own record, and the challenger stayed with it"
    return replace(check, outcome="hold", sentence=f"{check.sentence}; {words}")
