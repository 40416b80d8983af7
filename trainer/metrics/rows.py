"""Rows in groups and clusters, and the uncertainty of anything estimated on them.

Shapes: N rows, G groups (slices of one column; one group means all rows), C clusters. A cluster is a user within a group: users are
independent, rows of one user are not, so every standard error here adds up a user's rows before it squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from trainer.errors import DataError


@dataclass(frozen=True)
class Rows:
    """N rows, each in one group and one cluster.

    Attributes:
        group_N: Group of each row, 0 to groups - 1.
        groups: G.
        cluster_N: Cluster of each row, 0 to C - 1; clusters are numbered group by group.
        cluster_group_C: Group of each cluster.
        weight_N: Weight of each row, not negative (1 / sampling rate).
    """

    group_N: np.ndarray
    groups: int
    cluster_N: np.ndarray
    cluster_group_C: np.ndarray
    weight_N: np.ndarray

    @cached_property
    def n_G(self) -> np.ndarray:
        """Rows of each group."""
        return np.bincount(self.group_N, minlength=self.groups)

    @cached_property
    def clusters_G(self) -> np.ndarray:
        """Clusters of each group."""
        return np.bincount(self.cluster_group_C, minlength=self.groups)

    @cached_property
    def total_G(self) -> np.ndarray:
        """Weight of each group."""
        return self.sum_G(self.weight_N)

    @cached_property
    def leverage_C(self) -> np.ndarray:
        """Share of its group's weight that a cluster holds."""
        share_C = _divide(self.sum_C(self.weight_N), self.total_G[self.cluster_group_C])
        return np.nan_to_num(share_C)

    def sum_G(self, x_N: np.ndarray) -> np.ndarray:
        """Sums a row quantity within groups."""
        return np.bincount(self.group_N, weights=x_N, minlength=self.groups)

    def sum_C(self, x_N: np.ndarray) -> np.ndarray:
        """Sums a row quantity within clusters."""
        return np.bincount(self.cluster_N, weights=x_N, minlength=len(self.cluster_group_C))


@dataclass(frozen=True)
class Estimate:
    """One number a group, and how each row moves it.

    Attributes:
        value_G: The estimates; NaN where the quantity is not defined (one class, no rows, a score that is not finite).
        influence_N: First-order contribution of each row to ``value - truth``; 0 in groups without a value. Differences of estimates
            on the same rows are differences of influences, which is what makes a comparison paired.
    """

    value_G: np.ndarray
    influence_N: np.ndarray

    def minus(self, other: Estimate) -> Estimate:
        """Returns ``self - other``, paired row by row."""
        return Estimate(self.value_G - other.value_G, self.influence_N - other.influence_N)

    def times(self, factor: float) -> Estimate:
        """Returns ``factor * self``."""
        return Estimate(factor * self.value_G, factor * self.influence_N)

    def over(self, other: Estimate, rows: Rows) -> Estimate:
        """Returns ``self / other``, paired row by row (delta method); NaN where `other` is 0."""
        value_G = _divide(self.value_G, other.value_G)
        moved_N = self.influence_N - np.nan_to_num(value_G)[rows.group_N] * other.influence_N
        return Estimate(value_G, np.nan_to_num(_divide(moved_N, other.value_G[rows.group_N])))

    def log(self, rows: Rows) -> Estimate:
        """Returns the logarithm (delta method); NaN where the value is not positive."""
        safe_G = np.where(self.value_G > 0, self.value_G, np.nan)
        return Estimate(np.log(safe_G), np.nan_to_num(_divide(self.influence_N, safe_G[rows.group_N])))


