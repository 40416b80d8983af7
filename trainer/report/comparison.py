"""The first table: challenger against everything it stands beside, and whether a difference is shown or only seen.

A paired interval of the gate decides the direction where there is one. Else two separate intervals must lie apart, which is stricter: the
page says which of the two was used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trainer.metrics import evaluate_action
from trainer.report.artefacts import Artefacts
from trainer.report.numbers import NONE, count, finite, fixed, interval, percent
from trainer.report.scores import ActionScores
from trainer.schema.verdict import Check

BETTER, WORSE, EVEN, UNKNOWN = "better", "worse", "even", "unknown"
CHALLENGER, PRODUCTION = "challenger", "production"
REFERENCES = (PRODUCTION, "counting", "lightgbm", "continued")
TITLES = {
    CHALLENGER: "Challenger", PRODUCTION: "Production", "counting": "Counting", "lightgbm": "LightGBM", "continued": "Production continued",
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        name: Key in ``eval.json``.
        label: Words.
        better: 1 if more is better, -1 if less is, 0 if nearness to 1 is.
        digits: Decimals.
        check: Name of the gate's paired check.
        relative: Whether that check's harm is a difference of logarithms.
    """

    name: str
    label: str
    better: int
    digits: int = 4
    check: str | None = None
    relative: bool = False


METRICS = (
    Metric("auc", "AUC", 1, check="auc"),
    Metric("gauc", "GAUC", 1, check="gauc"),
    Metric("ne", "NE", -1, check="ne", relative=True),
    Metric("rank_correlation", "rank correlation", 1, check="rank_correlation"),
    Metric("deviance", "normalised deviance", -1, check="deviance", relative=True),
    Metric("mae", "mean absolute error", -1, digits=3),
    Metric("ratio", "predicted / observed", 0, digits=3),
    Metric("ece", "ECE", -1),
)


@dataclass(frozen=True)
class Reference:
    """One model's cell: its value, and how the challenger stands against it."""

    value: str
    interval: str
    difference: str = ""
    spread: str = ""
    direction: str = UNKNOWN
    paired: bool = False

    @property
    def word(self) -> str:
        """The direction in words, so that colour never says anything alone."""
        words = {BETTER: "better", WORSE: "worse", EVEN: "no difference shown", UNKNOWN: ""}
        return words[self.direction]


@dataclass(frozen=True)
class Row:
    """One metric: the challenger's value and a cell for each reference."""

    metric: Metric
    value: str
    interval: str
    references: list[Reference]

    @property
    def aim(self) -> str:
        return {1: "higher is better", -1: "lower is better", 0: "1 is right"}[self.metric.better]


@dataclass(frozen=True)
class ActionTable:
    """All rows of one action."""

    action: str
    counts: str
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """The table.

    Attributes:
        references: Models beside the challenger, and their headings, in column order.
        actions: One part an action.
        unpaired: Whether any direction rests on separate intervals.
        left_out: Actions that are not gated, and stand in the second table only.
    """

    references: list[tuple[str, str]]
    actions: list[ActionTable]
    unpaired: bool
    left_out: list[ActionTable]


def compare(run: Artefacts, scores: list[ActionScores]) -> Comparison | None:
    """Builds the table from ``eval.json``, or where the gate ran alone from the predictions; None where there is neither."""
    evaluation = run.evaluation or measured(scores)
    actions = list(evaluation.get(CHALLENGER, {}))
    if not actions:
        return None
    references = [model for model in REFERENCES if any(action in evaluation.get(model, {}) for action in actions)]
    tables = {action: _table(run, evaluation, action, references) for action in actions}
    gated = [action for action in actions if run.setting("data", "actions", action, "gated", default=True)] or actions
    shown = [tables[action] for action in gated]
    cells = [cell for table in shown for row in table.rows for cell in row.references]
    return Comparison(
        references=[(model, TITLES[model]) for model in references],
        actions=shown,
        unpaired=any(not cell.paired and cell.direction != UNKNOWN for cell in cells),
        left_out=[tables[action] for action in actions if action not in gated],
    )


