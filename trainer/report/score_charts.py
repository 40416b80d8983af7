"""Charts of the scores: reliability, distribution, and quantiles against quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import count, fixed, significant, small_percent
from trainer.report.scores import BINARY, PAIR, QUANTILES_Q, ActionScores, Distributions, Reliability, distributions, reliability, stretched
from trainer.report.svg import Axis, Panel
from trainer.report.thresholds import LiveThreshold, live_thresholds
from trainer.schema.repair import Curve

_ROUND = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.999, 0.9999)
_CLOSEST = 0.14  # ticks nearer than this share of the axis would touch


@dataclass(frozen=True)
class ScoreCharts:
    """Drawings of one action, a sentence where one could not be made, and lines that belong under them."""

    action: str
    caption: str
    panels: list[Markup]
    note: str = ""
    lines: list[str] = field(default_factory=list)


def reliability_charts(run: Artefacts, scores: list[ActionScores]) -> list[ScoreCharts]:
    """Draws observed against predicted, an action a panel."""
    return [_reliability_chart(run, action, index) for index, action in enumerate(scores)]


def _reliability_chart(run: Artefacts, action: ActionScores, index: int) -> ScoreCharts:
    found = {model: binned for model in PAIR if model in action.scores and (binned := reliability(action, model)) is not None}
    if not found:
        return ScoreCharts(action.name, "", [], "no ripe label, or one score for all rows: nothing to draw")
    positive = [x_B[x_B > 0] for binned in found.values() for x_B in (binned.predicted_B, binned.observed_B)]
    floor = min((float(x_B.min()) for x_B in positive if len(x_B)), default=1e-3) / 1.5
    high = max(float(np.nanmax(np.concatenate([binned.predicted_B, binned.observed_B]))) for binned in found.values()) * 1.3
    axis_x, axis_y = (_log_axis(floor, high, action.kind, title) for title in ("predicted", "observed"))
    words = "; ".join(f"{model}: {_worst_bin(binned)}" for model, binned in found.items())
    panel = Panel(f"reliability-{index}", f"Reliability of {action.name}", words, axis_x, axis_y)
    panel.line([axis_x.low, axis_x.high], [axis_x.low, axis_x.high], "rule")
    for model, binned in found.items():
        x_B, y_B, low_B, high_B = (
            np.log10(np.maximum(v_B, floor / 10)) for v_B in (binned.predicted_B, binned.observed_B, binned.low_B, binned.high_B)
        )
        panel.band(x_B, low_B, high_B, model)
        panel.line(x_B, y_B, model)
        panel.dots(x_B, y_B, model)
    return ScoreCharts(action.name, _calibration_caption(run, action.name), [panel.svg()])


def _worst_bin(binned: Reliability) -> str:
    with np.errstate(divide="ignore", invalid="ignore"):
        off_B = np.abs(np.log(binned.observed_B / binned.predicted_B))
    if not np.isfinite(off_B).any():
        return "no bin with positives"
    worst = int(np.nanargmax(np.where(np.isfinite(off_B), off_B, -1)))
    predicted, observed = (significant(float(x_B[worst])) for x_B in (binned.predicted_B, binned.observed_B))
    return f"farthest from the diagonal at predicted {predicted}, observed {observed}"


def _calibration_caption(run: Artefacts, action: str) -> str:
    parts = []
    for model in ("challenger", "production"):
        entry = run.evaluation.get(model, {}).get(action)
        if entry:
            error = f", ECE {fixed(entry['ece'])}" if entry.get("ece") is not None else ""
            parts.append(f"{model}: predicted / observed {fixed(entry.get('ratio'), 3)}{error}")
    return "; ".join(parts)


def distribution_charts(run: Artefacts, scores: list[ActionScores]) -> list[ScoreCharts]:
    """Draws the scores' densities, and the challenger's quantiles against production's with the live thresholds."""
    charts = []
    repair = run.repair
    for index, action in enumerate(scores):
        found = distributions(action)
        if found is None:
            charts.append(ScoreCharts(action.name, "", [], "no finite score: nothing to draw"))
            continue
        axis = _score_axis(float(found.edges_B[0]), float(found.edges_B[-1]), action.kind, "score")
        panels = [_density(action, found, axis, index)]
        live = live_thresholds(run, action)
        if len(found.quantiles) == len(PAIR):
            curve = repair.curves.get(action.name) if repair else None
            panels.append(_quantiles(action, found, axis, index, live, curve))
        lines = [threshold.sentence(action.kind) for threshold in live]
        charts.append(ScoreCharts(action.name, _shift_caption(action, found), panels, lines=lines))
    return charts


