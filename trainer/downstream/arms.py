"""What the exported features are worth to the final model, on rows that nothing behind them was trained on.

Two leaks are shut out. The rows are the holdout: the ranker's weights have never seen them, else its score would carry their labels
and the final model would trust it too much. And each final model is judged on users that it was not trained on: users are split into
two halves by a hash; a model trained on one half predicts the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.config import DownstreamConfig
from trainer.downstream.booster import Booster, LightGBM
from trainer.downstream.features import Encoder, check_columns
from trainer.downstream.table import labels_of, newest, ripe, weights_of
from trainer.errors import ConfigError
from trainer.metrics import Estimate, Rows, arrange, auc, interval, normalised_loss, ratio
from trainer.schema.downstream import NOT_TESTABLE, OK, WITH, WITHOUT, Arm, DownstreamReport, Interval
from trainer.schema.ids import hash_ids

FOLDS = 2
STOP_SHARE = 5  # one user in five of the training half decides when boosting stops

MIN_ROWS = 500
MIN_USERS = 40
MIN_CLASS_ROWS = 25  # of each class, in each half

TOP_FEATURES = 20


def lift(
    table: pa.Table,
    action: str,
    feature_columns: Sequence[str],
    embedding_columns: Sequence[str],
    config: DownstreamConfig,
    seed: int,
    booster: Booster | None = None,
) -> DownstreamReport:
    """Compares the final model with and without the exported features.

    Args:
        table: Holdout rows, unseen by the ranker's weights: user, label_<action>, optional weight, and the columns below.
        action: Binary action.
        feature_columns: Features of the arm ``without``.
        embedding_columns: What the arm ``with`` has on top: pair scalars, vectors (fixed-size lists).
        config: Size of the model.
        seed: Seed.
        booster: Library; default LightGBM.

    Returns:
        The report; status ``not_testable`` with the reason where the rows cannot tell.

    Raises:
        ConfigError: If a column is absent or named twice, or the library is not installed.
        DataError: If a label, weight, user or feature cannot be used.
    """
    if not embedding_columns:
        raise ConfigError("no exported features to judge", where="embedding_columns")
    for columns in (["user"], list(feature_columns), [*feature_columns, *embedding_columns]):
        check_columns(table, columns)
    table = newest(ripe(table, action), config.max_rows)
    label_N, weight_N = labels_of(table, action), weights_of(table)
    user_N = hash_ids(table["user"])
    fold_N = (user_N % np.uint64(FOLDS)).astype(np.int64)
    report = DownstreamReport(
        status=OK, action=action, rows=len(label_N), users=len(np.unique(user_N)), positives=int((label_N > 0).sum()), seed=seed
    )
    if reason := _not_testable(label_N, fold_N, report):
        return dataclasses.replace(report, status=NOT_TESTABLE, reason=reason)
    booster = booster or LightGBM(config.trees, config.leaves, config.learning_rate, config.threads, seed)
    stop_N = user_N // np.uint64(FOLDS) % np.uint64(STOP_SHARE) == 0
    sample = _Sample(table, label_N, weight_N, fold_N, stop_N)
    arms = {WITHOUT: _cross_fit(sample, feature_columns, booster)}
    arms[WITH] = _cross_fit(sample, [*feature_columns, *embedding_columns], booster)
    return _judged(report, arms, label_N, arrange(user_N, weight_N=weight_N))


@dataclass(frozen=True)
class _Sample:
    table: pa.Table
    label_N: np.ndarray
    weight_N: np.ndarray
    fold_N: np.ndarray
    stop_N: np.ndarray


@dataclass(frozen=True)
class _CrossFit:
    score_N: np.ndarray
    features: int
    trees: list[int]
    gain: dict[str, float]


def _not_testable(label_N: np.ndarray, fold_N: np.ndarray, report: DownstreamReport) -> str | None:
    if report.rows < MIN_ROWS:
        return f"{report.rows} rows with a ripe label; {MIN_ROWS} are needed"
    if report.users < MIN_USERS:
        return f"{report.users} users; {MIN_USERS} are needed"
    for fold in range(FOLDS):
        positives, rows = int((label_N[fold_N == fold] > 0).sum()), int((fold_N == fold).sum())
        if min(positives, rows - positives) < MIN_CLASS_ROWS:
            return f"{positives} positives among {rows} rows in one half of the users; {MIN_CLASS_ROWS} of each class are needed"
    return None


def _cross_fit(sample: _Sample, columns: Sequence[str], booster: Booster) -> _CrossFit:
    """Scores each half of the users by a model that was trained on the other."""
    score_N = np.full(len(sample.label_N), np.nan)
    trees: list[int] = []
    gain: dict[str, float] = {}
    width = 0
    for fold in range(FOLDS):
        judged_N = sample.fold_N == fold
        train = sample.table.filter(pa.array(~judged_N))
        encoder = Encoder.fit(train, columns)
        features = encoder.encode(train)
        stop_N = sample.stop_N[~judged_N]
        model = booster.fit(features, sample.label_N[~judged_N], sample.weight_N[~judged_N], stop_N if stop_N.any() else None)
        score_N[judged_N] = model.predict(encoder.encode(sample.table.filter(pa.array(judged_N))))
        trees.append(model.trees)
        width = len(features.names)
        for name, value in model.importance().items():
            gain[name] = gain.get(name, 0.0) + value
    return _CrossFit(score_N, width, trees, gain)


def _judged(report: DownstreamReport, arms: dict[str, _CrossFit], label_N: np.ndarray, rows: Rows) -> DownstreamReport:
    ne = {name: normalised_loss("binary", arm.score_N, label_N, rows) for name, arm in arms.items()}
    area = {name: auc(arm.score_N, label_N, rows) for name, arm in arms.items()}
    return dataclasses.replace(
        report,
        arms={
            name: Arm(
                features=arm.features, trees=arm.trees, ne=_interval(ne[name], rows), auc=_interval(area[name], rows),
                ratio=_interval(ratio(arm.score_N, label_N, rows), rows),
            )
            for name, arm in arms.items()
        },
        lift={"ne": _interval(ne[WITH].minus(ne[WITHOUT]), rows), "auc": _interval(area[WITH].minus(area[WITHOUT]), rows)},
        importance=_shares(arms[WITH].gain),
    )  # fmt: skip


def _interval(estimate: Estimate, rows: Rows) -> Interval:
    low_G, high_G = interval(estimate, rows)
    ends = [float(end_G[0]) if np.isfinite(end_G[0]) else None for end_G in (low_G, high_G)]
    return Interval(value=float(estimate.value_G[0]), low=ends[0], high=ends[1])


def _shares(gain: dict[str, float]) -> dict[str, float]:
    total = sum(gain.values()) or 1.0
    ordered = sorted(gain.items(), key=lambda item: (-item[1], item[0]))
    return {name: value / total for name, value in ordered[:TOP_FEATURES]}
