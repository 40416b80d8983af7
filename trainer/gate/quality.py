"""Ranking and loss: is the challenger worse than production at telling the rows apart, and at predicting them?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from trainer.gate.decide import Question, measure
from trainer.gate.scope import Harm, Scope, ask, too_few, too_few_slates
from trainer.gate.table import BINARY, REQUEST, ActionColumns, Predictions, not_applicable
from trainer.metrics import Estimate, Rows, auc, decompose, free_normalised_loss, gauc, loss, ndcg, normalised_loss, rank_correlation
from trainer.schema import predictions as names
from trainer.schema.policy import GatePolicy
from trainer.schema.verdict import Check

Metric = Callable[[np.ndarray, np.ndarray, Rows], Estimate]


def quality(
    action: ActionColumns, scope: Scope, policy: GatePolicy, severity: str, against: str = names.PRODUCTION
) -> list[Question | Check]:
    """Asks for AUC, GAUC and NE (binary), rank correlation and deviance (others) in every group of `scope`.

    Args:
        action: The action, with both models' scores.
        scope: Ripe rows, grouped.
        policy: Margins.
        severity: Severity of the checks.
        against: Prefix of the model that is compared with.
    """
    label_N = action.label_N[scope.kept_N]
    ours_N, theirs_N = (action.scores[prefix][scope.kept_N] for prefix in (names.CHALLENGER, against))
    same_G = ~scope.differs(ours_N, theirs_N)
    few_G = too_few(scope, label_N, action.kind == BINARY, policy)
    against_it = Against.of(against, policy)
    questions: list[Question | Check] = []
    slate_N = scope.slate_N if scope.requests else None
    for kind, metric in _ranking(action, policy, against_it, severity, slate_N):
        ours, theirs = metric(ours_N, label_N, scope.rows), metric(theirs_N, label_N, scope.rows)
        few_there_G = too_few_slates(few_G, scope, label_N, slate_N, policy) if kind.needs else few_G
        questions += ask(kind, theirs.minus(ours), [theirs.value_G, ours.value_G], same_G, few_there_G, scope, policy)
    if not action.means:
        return questions
    ours_N, theirs_N = (action.means[prefix][scope.kept_N] for prefix in (names.CHALLENGER, against))
    ours, theirs = (loss(action.kind, score_N, label_N, scope.rows) for score_N in (ours_N, theirs_N))
    shown = [normalised_loss(action.kind, score_N, label_N, scope.rows).value_G for score_N in (theirs_N, ours_N)]
    harm = ours.log(scope.rows).minus(theirs.log(scope.rows))
    return questions + ask(_loss(action, policy, against_it, severity), harm, shown, same_G, few_G, scope, policy)


CHANCE = "_vs_chance"  # suffix of the checks of `above_chance`


def above_chance(action: ActionColumns, scope: Scope, policy: GatePolicy) -> list[Question | Check]:
    """Asks whether the challenger ranks worse than no model at all: AUC one half (binary), rank correlation 0 (others).

    Args:
        action: The action, with the challenger's scores.
        scope: Ripe rows, in one group.
        policy: Margins.

    Returns:
        The question, as a harm: chance minus the challenger. Nothing need be proven, only a shown loss counts.
    """
    ours_N, label_N = action.scores[names.CHALLENGER][scope.kept_N], action.label_N[scope.kept_N]
    kind, metric = _ranking(action, policy, Against(CHANCE, None, 1.0, False), "block", None)[0]
    found = metric(ours_N, label_N, scope.rows)
    chance_G = np.full_like(found.value_G, 0.5 if action.kind == BINARY else 0.0)
    same_G = ~scope.differs(ours_N, np.full_like(ours_N, ours_N[:1].sum()))  # one score for all rows is chance itself
    few_G = too_few(scope, label_N, action.kind == BINARY, policy)
    harm = Estimate(chance_G - found.value_G, -found.influence_N)
    asked = ask(kind, harm, [chance_G, found.value_G], same_G, few_G, scope, policy)
    return [replace(one, upper=-math.inf) if isinstance(one, Question) else one for one in asked]


def unproven(check: Check) -> Check:
    """Turns a check of `above_chance` that passed into a warning, unless the challenger is shown to rank better than chance."""
    if not check.name.endswith(CHANCE) or check.outcome != "pass" or (check.high is not None and check.high < 0):
        return check
    return replace(check, outcome="hold", severity="warn", sentence=f"{check.sentence}, and NOT SHOWN to rank better than chance")


@dataclass(frozen=True)
class Against:
    """The model that is compared with: how its checks are called, and what is tolerated.

    Attributes:
        suffix: Of the names of the checks.
        family: Of the checks; null: their own.
        factor: Margins are so many times those against production.
        suspicious: Whether too large a gain holds; against baselines, and a reference of months ago, large gains are the aim.
    """

    suffix: str
    family: str | None
    factor: float
    suspicious: bool

    @classmethod
    def of(cls, prefix: str, policy: GatePolicy) -> Against:
        """Returns how the model of a column prefix is compared with."""
        if prefix == names.PRODUCTION:
            return cls("", None, 1.0, True)
        suffix = f"_vs_{prefix.rstrip('_')}"
        if prefix == names.REFERENCE:
            return cls(suffix, "reference", policy.reference_factor, False)
        return cls(suffix, "baseline", 1.0, False)


def _ranking(
    action: ActionColumns, policy: GatePolicy, against: Against, severity: str, request_N: np.ndarray | None
) -> list[tuple[Harm, Metric]]:
    def kind(name: str, label: str, margin: float, needs: str | None = None) -> Harm:
        return Harm(
            name=name + against.suffix, family=against.family or "ranking", action=action.name, label=label, severity=severity, needs=needs,
            margin=margin * against.factor, gain_limit=policy.suspicious_auc if against.suspicious else np.inf,
        )  # fmt: skip

    if action.kind != BINARY:
        return [(kind("rank_correlation", "rank correlation", policy.rank_margin), rank_correlation)]
    auc_kind = kind("auc", "AUC", policy.auc_margin)
    if request_N is not None:
        within = kind("gauc", "GAUC within requests", policy.gauc_margin, "requests with both classes")
        return [(auc_kind, auc), (within, partial(gauc, slate_N=request_N))]
    within = kind("gauc", "GAUC within users", policy.gauc_margin * policy.adaptive_factor, "users with both classes")
    return [(auc_kind, auc), (within, gauc)]


def _loss(action: ActionColumns, policy: GatePolicy, against: Against, severity: str) -> Harm:
    binary = action.kind == BINARY
    return Harm(
        name=("ne" if binary else "deviance") + against.suffix, family=against.family or "loss", action=action.name,
        label="NE" if binary else "normalised deviance", margin=policy.ne_margin * against.factor, relative=True, severity=severity,
        gain_limit=policy.suspicious_relative if against.suspicious else np.inf,
    )  # fmt: skip


def explanation(action: ActionColumns, scope: Scope, policy: GatePolicy) -> Iterator[Check]:
    """States why the loss changed: scale (miscalibration) or order (discrimination); information."""
    if action.kind != BINARY or not action.means:
        return
    label_N, rows = action.label_N[scope.kept_N], scope.rows
    ours_N, theirs_N = (action.means[prefix][scope.kept_N] for prefix in (names.CHALLENGER, names.PRODUCTION))
    free = [free_normalised_loss(BINARY, score_N, label_N, rows) for score_N in (theirs_N, ours_N)]
    [found] = measure(free[1].log(rows).minus(free[0].log(rows)), rows)
    if not math.isfinite(found.value):
        return
    before, after = (decompose(BINARY, score_N, label_N, rows) for score_N in (theirs_N, ours_N))
    low, high = found.interval(policy.confidence)
    words = f"NE of {action.name} without its scale {free[0].value_G[0]:.5f} -> {free[1].value_G[0]:.5f} ({found.value:+.2%})"
    parts = ", ".join(
        f"{word} {float(x_G[0]):.5f} -> {float(y_G[0]):.5f}"
        for word, x_G, y_G in (
            ("miscalibration", before.miscalibration_G, after.miscalibration_G),
            ("discrimination", before.discrimination_G, after.discrimination_G),
        )
    )
    yield Check(
        name="ne_free", family="loss", action=action.name, estimate=found.value, low=low, high=high, n=int(rows.n_G[0]), outcome="pass",
        severity="info", sentence=f"{words}; log loss by cause: {parts}",
    )  # fmt: skip


def value_ranking(
    predictions: Predictions, scope: Scope, gain_N: np.ndarray, policy: GatePolicy, severity: str, against: str = names.PRODUCTION
) -> list[Question | Check]:
    """Asks for the NDCG of the value function: do the slates still put first what turned out to be worth most?

    Args:
        predictions: The table, with both value columns.
        scope: Rows whose labels are all ripe, grouped.
        gain_N: Realised value of every row of the table.
        policy: Margins.
        severity: Severity of the check.
        against: Prefix of the model that is compared with.
    """
    ours_N, theirs_N = (predictions.value[prefix][scope.kept_N] for prefix in (names.CHALLENGER, against))
    gain_N = gain_N[scope.kept_N]
    ours, theirs = (ndcg(value_N, gain_N, scope.slate_N, scope.rows, policy.top_k) for value_N in (ours_N, theirs_N))
    how = Against.of(against, policy)
    margin = policy.ndcg_margin * how.factor * (1.0 if predictions.slates == REQUEST else policy.adaptive_factor)
    kind = Harm(
        name="ndcg" + how.suffix, family=how.family or "ranking", action="value", margin=margin, relative=True, severity=severity,
        label=f"NDCG@{policy.top_k} of the slates ({predictions.slates})", needs="slates with different outcomes",
        gain_limit=policy.suspicious_relative if how.suspicious else np.inf,
    )  # fmt: skip
    few_G = [f"{n:,} rows, {policy.min_rows:,} needed" if n < policy.min_rows else None for n in scope.rows.n_G.tolist()]
    few_G = too_few_slates(few_G, scope, gain_N, scope.slate_N, policy)
    harm = theirs.log(scope.rows).minus(ours.log(scope.rows))
    return ask(kind, harm, [theirs.value_G, ours.value_G], ~scope.differs(ours_N, theirs_N), few_G, scope, policy)


def realised_value(predictions: Predictions, weights: dict[str, float] | None) -> np.ndarray | Check:
    """What each row turned out to be worth: the value function of its labels, NaN where one is not ripe.

    Without `weights` they are recovered from production's own columns, since its value is a weighted sum of its scores.

    Returns:
        Realised value of each row, or the reason why it cannot be known.
    """
    if not predictions.value:
        return not_applicable("ndcg", "ranking", "value_production or value_challenger is absent", action="value")
    known = {action.name: action for action in predictions.actions if names.PRODUCTION in action.scores}
    if weights is None:
        recovered = recover_weights([action.scores[names.PRODUCTION] for action in known.values()], predictions.value[names.PRODUCTION])
        if recovered is None:
            why = "value_production is no weighted sum of the production_ columns, so what a row was worth is not known"
            return not_applicable("ndcg", "ranking", f"{why}; hand the weights in to have it judged", action="value")
        weights = dict(zip(known, recovered, strict=True))
    used = {name: weight for name, weight in weights.items() if weight != 0}
    missing = sorted(set(used) - {action.name for action in predictions.actions})
    if missing or not used:
        which = ", ".join(missing) or "every action"
        return not_applicable("ndcg", "ranking", f"labels of {which} are absent or weigh nothing", action="value")
    labels = {action.name: action.label_N for action in predictions.actions}
    return np.sum([weight * labels[name] for name, weight in used.items()], axis=0)


_RECOVERY_ROWS = 50_000
_RECOVERY_ERROR = 1e-4  # of the value's spread: float32 columns and rounding, nothing more


def recover_weights(scores: list[np.ndarray], value_N: np.ndarray) -> list[float] | None:
    """Returns the weights of which `value_N` is the weighted sum of `scores`, negligible ones as 0; None where it is no such sum."""
    if not scores or len(value_N) < 10 * len(scores):
        return None
    step = max(1, len(value_N) // _RECOVERY_ROWS)
    matrix_NA, value_N = np.stack(scores, axis=1)[::step], value_N[::step]
    weights_A, _, rank, _ = np.linalg.lstsq(matrix_NA, value_N, rcond=1e-6)
    error = float(np.abs(matrix_NA @ weights_A - value_N).max())
    if rank < len(scores) or not error <= _RECOVERY_ERROR * max(float(np.abs(value_N).max()), 1e-12):
        return None
    scale_A = np.abs(weights_A) * np.abs(matrix_NA).max(axis=0)
    return np.where(scale_A > _RECOVERY_ERROR * scale_A.max(initial=0.0), weights_A, 0.0).tolist()