def _density(action: ActionScores, found: Distributions, across: Axis, index: int) -> Markup:
    highest = max(float(share_B.max()) for share_B in found.density.values())
    up = Axis(0.0, highest * 1.08 or 1.0, [(0.0, "0")], "share of rows")
    panel = Panel(f"density-{index}", f"Distribution of the scores of {action.name}", _shift_caption(action, found), across, up)
    for model, share_B in found.density.items():
        x_B, y_B = np.repeat(found.edges_B, 2), np.concatenate([[0], np.repeat(share_B, 2), [0]])
        panel.band(x_B, np.zeros(len(x_B)), y_B, model)
        panel.line(x_B, y_B, model)
    return panel.svg()


def _quantiles(
    action: ActionScores, found: Distributions, across: Axis, index: int, live: list[LiveThreshold], curve: Curve | None
) -> Markup:
    transform = stretched(action.kind)
    words = "; ".join([_shift_caption(action, found), *(threshold.sentence(action.kind) for threshold in live)])
    across = Axis(across.low, across.high, across.ticks, "production, quantile")
    up = Axis(across.low, across.high, across.ticks, "challenger, same quantile")
    panel = Panel(f"quantiles-{index}", f"Quantiles of the scores of {action.name}, challenger against production", words, across, up)
    panel.line([across.low, across.high], [across.low, across.high], "rule")
    panel.line(found.quantiles["production"], found.quantiles["challenger"], "challenger")
    panel.dots(found.quantiles["production"], found.quantiles["challenger"], "challenger", 2.2)
    if curve is not None:  # strictly increasing, so that quantiles of repaired scores are repaired quantiles
        repaired_Q = transform(curve(np.array([_unstretched(value, action.kind) for value in found.quantiles["challenger"].tolist()])))
        panel.line(found.quantiles["production"], repaired_Q, "repaired")
    for place, threshold in enumerate(live):
        panel.marker(float(transform(np.array(threshold.at))), threshold.name, place)
    return panel.svg()


def _shift_caption(action: ActionScores, found: Distributions) -> str:
    """Medians and the top hundredth of both models, in the scores' own unit."""
    form = small_percent if action.kind == BINARY else significant
    parts = []
    for model, value_Q in found.quantiles.items():
        middle, top = (_unstretched(float(value_Q[int(np.argmin(np.abs(QUANTILES_Q - at)))]), action.kind) for at in (0.5, 0.99))
        parts.append(f"{model}: median {form(middle)}, top 1 % from {form(top)}")
    return "; ".join(parts) + f" ({count(len(action.label_N))} rows)"


def _unstretched(value: float, kind: str) -> float:
    return 1 / (1 + 10**-value) if kind == BINARY else 10**value


def _score_axis(low: float, high: float, kind: str, title: str) -> Axis:
    """Axis of a stretched scale, with ticks in the scores' own unit."""
    if kind != BINARY:
        return _spaced(low, high, _decades(low, high), title)
    transform = stretched(kind)
    ticks = [(float(transform(np.array(p))), small_percent(p) if p < 0.99 else f"{100 * p:g} %") for p in _ROUND]
    return _spaced(low, high, ticks, f"{title} (logit scale)")


def _log_axis(low: float, high: float, kind: str, title: str) -> Axis:
    """Logarithmic axis of rates (per cent) or expectations."""
    low, high = math.log10(low), math.log10(high)
    ticks = _decades(low, high)
    if kind == BINARY:
        ticks = [(at, small_percent(10**at)) for at, _ in ticks]
    return _spaced(low, high, ticks, f"{title} (log scale)")


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    found = [
        (math.log10(factor) + power, factor * 10.0**power) for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)
    ]
    return [(at, significant(value, 1)) for at, value in found]


def _spaced(low: float, high: float, ticks: list[tuple[float, str]], title: str) -> Axis:
    """Keeps the ticks that lie on the axis and do not touch; powers of ten win over what is between them."""
    kept: list[tuple[float, str]] = []
    for at, label in sorted(ticks, key=lambda tick: (abs(tick[0] - round(tick[0])) > 1e-9, tick[0])):
        if low <= at <= high and all(abs(at - other) >= _CLOSEST * (high - low) for other, _ in kept):
            kept.append((at, label))
    return Axis(low, high, sorted(kept), title)
