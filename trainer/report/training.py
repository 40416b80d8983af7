"""Training curves: every step counts, a thousand points are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import counted, fixed, significant
from trainer.report.svg import Axis, Panel, linear_axis

MOST_POINTS = 400
SMOOTHING = 1 / 30  # of the steps: half-life of the smoothed loss


@dataclass(frozen=True)
class Training:
    """The section: a sentence and two panels."""

    sentence: str
    panels: list[Markup]


def training(run: Artefacts) -> Training | None:
    """Draws loss and gradient norm; None where no step was logged."""
    if not run.steps:
        return None
    step_N, loss_N, lr_N, norm_N = (np.array([entry[name] for entry in run.steps]) for name in ("step", "loss", "lr", "grad_norm"))
    skipped_N = np.array([entry["skipped"] for entry in run.steps])
    good_N = np.isfinite(loss_N) & ~skipped_N
    if not good_N.any():
        return Training(f"{counted(len(step_N), 'step')}, all skipped as not finite.", [])
    smooth_N = smoothed(np.where(good_N, loss_N, np.nan))
    across = linear_axis(float(step_N[0]), float(step_N[-1]), "optimizer step", tight=True)
    begin, end = smooth_N[good_N][min(int(good_N.sum()) // 3, 10)], smooth_N[good_N][-1]  # the first steps are hardly smoothed
    sentence = (
        f"{counted(len(step_N), 'step')}, {int(skipped_N.sum()):,} skipped as not finite; "
        f"smoothed loss from {fixed(begin)} to {fixed(end)}; "
        f"learning-rate factor {significant(float(lr_N[0]))} at the first step, {significant(float(np.nanmax(lr_N)))} at most, "
        f"{significant(float(lr_N[-1]))} at the last."
    )
    clip = run.setting("optimizer", "clip_norm")
    panels = [
        _loss(across, step_N, np.where(good_N, loss_N, np.nan), smooth_N, skipped_N, sentence),
        _norm(across, step_N, np.where(good_N, norm_N, np.nan), clip if isinstance(clip, int | float) else None),
    ]
    return Training(sentence, panels)


def smoothed(loss_N: np.ndarray) -> np.ndarray:
    """Exponential moving average with bias correction; steps that are not finite are passed over."""
    decay = 0.5 ** (1 / max(1.0, SMOOTHING * len(loss_N)))
    total = weight = 0.0
    out_N = np.full(len(loss_N), np.nan)
    for index, loss in enumerate(loss_N.tolist()):
        if loss == loss:
            total, weight = decay * total + (1 - decay) * loss, decay * weight + (1 - decay)
        out_N[index] = total / weight if weight else np.nan
    return out_N


def binned(x_N: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns x, mean, lowest and highest y of at most `MOST_POINTS` runs of neighbours, so that no spike is lost."""
    runs = np.array_split(np.arange(len(x_N)), min(len(x_N), MOST_POINTS))
    rows = []
    for index in runs:
        known = y_N[index][np.isfinite(y_N[index])]
        rows.append((x_N[index].mean(), *((known.mean(), known.min(), known.max()) if len(known) else (np.nan,) * 3)))
    x_B, mean_B, low_B, high_B = np.array(rows).T
    return x_B, mean_B, low_B, high_B


def _loss(across: Axis, step_N: np.ndarray, loss_N: np.ndarray, smooth_N: np.ndarray, skipped_N: np.ndarray, sentence: str) -> Markup:
    known_N = loss_N[np.isfinite(loss_N)]
    low, high = float(known_N.min()), float(np.quantile(known_N, 0.995))  # one spike must not flatten the curve
    panel = Panel("loss", "Training loss by step", sentence, across, linear_axis(low, max(high, float(np.nanmax(smooth_N))), "loss"))
    x_B, mean_B, low_B, high_B = binned(step_N, loss_N)
    if len(step_N) > MOST_POINTS:
        panel.band(x_B, low_B, high_B, "challenger")
    else:
        panel.line(x_B, mean_B, "challenger thin")
    panel.line(*binned(step_N, smooth_N)[:2], "challenger")
    panel.rug(step_N[skipped_N], "bad")
    return panel.svg()


def _norm(across: Axis, step_N: np.ndarray, norm_N: np.ndarray, clip: float | None) -> Markup:
    known_N = norm_N[np.isfinite(norm_N)]
    high = float(np.quantile(known_N, 0.995)) if len(known_N) else 1.0
    words = f"highest {significant(float(known_N.max()))}" if len(known_N) else "none finite"
    panel = Panel(
        "norm", "Gradient norm before clipping, by step", words, across, linear_axis(0.0, max(high, clip or 0.0), "gradient norm")
    )
    panel.line(*binned(step_N, norm_N)[:2], "plain")
    if clip:
        panel.line([across.low, across.high], [clip, clip], "rule")
    return panel.svg()
