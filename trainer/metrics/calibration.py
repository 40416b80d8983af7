"""Calibration error by bins (ECE) and without bins (ECCE), with user-clustered uncertainty.

Neither has an influence function where a bin's error is 0, which is where a calibrated model lives. Uncertainty comes from a wild
bootstrap over users: the residuals of a user keep their size and flip their sign together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import erf, erfc, exp, pi, sqrt

import numpy as np

from trainer.metrics.ranking import finite, sort_within
from trainer.metrics.rows import Rows

BINS = 15
FINE_BINS = 200  # resolution of the cumulative curve: its range is found to within half a per cent of the rows
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class BinnedError:
    """An error estimate a group with its interval; NaN where it is not defined."""

    value_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray


@dataclass(frozen=True)
class CumulativeError:
    """Range of the cumulative calibration error, and the probability of one as large from a calibrated model."""

    value_G: np.ndarray
    p_G: np.ndarray


def equal_mass_bins(score_N: np.ndarray, rows: Rows, bins: int) -> np.ndarray:
    """Bin of each row, 0 to bins - 1, with equal weight a bin within each group; tied scores share a bin."""
    order = sort_within(score_N, rows.group_N, rows.groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        rank_N = 1 - order.above(rows.weight_N) / rows.total_G[rows.group_N]  # midrank in (0, 1)
    return np.clip(np.nan_to_num(rank_N) * bins, 0, bins - 1).astype(np.int64)


def _cluster_bins(x_N: np.ndarray, bin_N: np.ndarray, rows: Rows, bins: int) -> np.ndarray:
    """Sums of a row quantity by (cluster, bin): C x bins."""
    cells = np.bincount(rows.cluster_N * bins + bin_N, weights=x_N, minlength=len(rows.cluster_group_C) * bins)
    return cells.reshape(-1, bins)


def _wild_sums(sums_CB: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Sign-flipped totals of one group's clusters: replicates x bins."""
    totals_RB = np.zeros((replicates, sums_CB.shape[1]))
    chunk = max(1, _CHUNK_BYTES // (4 * replicates))
    for start in range(0, len(sums_CB), chunk):
        block_CB = sums_CB[start : start + chunk].astype(np.float32)
        signs_RC = rng.integers(0, 2, (replicates, len(block_CB)), dtype=np.int8).astype(np.float32) * 2 - 1
        totals_RB += signs_RC @ block_CB
    return totals_RB


def _group_slices(rows: Rows) -> list[slice]:
    edges = np.concatenate([[0], np.cumsum(rows.clusters_G)]).tolist()
    return [slice(start, end) for start, end in pairwise(edges)]


def ece(
    score_N: np.ndarray,
    label_N: np.ndarray,
    rows: Rows,
    *,
    bins: int = BINS,
    confidence: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> BinnedError:
    """Expected calibration error over equal-mass bins, debiased.

    A calibrated model has a positive plug-in ECE from label noise alone (about 7 % of the base rate at 20,000 rows). So the errors
    of the bins are shrunk by one factor until their expected absolute sum, with each bin's user-clustered normal noise added, is the
    sum that was observed. (Subtracting a resampled bias, as Kumar, Liang and Ma, 2019, do, leaves more than half of it at 0.)

    Args:
        score_N: Probabilities or expectations.
        label_N: Outcomes.
        rows: Groups, clusters, weights.
        bins: Bins a group.
        confidence: Level of the interval.
        replicates: Bootstrap replicates; 0 leaves the interval NaN.
        seed: Seed of the bootstrap.
    """
    score_N, good_G = finite(score_N, rows)
    sums_CB = _cluster_bins(rows.weight_N * (score_N - label_N), equal_mass_bins(score_N, rows, bins), rows, bins)
    rng = np.random.default_rng(seed)
    out_3G = np.full((3, rows.groups), np.nan)
    for group, part in enumerate(_group_slices(rows)):
        if good_G[group] and rows.total_G[group] > 0:
            out_3G[:, group] = _ece_of(sums_CB[part] / rows.total_G[group], confidence, replicates, rng)
    return BinnedError(*out_3G)


def _ece_of(sums_CB: np.ndarray, confidence: float, replicates: int, rng: np.random.Generator) -> tuple[float, float, float]:
    clusters = len(sums_CB)
    error_B = sums_CB.sum(axis=0)
    se_B = np.sqrt(((sums_CB - error_B / clusters) ** 2).sum(axis=0) * clusters / max(clusters - 1, 1))
    value = _explained(error_B, se_B)
    if replicates == 0 or clusters < 2:
        return value, float("nan"), float("nan")
    resampled_R = np.abs(error_B + _wild_sums(sums_CB - error_B / clusters, replicates, rng)).sum(axis=1)
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(resampled_R, [tail, 1 - tail]) - resampled_R.mean()
    return value, max(0.0, value - float(upper)), max(0.0, value - float(lower))


def _explained(error_B: np.ndarray, se_B: np.ndarray) -> float:
    """The sum of true errors whose expectation, noise added, is the sum that was observed; 0 where noise alone explains it."""
    observed = float(np.abs(error_B).sum())

    def expected(shrink: float) -> float:
        return sum(_folded_mean(shrink * e, s) for e, s in zip(error_B.tolist(), se_B.tolist(), strict=True))

    low, high = 0.0, 1.0
    if expected(low) >= observed:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < observed else (low, middle)
    return low * observed


def _folded_mean(center: float, sd: float) -> float:
    """Mean of ``|X|`` for a normal X."""
    if sd == 0:
        return abs(center)
    ratio = center / sd
    return sd * sqrt(2 / pi) * exp(-ratio * ratio / 2) + center * erf(ratio / sqrt(2))


def ecce(score_N: np.ndarray, label_N: np.ndarray, rows: Rows, *, replicates: int = 400, seed: int = 0) -> CumulativeError:
    """Range (Kuiper) of the cumulative calibration error in score order, over the mean label (Arrieta-Ibarra et al., JMLR 2022).

    Args:
        score_N: Probabilities or expectations.
        label_N: Outcomes.
        rows: Groups, clusters, weights.
        replicates: Bootstrap replicates; 0 leaves the p-values NaN.
        seed: Seed of the bootstrap.

    Returns:
        The range as a share of the base rate, and its p-value. Below ``1 / replicates`` the p-value follows the tail of the range of
        Brownian motion, scaled to the bootstrap's own 95 % point, since no affordable number of replicates resolves it.
    """
    score_N, good_G = finite(score_N, rows)
    sums_CB = _cluster_bins(rows.weight_N * (score_N - label_N), equal_mass_bins(score_N, rows, FINE_BINS), rows, FINE_BINS)
    base_G = rows.sum_G(rows.weight_N * label_N)
    rng = np.random.default_rng(seed)
    value_G, p_G = np.full(rows.groups, np.nan), np.full(rows.groups, np.nan)
    for group, part in enumerate(_group_slices(rows)):
        if good_G[group] and base_G[group] > 0 and len(sums_CB[part]) > 1:
            observed = float(_range(sums_CB[part].sum(axis=0)[None])[0])
            value_G[group] = observed / base_G[group]
            if replicates:
                p_G[group] = _tail(observed, _range(_wild_sums(sums_CB[part], replicates, rng)))
    return CumulativeError(value_G, p_G)


def _range(sums_RB: np.ndarray) -> np.ndarray:
    path_RB = np.cumsum(sums_RB, axis=1)
    return np.maximum(path_RB.max(axis=1), 0) - np.minimum(path_RB.min(axis=1), 0)


KUIPER_95 = 2.4977  # 95 % point of the range of Brownian motion on [0, 1]


def _tail(observed: float, noise_R: np.ndarray) -> float:
    counted = (1 + int((noise_R >= observed).sum())) / (1 + len(noise_R))
    reference = float(np.quantile(noise_R, 0.95))
    if counted > 10 / len(noise_R) or reference == 0:
        return counted
    return min(counted, brownian_range_tail(KUIPER_95 * observed / reference))


def brownian_range_tail(x: float) -> float:
    """Probability that the range of Brownian motion on [0, 1] exceeds `x` (Feller, 1951)."""
    if x < 0.5:
        return 1.0  # indistinguishable from 1, and the series needs many terms there
    terms = ((-1) ** (k - 1) * k * _upper(k * x) for k in range(1, 60))
    return float(min(1.0, max(0.0, 8 * sum(terms))))


def _upper(z: float) -> float:
    """Upper tail of the standard normal, accurate far out."""
    return 0.5 * erfc(z / sqrt(2))
