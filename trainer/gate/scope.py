"""Where a check looks: all rows, or the values of one slice column. And the one way to ask whether a paired harm is tolerable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.gate.decide import Measured, Question, measure
from trainer.gate.table import REQUEST, Predictions, not_applicable
from trainer.metrics import Estimate, Rows, arrange, users_with_mixed_slates
from trainer.schema.policy import GatePolicy
from trainer.schema.verdict import ALL, Check


@dataclass(frozen=True)
class Scope:
    """Rows to be judged, in groups that have names.

    Attributes:
        rows: Groups, clusters, weights of the kept rows.
        slices: Name of each group: ``all``, or ``<column>=<value>``.
        kept_N: Rows of the table that are judged (ripe ones), as indices.
        factor: Margins here are so many times the policy's.
        slate_N: Slates of the kept rows.
        requests: Whether slates are requests, within which every row was scored at the same moment.
    """

    rows: Rows
    slices: list[str]
    kept_N: np.ndarray
    factor: float
    slate_N: np.ndarray
    requests: bool

    @property
    def present(self) -> list[int]:
        """Groups with a row; all rows count even when there are none."""
        return [g for g, name in enumerate(self.slices) if self.rows.n_G[g] or name == ALL]

    def differs(self, x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        """Which groups have a row in which the two columns differ; a group without rows counts as different."""
        return (np.bincount(self.rows.group_N, weights=x_N != y_N, minlength=self.rows.groups) > 0) | (self.rows.n_G == 0)


def scopes(predictions: Predictions, policy: GatePolicy, ripe_N: np.ndarray | None = None) -> list[Scope]:
    """Returns the scope of all rows and one for each slice column.

    Args:
        predictions: The table.
        policy: For the margins of slices.
        ripe_N: Rows that count; default: all.
    """
    kept_N = np.arange(predictions.rows) if ripe_N is None else np.flatnonzero(ripe_N)
    user_N, weight_N = predictions.user_N[kept_N], predictions.weight_N[kept_N]
    slates = predictions.slate_N[kept_N], predictions.slates == REQUEST
    found = [Scope(arrange(user_N, weight_N=weight_N), [ALL], kept_N, 1.0, *slates)]
    for column in predictions.slices:
        rows = arrange(user_N, column.group_N[kept_N], len(column.values), weight_N)
        found.append(Scope(rows, [f"{column.name}={value}" for value in column.values], kept_N, policy.slice_factor, *slates))
    return found


@dataclass(frozen=True, kw_only=True)
class Harm:
    """A paired harm, asked in every group of a scope.

    Attributes:
        name: Name of the check.
        family: Its family.
        action: Action, or ``value``.
        label: Words for the metric.
        margin: Tolerated harm on all rows.
        gain_limit: Gain on all rows that is suspicious.
        relative: Whether harm is a difference of logarithms, read as a relative change.
        severity: Severity of the check.
        needs: What the rows must hold for the metric to exist at all, say users with both classes; where no row provides it the check
            is not applicable. Null: a metric that does not exist on all rows holds.
    """

    name: str
    family: str
    action: str
    label: str
    margin: float
    gain_limit: float = math.inf
    relative: bool = False
    severity: str = "block"
    needs: str | None = None


def ask(
    kind: Harm,
    harm: Estimate,
    pair_G: Sequence[np.ndarray],
    same_G: np.ndarray,
    few_G: Sequence[str | None],
    scope: Scope,
    policy: GatePolicy,
) -> list[Question | Check]:
    """Asks whether a harm beyond the margin is shown, one question a group.

    Args:
        kind: What is asked.
        harm: Positive where the challenger is worse.
        pair_G: Production's and the challenger's own values, for the sentence.
        same_G: Groups in which both models gave the same scores: their harm is exactly 0, defined or not.
        few_G: Why a group is too small to be tested, or null.
        scope: The groups.
        policy: Margins and confidence.
    """
    found_G = measure(harm, scope.rows)
    planned_G = planned(found_G, scope)
    if kind.needs is not None and scope.slices == [ALL] and not math.isfinite(found_G[0].value) and not same_G[0]:
        return [not_applicable(kind.name, kind.family, f"{kind.label} of {kind.action} needs {kind.needs}", action=kind.action)]
    exact = Measured(0.0, 0.0, math.inf)
    return [
        replace(
            _question(kind, exact if same_G[g] else found_G[g], [float(x_G[g]) for x_G in pair_G], few_G[g], scope, g, policy),
            planned_se=planned_G[g],
        )
        for g in scope.present
    ]


def planned(found_G: Sequence[Measured], scope: Scope) -> list[float]:
    """Standard error to expect in each group from its number of rows, as the groups that have one show it; NaN where none has."""
    per_row = [
        found.se * math.sqrt(n)
        for found, n in zip(found_G, scope.rows.n_G.tolist(), strict=True)
        if math.isfinite(found.se) and found.se > 0
    ]
    typical = float(np.median(per_row)) if per_row else math.nan
    return [typical / math.sqrt(n) if n else math.nan for n in scope.rows.n_G.tolist()]


def _question(
    kind: Harm, found: Measured, pair: Sequence[float], few: str | None, scope: Scope, group: int, policy: GatePolicy
) -> Question:
    margin = kind.margin * scope.factor
    low, high = found.interval(policy.confidence)
    exact = found.se == 0 and found.value == 0
    defined = math.isfinite(found.value) and math.isfinite(found.se)
    if exact:
        few = None
    elif not defined:
        few = few or f"{kind.label} is not defined on these rows"
    change = f"{found.value:+.2%}" if kind.relative else f"{found.value:+.5f}"
    bounds = f"[{low:+.2%}, {high:+.2%}]" if kind.relative else f"[{low:+.5f}, {high:+.5f}]"
    tolerated = f"{margin:.3g}" if not kind.relative else f"{margin:.1%}"
    words = f"{pair[0]:.5f} -> {pair[1]:.5f}, harm {change} {bounds}, tolerated {tolerated}"
    if exact:
        words = "both models gave the same scores"
    check = Check(
        name=kind.name, family=kind.family, action=kind.action, slice=scope.slices[group], margin=margin, n=int(scope.rows.n_G[group]),
        estimate=_number(found.value), low=_number(low), high=_number(high), p=found.p_above(margin) if defined else None,
        outcome="pass", severity=kind.severity, sentence=f"{kind.label} of {kind.action} ({scope.slices[group]}): {words}",
    )  # fmt: skip
    gain = Measured(-found.value, found.se, found.dof)
    shown = gain.value - (gain.upper(policy.confidence) - gain.value) if defined else -math.inf
    return Question(
        check=check, upper=found.upper(policy.confidence) if defined else math.inf, se=found.se, dof=found.dof,
        gain_shown=shown, gain_limit=kind.gain_limit, too_few=few,
    )  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def too_few_slates(
    few_G: Sequence[str | None], scope: Scope, outcome_N: np.ndarray, slate_N: np.ndarray | None, policy: GatePolicy
) -> list[str | None]:
    """Adds to the reasons of `too_few` the groups in which hardly a user has a slate that could be ranked right or wrong."""
    users_G = users_with_mixed_slates(outcome_N, scope.rows, slate_N).tolist()
    needed = f"users with different outcomes in a slate, {policy.min_positives:,} needed"
    return [few or (f"{users:,.0f} {needed}" if users < policy.min_positives else None) for few, users in zip(few_G, users_G, strict=True)]


def too_few(scope: Scope, label_N: np.ndarray, binary: bool, policy: GatePolicy) -> list[str | None]:
    """Says of each group why it is too small for tests that rest on labels, or null."""
    positives_G = np.bincount(scope.rows.group_N, weights=label_N > 0, minlength=scope.rows.groups)
    reasons: list[str | None] = []
    for name, n, positives in zip(scope.slices, scope.rows.n_G.tolist(), positives_G.tolist(), strict=True):
        rare = min(positives, n - positives) if binary else positives
        if n < policy.min_rows and name != ALL:
            reasons.append(f"{n:,} rows, {policy.min_rows:,} needed")
        elif rare < policy.min_positives:
            word = "rows of the rarer class" if binary else "rows with a positive label"
            reasons.append(f"{rare:,.0f} {word}, {policy.min_positives:,} needed")
        else:
            reasons.append(None)
    return reasons
