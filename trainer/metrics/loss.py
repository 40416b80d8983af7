"""Proper losses with influence functions: log loss and NE for binary actions, deviance and absolute error for the others."""

from __future__ import annotations

import numpy as np

from trainer.metrics.ranking import finite
from trainer.metrics.rows import Estimate, Rows, mean, only_where, quotient

CLIP = 1e-7  # scores are written as float32; a probability closer to 0 or 1 is a rounding, not a claim


def row_loss(kind: str, score_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Loss of each row whose expectation the true mean minimises.

    Args:
        kind: ``binary`` (log loss), else half the Poisson deviance ``y log(y / p) - (y - p)``, a Bregman loss for any label >= 0.
        score_N: Probability or expectation.
        label_N: Outcome; of a binary one also its true probability, which gives the loss expected over outcomes.
    """
    if kind == "binary":
        p_N = np.clip(score_N, CLIP, 1 - CLIP)
        return -(label_N * np.log(p_N) + (1 - label_N) * np.log1p(-p_N))
    p_N = np.maximum(score_N, CLIP)
    return label_N * np.log(np.maximum(label_N, CLIP) / p_N) - label_N + p_N


def loss(kind: str, score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Estimate:
    """Mean of `row_loss` in each group: log loss in nats, or half the mean deviance."""
    score_N, good_G = finite(score_N, rows)
    return only_where(mean(row_loss(kind, score_N, label_N), rows), good_G, rows)


def normalised_loss(kind: str, score_N: np.ndarray, label_N: np.ndarray, rows: Rows, background: float | None = None) -> Estimate:
    """NE (He et al., 2014): loss over the loss of predicting the background rate; below 1 is better than knowing only the rate.

    Args:
        kind: Kind of the action.
        score_N: Scores.
        label_N: Outcomes.
        rows: Groups, clusters, weights.
        background: One rate for every group and model; default: the mean label over all groups. That it is estimated adds nothing to
            the influence: the mean label minimises the background's loss, so its derivative is 0 (over all rows; in a group of
            several the rate is taken as known).
    """
    score_N, good_G = finite(score_N, rows)
    model_N = row_loss(kind, score_N, label_N)
    total = rows.weight_N.sum()
    rate = background if background is not None else (float(rows.weight_N @ label_N) / total if total > 0 else 0.0)
    informative = 0 < rate < 1 if kind == "binary" else rate > 0
    base_N = row_loss(kind, np.full(len(label_N), rate), label_N)
    estimate = quotient(model_N, base_N, rows)
    return only_where(estimate, good_G & informative, rows)


def absolute_error(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Estimate:
    """Mean absolute error in each group, in the label's unit."""
    score_N, good_G = finite(score_N, rows)
    return only_where(mean(np.abs(score_N - label_N), rows), good_G, rows)


def ratio(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Estimate:
    """Calibration ratio ``sum p / sum y`` in each group; NaN without a positive. Test and bound it on the log scale."""
    score_N, good_G = finite(score_N, rows)
    return only_where(quotient(score_N, label_N, rows), good_G, rows)
