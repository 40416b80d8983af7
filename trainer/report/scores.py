"""What the charts of the scores show, computed from the predictions: a million rows become a few dozen numbers each.

Shapes: N rows, B bins, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import DataError
from trainer.metrics import arrange, interval, mean
from trainer.metrics.calibration import equal_mass_bins
from trainer.schema.predictions import CHALLENGER, CONTINUED, COUNTING, LABEL, LIGHTGBM, PRODUCTION, WEIGHT

BINARY = "binary"
MOST_BINS, FEWEST_BINS = 12, 3
POSITIVES_PER_BIN = 15  # fewer, and a bin shows luck rather than calibration
DENSITY_BINS = 60
QUANTILES_Q = np.array([0.001, 0.002, 0.005, 0.01, 0.02, *np.linspace(0.05, 0.95, 19), 0.98, 0.99, 0.995, 0.998, 0.999])
FLOOR = 1e-7  # probabilities are drawn on a logit scale, which has no place for 0 and 1
MODELS = {
    "challenger": CHALLENGER, "production": PRODUCTION, "counting": COUNTING, "continued": CONTINUED, "lightgbm": LIGHTGBM,
}  # fmt: skip
PAIR = ("production", "challenger")


@dataclass(frozen=True)
class ActionScores:
    """One action of the predictions.

    Attributes:
        name: Action.
        kind: ``binary`` if every ripe label is 0 or 1 and no score exceeds 1, else ``count``.
        label_N: Outcomes, NaN where not ripe.
        user_N: User codes.
        weight_N: Row weights.
        scores: Model -> scores, NaN where null.
    """

    name: str
    kind: str
    label_N: np.ndarray
    user_N: np.ndarray
    weight_N: np.ndarray
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class Reliability:
    """Equal-mass bins of one model's scores.

    Attributes:
        predicted_B: Mean score of each bin.
        observed_B: Mean label.
        low_B: Lower end of the user-clustered interval of the mean label.
        high_B: Upper end.
    """

    predicted_B: np.ndarray
    observed_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray


@dataclass(frozen=True)
class Distributions:
    """Scores of both models, on a stretched scale (logit of a probability, log of an expectation).

    Attributes:
        edges_B: Edges of the histogram's bins, B + 1.
        density: Model -> share of the rows in each bin.
        quantiles: Model -> quantiles at `QUANTILES_Q`.
    """

    edges_B: np.ndarray
    density: dict[str, np.ndarray]
    quantiles: dict[str, np.ndarray]


def read_scores(path: Path) -> list[ActionScores]:
    """Reads the actions that have a label and a challenger column.

    Raises:
        DataError: If the file is no Parquet, lacks users, or a column is not numeric.
    """
    try:
        names = pq.read_schema(path).names
        actions = [name.removeprefix(LABEL) for name in names if name.startswith(LABEL) and CHALLENGER + name.removeprefix(LABEL) in names]
        own = {"user", WEIGHT, *(prefix + action for action in actions for prefix in (LABEL, *MODELS.values()))}
        table = pq.read_table(path, columns=[name for name in names if name in own])
        user_N = _codes(table["user"])
        weight_N = _floats(table, WEIGHT) if WEIGHT in names else np.ones(len(table))
        weight_N = np.where(np.isfinite(weight_N) & (weight_N > 0), weight_N, 0.0)
        return [_action(table, action, user_N, weight_N) for action in actions]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError("cannot read the predictions", where=path, got=str(error).splitlines()[0]) from error


def _action(table: pa.Table, name: str, user_N: np.ndarray, weight_N: np.ndarray) -> ActionScores:
    label_N = _floats(table, LABEL + name)
    scores = {model: _floats(table, prefix + name) for model, prefix in MODELS.items() if prefix + name in table.column_names}
    highest = max((float(np.nanmax(scores[model], initial=0.0)) for model in PAIR if model in scores), default=0.0)
    binary = bool(np.isin(label_N[~np.isnan(label_N)], (0.0, 1.0)).all()) and highest <= 1
    return ActionScores(name, BINARY if binary else "count", label_N, user_N, weight_N, scores)


def reliability(action: ActionScores, model: str) -> Reliability | None:
    """Bins a model's scores into equal masses, fewer where positives are rare; None where fewer than two bins have a ripe label."""
    kept_N = np.isfinite(action.label_N) & np.isfinite(action.scores[model])
    label_N, score_N, user_N, weight_N = (x_N[kept_N] for x_N in (action.label_N, action.scores[model], action.user_N, action.weight_N))
    if not len(label_N):
        return None
    positives = int((label_N > 0).sum())
    rarer = min(positives, len(label_N) - positives) if action.kind == BINARY else positives
    bins = int(np.clip(rarer // POSITIVES_PER_BIN, FEWEST_BINS, MOST_BINS))
    bin_N = equal_mass_bins(score_N, arrange(user_N, weight_N=weight_N), bins)
    rows = arrange(user_N, bin_N, bins, weight_N)
    observed = mean(label_N, rows)
    low_B, high_B = interval(observed, rows)
    filled_B = rows.total_G > 0
    if filled_B.sum() < 2:
        return None
    predicted_B = mean(score_N, rows).value_G
    return Reliability(*(x_B[filled_B] for x_B in (predicted_B, observed.value_G, low_B, high_B)))


def stretched(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the scale on which scores are drawn: base-10 logit for probabilities, base-10 logarithm for expectations."""

    def logit(score_N: np.ndarray) -> np.ndarray:
        clipped_N = np.clip(score_N, FLOOR, 1 - FLOOR)
        return np.log10(clipped_N) - np.log10(1 - clipped_N)

    def log(score_N: np.ndarray) -> np.ndarray:
        return np.log10(np.maximum(score_N, FLOOR))

    return logit if kind == BINARY else log


def distributions(action: ActionScores) -> Distributions | None:
    """Compares the scores of all rows, ripe or not; None where no score is finite."""
    transform = stretched(action.kind)
    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for model in (model for model in PAIR if model in action.scores):
        score_N = action.scores[model]
        kept_N = np.isfinite(score_N) & (action.weight_N > 0)
        if kept_N.any():
            values[model] = (transform(score_N[kept_N]), action.weight_N[kept_N])
    if not values:
        return None
    quantiles = {model: weighted_quantiles(x_N, weight_N, QUANTILES_Q) for model, (x_N, weight_N) in values.items()}
    low, high = min(q[0] for q in quantiles.values()), max(q[-1] for q in quantiles.values())
    pad = 0.02 * (high - low) or 0.5
    edges_B = np.linspace(low - pad, high + pad, DENSITY_BINS + 1)
    density = {}
    for model, (x_N, weight_N) in values.items():
        density[model] = np.histogram(x_N, edges_B, weights=weight_N)[0] / weight_N.sum()
    return Distributions(edges_B, density, quantiles)


def weighted_quantiles(x_N: np.ndarray, weight_N: np.ndarray, at_Q: np.ndarray) -> np.ndarray:
    """Returns the smallest values that hold at least the shares `at_Q` of the weight."""
    order_N = np.argsort(x_N, kind="stable")
    share_N = np.cumsum(weight_N[order_N])
    index_Q = np.searchsorted(share_N, at_Q * share_N[-1])
    return x_N[order_N][np.minimum(index_Q, len(x_N) - 1)]


def _floats(table: pa.Table, name: str) -> np.ndarray:
    column: Any = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False)
