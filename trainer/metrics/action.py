"""All metrics of one action for one model, with intervals: what evaluate reports for challenger, production and counting."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from trainer.errors import DataError
from trainer.metrics.calibration import ece
from trainer.metrics.decompose import Decomposition, decompose, free_normalised_loss
from trainer.metrics.loss import absolute_error, loss, normalised_loss, ratio
from trainer.metrics.ranking import auc, gauc, rank_correlation
from trainer.metrics.rows import Estimate, Rows, arrange, interval

BINARY = "binary"
KINDS = (BINARY, "count", "duration")


@dataclass(frozen=True)
class Value:
    """A metric with its user-clustered interval; all NaN where it is not defined, see `ActionMetrics.notes`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ActionMetrics:
    """Metrics of one action on one group of rows.

    Attributes:
        n: Judged rows (ripe label).
        positives: Rows with a positive label.
        users: Users with a judged row.
        values: Metric -> value. Binary: auc, gauc, ne, ne_free (NE with the scale taken out), log_loss and its parts miscalibration,
            discrimination, uncertainty (without intervals), ratio, ece. Others: rank_correlation, deviance (normalised), mae, ratio.
        notes: Why a metric is missing or says nothing: ``no rows``, ``one class``, ``constant score``, ``score not finite``.
    """

    n: int
    positives: int
    users: int
    values: dict[str, Value]
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, float | int | None]:
        """Returns ``{metric: value, n, positives}`` with null for what is not defined, as `summary.json` lists it."""
        values = {name: value.value if math.isfinite(value.value) else None for name, value in self.values.items()}
        return {**values, "n": self.n, "positives": self.positives}

    def intervals(self) -> dict[str, list[float] | None]:
        """Returns ``{metric: [low, high]}`` with null for what is not defined."""
        return {
            name: [value.low, value.high] if math.isfinite(value.low) and math.isfinite(value.high) else None
            for name, value in self.values.items()
        }


def evaluate_action(
    label_N: np.ndarray,
    score_N: np.ndarray,
    user_N: np.ndarray,
    *,
    kind: str = BINARY,
    group_N: np.ndarray | None = None,
    groups: int = 1,
    weight_N: np.ndarray | None = None,
    slate_N: np.ndarray | None = None,
    background: float | None = None,
    confidence: float = 0.95,
    bootstrap: int = 200,
    seed: int = 0,
) -> list[ActionMetrics]:
    """Evaluates one model on one action, in each group of rows.

    Args:
        label_N: Outcomes; NaN is not ripe, such rows are left out.
        score_N: The model's probabilities (binary) or expectations.
        user_N: User of each row, the unit of independence.
        kind: ``binary``, ``count`` or ``duration``.
        group_N: Group (slice value) of each row, 0 to groups - 1; default: one group of all rows.
        groups: Number of groups.
        weight_N: Row weights, 1 / sampling rate.
        slate_N: Request of each row, as dense codes: GAUC is then taken within requests, as the gate takes it; default: within users.
        background: Rate that NE is relative to; default: the mean label of these rows, the same for every model.
        confidence: Level of the intervals.
        bootstrap: Replicates for ECE.
        seed: Seed of the bootstrap.

    Returns:
        Metrics of each group.

    Raises:
        DataError: If a binary label is not 0 or 1, a label is negative, the kind is unknown, or lengths differ.
    """
    label_N = np.asarray(label_N, np.float64)
    score_N = np.asarray(score_N, np.float64)
    _check(label_N, score_N, np.asarray(user_N), kind)
    ripe_N = ~np.isnan(label_N)

    def kept(x_N: np.ndarray | None) -> np.ndarray | None:
        return None if x_N is None else np.asarray(x_N)[ripe_N]

    rows = arrange(np.asarray(user_N)[ripe_N], kept(group_N), groups, kept(weight_N))
    label_N, score_N = label_N[ripe_N], score_N[ripe_N]
    values = _estimates(kind, score_N, label_N, rows, kept(slate_N), background, confidence)
    if kind == BINARY:
        error = ece(score_N, label_N, rows, confidence=confidence, replicates=bootstrap, seed=seed)
        values |= _parts(decompose(kind, score_N, label_N, rows))
        values["ece"] = [Value(*three) for three in zip(error.value_G.tolist(), error.low_G.tolist(), error.high_G.tolist(), strict=True)]
    positives_G = np.bincount(rows.group_N, weights=label_N > 0, minlength=groups).astype(int)
    notes = _notes(kind, score_N, positives_G, rows)
    return [
        ActionMetrics(
            n=int(rows.n_G[g]), positives=int(positives_G[g]), users=int(rows.clusters_G[g]),
            values={name: value_G[g] for name, value_G in values.items()}, notes=notes[g],
        )
        for g in range(groups)
    ]  # fmt: skip