@dataclass(frozen=True)
class Spread:
    """Standard error of an estimate and the degrees of freedom of that standard error, a group."""

    se_G: np.ndarray
    dof_G: np.ndarray


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0 or NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def arrange(user_N: np.ndarray, group_N: np.ndarray | None = None, groups: int = 1, weight_N: np.ndarray | None = None) -> Rows:
    """Arranges rows by group and user.

    Args:
        user_N: User of each row: ids of any sortable type, or codes.
        group_N: Group of each row, 0 to groups - 1; default: all rows in one group.
        groups: Number of groups, empty ones included.
        weight_N: Row weights; default 1.

    Raises:
        DataError: If lengths differ, a group is out of range, or a weight is negative or not finite.
    """
    user_N = np.asarray(user_N)
    count = len(user_N)
    weight_N = np.ones(count) if weight_N is None else np.asarray(weight_N, np.float64)
    group_N = np.zeros(count, np.int64) if group_N is None else np.asarray(group_N, np.int64)
    if not len(weight_N) == len(group_N) == count:
        raise DataError("columns differ in length", got=f"{count} users, {len(group_N)} groups, {len(weight_N)} weights")
    if count and not (np.isfinite(weight_N).all() and weight_N.min() >= 0):
        raise DataError("a row weight is negative or not finite", where="weight", expected="1 / sampling rate")
    if count and not (group_N.min() >= 0 and group_N.max() < groups):
        raise DataError("a group is out of range", got=f"{group_N.min()} to {group_N.max()}", expected=f"0 to {groups - 1}")
    users, user_N = np.unique(user_N, return_inverse=True)
    pairs, cluster_N = np.unique(group_N * max(len(users), 1) + user_N, return_inverse=True)
    return Rows(group_N, groups, cluster_N, pairs // max(len(users), 1), weight_N)


def mean(x_N: np.ndarray, rows: Rows) -> Estimate:
    """Weighted mean of a row quantity in each group."""
    value_G = _divide(rows.sum_G(rows.weight_N * x_N), rows.total_G)
    influence_N = _divide(rows.weight_N * (x_N - value_G[rows.group_N]), rows.total_G[rows.group_N])
    return Estimate(value_G, np.nan_to_num(influence_N))


def quotient(x_N: np.ndarray, y_N: np.ndarray, rows: Rows) -> Estimate:
    """Quotient of weighted sums ``sum x / sum y`` in each group; NaN where ``sum y`` is 0."""
    bottom_G = rows.sum_G(rows.weight_N * y_N)
    value_G = _divide(rows.sum_G(rows.weight_N * x_N), bottom_G)
    influence_N = _divide(rows.weight_N * (x_N - value_G[rows.group_N] * y_N), bottom_G[rows.group_N])
    return Estimate(value_G, np.nan_to_num(influence_N))


def only_where(estimate: Estimate, defined_G: np.ndarray, rows: Rows) -> Estimate:
    """Withdraws the estimate of every group that is not `defined_G`."""
    value_G = np.where(defined_G, estimate.value_G, np.nan)
    return Estimate(value_G, np.where(np.isfinite(value_G)[rows.group_N], estimate.influence_N, 0.0))


def spread(estimate: Estimate, rows: Rows) -> Spread:
    """User-clustered standard error of an estimate.

    A cluster's influence is divided by one minus its share of the group, as leaving it out would (the jackknife, CR3): without that,
    a few users who own half the rows make their own error look small. The degrees of freedom are Satterthwaite's, from the fourth
    moment of the clusters' influences: a hundred positives among a million rows are about two hundred degrees, not a million.

    Returns:
        Standard errors, NaN where the estimate is NaN or a group has fewer than two clusters, and degrees of freedom, at least 1.
    """
    count_G = rows.clusters_G
    moved_C = rows.sum_C(estimate.influence_N) / np.maximum(1 - rows.leverage_C, 1e-12)
    square_C = moved_C**2
    second_G = np.bincount(rows.cluster_group_C, weights=square_C, minlength=rows.groups)
    fourth_G = np.bincount(rows.cluster_group_C, weights=square_C**2, minlength=rows.groups)
    usable_G = np.isfinite(estimate.value_G) & (count_G > 1)
    se_G = np.where(usable_G, np.sqrt(second_G * (count_G - 1) / np.maximum(count_G, 1)), np.nan)
    noise_G = fourth_G - second_G**2 / np.maximum(count_G, 1)
    freedom_G = np.where(noise_G > 1e-12 * second_G**2, _divide(2 * second_G**2, noise_G), np.inf)
    return Spread(se_G, np.clip(np.fmin(freedom_G, count_G - 1), 1, None))


def interval(estimate: Estimate, rows: Rows, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided interval of each group's estimate, by Student's t with the spread's own degrees of freedom.

    Returns:
        Lower and upper ends, NaN where there is no standard error.
    """
    spread_G = spread(estimate, rows)
    with np.errstate(invalid="ignore"):  # no standard error: NaN, as documented
        reach_G = student_quantile(NormalDist().inv_cdf(0.5 + confidence / 2), spread_G.dof_G) * spread_G.se_G
    return estimate.value_G - reach_G, estimate.value_G + reach_G


def student_quantile(z: float, dof: np.ndarray) -> np.ndarray:
    """Student quantile that belongs to the normal quantile `z` (Abramowitz and Stegun 26.7.8, inverted).

    Within 2 % from 10 degrees of freedom on, above the exact value below that, and infinite where 2 or fewer leave no interval.
    """
    shrunk = (1 - 1 / (4 * dof)) ** 2 - z * z / (2 * dof)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shrunk > 0, z / np.sqrt(shrunk), np.inf * np.sign(z) if z else 0.0)
