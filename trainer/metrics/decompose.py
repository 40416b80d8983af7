"""Why a loss is what it is: scale against order. NE with the scale taken out, and the CORP decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from trainer.metrics.loss import CLIP, normalised_loss, row_loss
from trainer.metrics.ranking import finite, sort_within
from trainer.metrics.rows import Estimate, Rows

_STEPS = 60  # a group of one class never meets its mean: its bracket shrinks to the end, which these steps reach
_FARTHEST = 40.0


def free_normalised_loss(kind: str, score_N: np.ndarray, label_N: np.ndarray, rows: Rows, background: float | None = None) -> Estimate:
    """NE after every group's scores were rescaled until ``sum p = sum y``: what is left is order and spread, not scale.

    Odds are multiplied (binary), or expectations (others). That factor minimises the loss, so to first order its own noise adds
    nothing, and the influence is that of NE at the rescaled scores.

    Args:
        kind: Kind of the action.
        score_N: Scores.
        label_N: Outcomes.
        rows: Groups, clusters, weights.
        background: As in `normalised_loss`.
    """
    score_N, good_G = finite(score_N, rows)
    scaled_N = _odds_scaled(score_N, label_N, rows) if kind == "binary" else _scaled(score_N, label_N, rows)
    estimate = normalised_loss(kind, scaled_N, label_N, rows, background)
    return Estimate(np.where(good_G, estimate.value_G, np.nan), np.where(good_G[rows.group_N], estimate.influence_N, 0.0))


def _scaled(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> np.ndarray:
    total_G, wanted_G = rows.sum_G(rows.weight_N * score_N), rows.sum_G(rows.weight_N * label_N)
    factor_G = np.divide(wanted_G, total_G, out=np.ones(rows.groups), where=total_G > 0)
    return score_N * factor_G[rows.group_N]


def _odds_scaled(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> np.ndarray:
    """Shifts logits by one number a group until the mean score is the mean label: Newton's steps, kept within a bracket."""
    z_N = logit(np.clip(score_N, CLIP, 1 - CLIP))
    wanted_G, total_G = rows.sum_G(rows.weight_N * label_N), np.maximum(rows.total_G, 1e-300)
    low_G, high_G, shift_G = np.full(rows.groups, -_FARTHEST), np.full(rows.groups, _FARTHEST), np.zeros(rows.groups)
    for _ in range(_STEPS):
        p_N = expit(z_N + shift_G[rows.group_N])
        off_G = rows.sum_G(rows.weight_N * p_N) - wanted_G
        if (np.abs(off_G) <= 1e-12 * total_G).all():
            break
        low_G, high_G = np.where(off_G < 0, shift_G, low_G), np.where(off_G > 0, shift_G, high_G)
        slope_G = rows.sum_G(rows.weight_N * p_N * (1 - p_N))
        step_G = shift_G - np.divide(off_G, slope_G, out=np.full(rows.groups, np.inf), where=slope_G > 0)
        shift_G = np.where((low_G < step_G) & (step_G < high_G), step_G, (low_G + high_G) / 2)
    return expit(z_N + shift_G[rows.group_N])


@dataclass(frozen=True)
class Decomposition:
    """``loss = miscalibration - discrimination + uncertainty``, a group; NaN where there is no row or a score is not finite.

    Attributes:
        miscalibration_G: What recalibration would gain: loss less the loss of the isotonic fit.
        discrimination_G: What the order is worth: loss of the mean label less the loss of the isotonic fit.
        uncertainty_G: Loss of the mean label.
    """

    miscalibration_G: np.ndarray
    discrimination_G: np.ndarray
    uncertainty_G: np.ndarray


def decompose(kind: str, score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Decomposition:
    """CORP decomposition of the mean loss by isotonic regression of labels on scores (Dimitriadis, Gneiting and Jordan, PNAS 2021).

    Args:
        kind: Kind of the action: log loss (binary) or half the Poisson deviance.
        score_N: Scores.
        label_N: Outcomes.
        rows: Groups and weights.
    """
    score_N, good_G = finite(score_N, rows)
    fitted_N, mean_G = _isotonic(score_N, label_N, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        model_G, fit_G, flat_G = (
            rows.sum_G(rows.weight_N * row_loss(kind, p_N, label_N)) / rows.total_G for p_N in (score_N, fitted_N, mean_G[rows.group_N])
        )
    undefined_G = ~good_G | ~(rows.total_G > 0)
    parts = (model_G - fit_G, flat_G - fit_G, flat_G)
    return Decomposition(*(np.where(undefined_G, np.nan, part_G) for part_G in parts))


def _isotonic(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic fit of each row within its group, tied scores pooled first, and the mean label of each group."""
    order = sort_within(score_N, rows.group_N, rows.groups)
    weight_N = rows.weight_N[order.order_N]
    weight_B = np.bincount(order.block_N, weights=weight_N)
    sum_B = np.bincount(order.block_N, weights=weight_N * label_N[order.order_N])
    mean_B = np.divide(sum_B, weight_B, out=np.zeros(len(sum_B)), where=weight_B > 0)
    first_B = np.concatenate([[0], order.end_B[:-1]]).astype(np.int64) if len(order.end_B) else np.zeros(0, np.int64)
    group_B = rows.group_N[order.order_N[first_B]] if len(first_B) else np.zeros(0, np.int64)
    fitted_B, mean_G = np.zeros(len(mean_B)), np.zeros(rows.groups)
    edges = np.searchsorted(group_B, np.arange(rows.groups + 1))
    for group in range(rows.groups):
        part = slice(int(edges[group]), int(edges[group + 1]))
        if weight_B[part].sum() > 0:
            fitted_B[part] = isotonic_regression(mean_B[part], weights=np.maximum(weight_B[part], 1e-300)).x
            mean_G[group] = sum_B[part].sum() / weight_B[part].sum()
    fitted_N = np.empty(len(score_N))
    fitted_N[order.order_N] = fitted_B[order.block_N]
    return fitted_N, mean_G
