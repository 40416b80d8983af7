"""Metrics with user-clustered uncertainty; numpy only, shared by evaluate and the gate."""

from trainer.metrics.action import ActionMetrics, Value, evaluate_action
from trainer.metrics.calibration import ecce, ece
from trainer.metrics.decompose import Decomposition, decompose, free_normalised_loss
from trainer.metrics.loss import absolute_error, loss, normalised_loss, ratio, row_loss
from trainer.metrics.ranking import auc, concentration, gauc, ndcg, rank_biased_overlap, rank_correlation, users_with_mixed_slates
from trainer.metrics.rows import Estimate, Rows, Spread, arrange, interval, mean, quotient, spread

__all__ = [
    "ActionMetrics",
    "Decomposition",
    "Estimate",
    "Rows",
    "Spread",
    "Value",
    "absolute_error",
    "arrange",
    "auc",
    "concentration",
    "decompose",
    "ecce",
    "ece",
    "evaluate_action",
    "free_normalised_loss",
    "gauc",
    "interval",
    "loss",
    "mean",
    "ndcg",
    "normalised_loss",
    "quotient",
    "rank_biased_overlap",
    "rank_correlation",
    "ratio",
    "row_loss",
    "spread",
    "users_with_mixed_slates",
]
