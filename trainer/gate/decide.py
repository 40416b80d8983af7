"""From measurements to outcomes: one test of minimum-effect deterioration a question, Holm over all blocking ones.

Two errors, two controls. Blocking a good challenger is held by Holm at the policy's alpha over every blocking test of the run, slices
included. Passing a bad one is held by the one-sided bound that a check on all rows needs before it passes: no correction is due
there, because all of them must pass (an intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from scipy.special import stdtr, stdtrit

from trainer.metrics import Estimate, Rows, spread
from trainer.schema.policy import GatePolicy
from trainer.schema.verdict import ALL, Check

_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A measured harm, before it is known how many other questions share the budget of false alarms.

    Attributes:
        check: What is already known of the answer; its outcome and sentence are filled in by `settle`.
        upper: One-sided upper bound of the harm at the policy's confidence; infinite when there is none.
        se: Standard error of the harm; NaN when there is none.
        dof: Degrees of freedom of the standard error.
        gain_shown: Lower one-sided bound of the improvement, to notice one that is too good; minus infinite where not asked.
        gain_limit: Improvement that is suspicious.
        too_few: Why the question is not put to the test at all, say ``12 positives``; null when it is.
        holds: Whether the run has to wait where all rows together cannot tell; otherwise that is not testable, as on a slice.
        planned_se: Standard error to expect from so many rows where none could be measured, for the smallest harm it would show.
    """

    check: Check
    upper: float = math.inf
    se: float = math.nan
    dof: float = math.inf
    gain_shown: float = -math.inf
    gain_limit: float = math.inf
    too_few: str | None = None
    holds: bool = True
    planned_se: float = math.nan


def excess_p(excess: float, se: float, dof: float) -> float:
    """p-value (Student's t) of "the true excess over the margin is not positive"; without any noise it is certainty either way."""
    if se == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stdtr(dof, -excess / se))


def either_side(p_above: float, p_below: float) -> float:
    """p-value of "within both margins" from the two one-sided ones: the near side's tail and the far side's beyond it."""
    return min(1.0, min(p_above, p_below) + 1 - max(p_above, p_below))


def reach(se: float, dof: float, level: float) -> float:
    """Distance from an estimate to its one-sided bound at `level`; 0 for an estimate without noise."""
    if math.isnan(se):
        return math.inf
    return float(stdtrit(dof, level)) * se if se > 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """One group's estimate with the numbers that tests and intervals need."""

    value: float
    se: float
    dof: float

    def interval(self, confidence: float) -> tuple[float, float]:
        distance = reach(self.se, self.dof, 0.5 + confidence / 2)
        return self.value - distance, self.value + distance

    def upper(self, confidence: float) -> float:
        return self.value + reach(self.se, self.dof, confidence)

    def upper_absolute(self, confidence: float) -> float:
        return abs(self.value) + reach(self.se, self.dof, confidence)

    def p_above(self, margin: float) -> float:
        return excess_p(self.value - margin, self.se, self.dof)

    def p_outside(self, below: float, above: float) -> float:
        """p-value of "the truth lies in [below, above]"."""
        return either_side(excess_p(self.value - above, self.se, self.dof), excess_p(below - self.value, self.se, self.dof))


def measure(estimate: Estimate, rows: Rows) -> list[Measured]:
    """Returns each group's value, standard error and degrees of freedom."""
    found = spread(estimate, rows)
    return [Measured(*three) for three in zip(estimate.value_G.tolist(), found.se_G.tolist(), found.dof_G.tolist(), strict=True)]


def settle(questions: Sequence[Question], policy: GatePolicy) -> list[Check]:
    """Answers all questions: Holm within a severity, then pass, fail, hold or not testable."""
    answers: dict[int, Check] = {}
    for severity in ("block", "warn", "info"):
        chosen = [i for i, question in enumerate(questions) if question.check.severity == severity]
        tested = [i for i in chosen if questions[i].check.p is not None and questions[i].too_few is None]
        shown = holm([float(questions[i].check.p or 0.0) for i in tested], policy.alpha)
        failing = {i for i, rejected in zip(tested, shown, strict=True) if rejected}
        for i in chosen:
            answers[i] = _answer(questions[i], i in failing, policy.alpha / max(len(tested), 1), policy)
    return [answers[i] for i in range(len(questions))]


def holm(p: Sequence[float], alpha: float) -> list[bool]:
    """Returns which hypotheses Holm's (1979) step-down procedure rejects at family-wise level `alpha`."""
    rejected = [False] * len(p)
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > alpha / (len(p) - rank):
            break
        rejected[index] = True
    return rejected


def _answer(question: Question, fails: bool, level: float, policy: GatePolicy) -> Check:
    """Outcome and closing words of one question; `level` is what one test has of the budget."""
    check, limit = question.check, policy.prove_within * (question.check.margin or 0.0)
    everything = check.slice == ALL
    unsure = "hold" if everything and question.holds else "not_testable"
    power = _NORMAL.inv_cdf(policy.power)
    measured = math.isfinite(question.se)
    se, dof = (question.se, question.dof) if measured else (question.planned_se, math.inf)
    detect = reach(se, dof, 1 - level) + power * se
    mde = (check.margin or 0.0) + detect if math.isfinite(detect) else None
    check = replace(check, mde=mde)
    if question.too_few is not None:
        outcome, words = (
            unsure,
            f"cannot tell: {question.too_few}" + ("" if mde is None else f"; the smallest harm it would show is {mde:.3g}"),
        )
    elif fails:
        outcome, words = "fail", "worse than tolerated"
    elif everything and question.gain_shown > question.gain_limit:
        outcome, words = "hold", f"too good to be true (a gain beyond {question.gain_limit:.3g} is shown): look for a leak"
    elif question.upper <= limit or (not everything and mde is not None and mde <= limit):
        outcome, words = "pass", "no harm shown" if limit > (check.margin or 0.0) else "within the margin"
    else:
        outcome, words = unsure, _cannot_tell(question, mde, limit, policy)
    return replace(check, outcome=outcome, sentence=f"{check.sentence}: {words}")


def _cannot_tell(question: Question, mde: float | None, limit: float, policy: GatePolicy) -> str:
    harm = max(question.check.estimate or 0.0, 0.0)
    seen = f"the smallest harm it would show is {mde:.3g}" if mde is not None else "no standard error"
    if not 0 <= harm < limit or not question.se > 0:
        return f"cannot tell: harm up to {question.upper:.3g} is not ruled out; {seen}"
    z = _NORMAL.inv_cdf(policy.confidence) + _NORMAL.inv_cdf(policy.power)
    rows = math.ceil(question.check.n * (z * question.se / (limit - harm)) ** 2)
    needed = f"; about {rows:,} rows would tell" if rows > question.check.n else ""
    return f"cannot tell: harm up to {question.upper:.3g} is not ruled out (needed: {limit:.3g}); {seen}{needed}"
