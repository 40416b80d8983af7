"""LightGBM on the same earlier days and features: the model that a careful team would have without a neural ranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from trainer.config import DownstreamConfig
from trainer.downstream.booster import OBJECTIVES, LightGBM, library
from trainer.downstream.features import Encoder
from trainer.downstream.table import labels_of, newest, ripe, weights_of
from trainer.errors import ConfigError, DataError, nearest


def baseline(
    train: pa.Table, holdout: pa.Table, actions: Mapping[str, str], feature_columns: Sequence[str], config: DownstreamConfig, seed: int
) -> dict[str, np.ndarray]:
    """Trains one model an action on earlier days and scores the holdout; all rounds, no early stopping, nothing tuned on the holdout.

    Args:
        train: Rows of earlier days: label_<action>, optional weight, request_time, and the features.
        holdout: Rows to score; labels are not read.
        actions: Action -> kind: binary, count or duration.
        feature_columns: Point-in-time features; categories are coded by the training rows only.
        config: Size of the models.
        seed: Seed.

    Returns:
        Action -> scores of the holdout's rows, float64 [N]: probabilities, or expectations.

    Raises:
        ConfigError: If a column is absent, a kind unknown, or LightGBM not installed.
        DataError: If no training row has a ripe label, or a label, weight or feature cannot be used.
    """
    library()
    for action, kind in actions.items():
        if kind not in OBJECTIVES:
            raise ConfigError("unknown kind of action", where=action, got=kind, remedy=nearest(kind, OBJECTIVES))
    scores = {}
    for action, kind in actions.items():
        rows = newest(ripe(train, action, kind), config.max_rows)
        if not rows.num_rows:
            raise DataError("no training row has a ripe label", where=f"label_{action}", remedy="train on more days")
        label_N, weight_N = labels_of(rows, action), weights_of(rows)
        if (label_N == label_N[0]).all():
            scores[action] = np.full(holdout.num_rows, label_N[0])  # nothing to learn: every row had the same outcome
            continue
        encoder = Encoder.fit(rows, feature_columns)
        booster = LightGBM(config.trees, config.leaves, config.learning_rate, config.threads, seed, kind)
        model = booster.fit(encoder.encode(rows), label_N, weight_N)
        scores[action] = model.predict(encoder.encode(holdout)) if holdout.num_rows else np.empty(0)
        if kind != "binary":
            scores[action] = np.maximum(scores[action], 0.0)  # squared loss may predict a little below nothing
    return scores