def _check(label_N: np.ndarray, score_N: np.ndarray, user_N: np.ndarray, kind: str) -> None:
    if kind not in KINDS:
        raise DataError("unknown kind of action", got=kind, expected=", ".join(KINDS))
    if not len(label_N) == len(score_N) == len(user_N):
        raise DataError("columns differ in length", got=f"{len(label_N)} labels, {len(score_N)} scores, {len(user_N)} users")
    known_N = label_N[~np.isnan(label_N)]
    if kind == BINARY and not np.isin(known_N, (0.0, 1.0)).all():
        raise DataError("a binary label is neither 0 nor 1", got=known_N[~np.isin(known_N, (0.0, 1.0))][0])
    if len(known_N) and not (known_N.min() >= 0 and np.isfinite(known_N.max())):
        raise DataError("a label is negative or infinite", got=f"{known_N.min()} to {known_N.max()}", expected="0 or more")


def _estimates(
    kind: str, score_N: np.ndarray, label_N: np.ndarray, rows: Rows, slate_N: np.ndarray | None, background: float | None, confidence: float
) -> dict[str, list[Value]]:
    estimates = (
        {
            "auc": auc(score_N, label_N, rows),
            "gauc": gauc(score_N, label_N, rows, slate_N),
            "ne": normalised_loss(kind, score_N, label_N, rows, background),
            "ne_free": free_normalised_loss(kind, score_N, label_N, rows, background),
            "log_loss": loss(kind, score_N, label_N, rows),
        }
        if kind == BINARY
        else {
            "rank_correlation": rank_correlation(score_N, label_N, rows),
            "deviance": normalised_loss(kind, score_N, label_N, rows, background),
            "mae": absolute_error(score_N, label_N, rows),
        }
    )
    values = {name: _values(estimate, rows, confidence) for name, estimate in estimates.items()}
    log_ratio = _values(ratio(score_N, label_N, rows).log(rows), rows, confidence)
    values["ratio"] = [Value(math.exp(v.value), math.exp(v.low), _exp(v.high)) for v in log_ratio]
    return values


def _parts(found: Decomposition) -> dict[str, list[Value]]:
    parts = {
        "miscalibration": found.miscalibration_G, "discrimination": found.discrimination_G, "uncertainty": found.uncertainty_G,
    }  # fmt: skip
    return {name: [Value(value, math.nan, math.nan) for value in part_G.tolist()] for name, part_G in parts.items()}


def _values(estimate: Estimate, rows: Rows, confidence: float) -> list[Value]:
    low_G, high_G = interval(estimate, rows, confidence)
    return [Value(*three) for three in zip(estimate.value_G.tolist(), low_G.tolist(), high_G.tolist(), strict=True)]


def _exp(x: float) -> float:
    return math.exp(x) if not x > 700 else math.inf  # beyond float64; NaN stays NaN


def _notes(kind: str, score_N: np.ndarray, positives_G: np.ndarray, rows: Rows) -> list[list[str]]:
    n_G = rows.n_G
    lowest_G, highest_G = np.full(rows.groups, np.inf), np.full(rows.groups, -np.inf)
    finite_N = np.isfinite(score_N)
    np.minimum.at(lowest_G, rows.group_N[finite_N], score_N[finite_N])
    np.maximum.at(highest_G, rows.group_N[finite_N], score_N[finite_N])
    bad_G = np.bincount(rows.group_N, weights=~finite_N, minlength=rows.groups)
    notes: list[list[str]] = []
    for g in range(rows.groups):
        if n_G[g] == 0:
            notes.append(["no rows"])
            continue
        found = []
        if positives_G[g] == 0 or (kind == BINARY and positives_G[g] == n_G[g]):
            found.append("one class")
        if bad_G[g]:
            found.append("score not finite")
        elif lowest_G[g] == highest_G[g]:
            found.append("constant score")
        notes.append(found)
    return notes