def measured(scores: list[ActionScores]) -> dict[str, Any]:
    """Measures the predictions as the evaluate stage does, without the bootstrap of ECE, in the form of ``eval.json``."""
    report: dict[str, Any] = {}
    for action in scores:
        for model, score_N in action.scores.items():
            found_N = np.where(np.isfinite(score_N), action.label_N, np.nan)
            [metrics] = evaluate_action(found_N, score_N, action.user_N, kind=action.kind, weight_N=action.weight_N, bootstrap=0)
            report.setdefault(model, {})[action.name] = {**metrics.plain(), "intervals": metrics.intervals(), "notes": metrics.notes}
    return report


def _table(run: Artefacts, evaluation: dict[str, Any], action: str, references: list[str]) -> ActionTable:
    ours = evaluation[CHALLENGER][action]
    others = {model: evaluation.get(model, {}).get(action) for model in references}
    rows = []
    for metric in METRICS:
        if metric.name not in ours:
            continue
        form = partial(fixed, digits=metric.digits)
        cells = [_reference(run, metric, action, model, ours, other) for model, other in others.items()]
        rows.append(Row(metric, form(ours[metric.name]), interval(_bounds(ours, metric), form), cells))
    positives = f", {count(ours['positives'])} positive" if ours.get("positives") is not None else ""
    notes = [f"{TITLES[model]}: {note}" for model, other in {CHALLENGER: ours, **others}.items() for note in (other or {}).get("notes", [])]
    return ActionTable(action, f"{count(ours.get('n'))} rows{positives}", rows, notes)


def _bounds(entry: dict[str, Any], metric: Metric) -> Any:
    return (entry.get("intervals") or {}).get(metric.name)


def _reference(run: Artefacts, metric: Metric, action: str, model: str, ours: dict[str, Any], theirs: dict[str, Any] | None) -> Reference:
    if theirs is None or finite(theirs.get(metric.name)) is None:
        return Reference(NONE, "")
    form = partial(fixed, digits=metric.digits)
    value, spread = form(theirs[metric.name]), interval(_bounds(theirs, metric), form)
    suffix = "" if model == PRODUCTION else f"_vs_{model}"
    check = run.global_check(metric.check + suffix, action) if metric.check else None
    if check is not None and finite(check.estimate) is not None:
        difference, bounds = paired_difference(check, metric.better, metric.relative, metric.digits)
        return Reference(value, spread, difference, bounds, direction_of(check), paired=True)
    if finite(ours.get(metric.name)) is None:
        return Reference(value, spread)
    difference = "" if metric.better == 0 else form(ours[metric.name] - theirs[metric.name], signed=True)
    return Reference(value, spread, difference, "", _apart(metric, _bounds(ours, metric), _bounds(theirs, metric)))


def paired_difference(check: Check, better: int, relative: bool, digits: int = 4) -> tuple[str, str]:
    """Turns a harm (positive where the challenger is worse) into challenger minus reference, with its interval.

    Args:
        check: The gate's check.
        better: 1 if more of the metric is better, else -1.
        relative: Whether the harm is a difference of logarithms: shown as a relative change.
        digits: Decimals of an absolute difference.
    """
    form: Callable[[Any], str] = partial(percent, digits=2, signed=True) if relative else partial(fixed, digits=digits, signed=True)
    change = [None if x is None else math.expm1(-better * x) if relative else -better * x for x in (check.estimate, check.low, check.high)]
    ends = change[1:] if better < 0 else change[:0:-1]
    return form(change[0]), interval(ends, form)


def direction_of(check: Check) -> str:
    """Whether the interval of a harm excludes 0, and on which side."""
    if check.low is not None and check.low > 0:
        return WORSE
    if check.high is not None and check.high < 0:
        return BETTER
    return EVEN if check.low is not None and check.high is not None else UNKNOWN


def _apart(metric: Metric, ours: Any, theirs: Any) -> str:
    """Whether two separate intervals lie apart; without both of them nothing is said."""
    if not interval(ours, str) or not interval(theirs, str):
        return UNKNOWN
    if metric.better == 0:
        ours, theirs = _distance(ours), _distance(theirs)
    better = metric.better or -1
    if ours[0] > theirs[1]:
        return BETTER if better > 0 else WORSE
    if ours[1] < theirs[0]:
        return WORSE if better > 0 else BETTER
    return EVEN


def _distance(bounds: list[float]) -> tuple[float, float]:
    """Interval of the distance of a ratio from 1, on the log scale."""
    low, high = (math.log(max(bound, 1e-12)) for bound in bounds)
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return nearest, max(abs(low), abs(high))
