"""Rank metrics with influence functions: AUC, GAUC, NDCG of a value, rank correlation.

Ties are exact everywhere: a tied pair counts one half (AUC, midranks), tied positions share their discounts (NDCG). Nothing depends
on the order of the rows. Shapes as in `trainer.metrics.rows`; S slates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.metrics.rows import Estimate, Rows, mean, only_where, quotient


@dataclass(frozen=True)
class Order:
    """Rows sorted by (group, score), with blocks of ties.

    Attributes:
        order_N: Row at each sorted position.
        block_N: Tie block of each sorted position.
        end_B: Position after the last row of each block.
        group_end_B: Position after the last row of the block's group.
    """

    order_N: np.ndarray
    block_N: np.ndarray
    end_B: np.ndarray
    group_end_B: np.ndarray

    def above(self, x_N: np.ndarray) -> np.ndarray:
        """For each row, the sum of `x_N` over its group's rows with a higher score, plus half the sum over its ties."""
        total_N = np.concatenate([[0.0], np.cumsum(x_N[self.order_N], dtype=np.float64)])
        start_B = np.concatenate([[0], self.end_B[:-1]]).astype(np.int64)
        upper_B = total_N[self.group_end_B] - (total_N[self.end_B] + total_N[start_B]) / 2
        above_N = np.empty(len(x_N))
        above_N[self.order_N] = upper_B[self.block_N]
        return above_N


def sort_within(score_N: np.ndarray, group_N: np.ndarray, groups: int) -> Order:
    """Sorts rows by (group, score)."""
    order_N = _order(score_N, group_N, groups)
    group_N, score_N = group_N[order_N], score_N[order_N]
    last_N = np.ones(len(order_N), bool)
    last_N[:-1] = (np.diff(score_N) != 0) | (np.diff(group_N) != 0)
    end_B = np.flatnonzero(last_N) + 1
    block_N = np.cumsum(last_N) - last_N
    group_end_G = np.cumsum(np.bincount(group_N, minlength=groups))
    return Order(order_N, block_N, end_B, group_end_G[group_N[end_B - 1]])


def _order(score_N: np.ndarray, group_N: np.ndarray, groups: int) -> np.ndarray:
    by_score_N = np.argsort(score_N)
    if groups == 1:
        return by_score_N
    narrow = np.uint16 if groups <= 1 << 16 else np.int64  # numpy sorts 16-bit integers by radix, an order of magnitude faster
    return by_score_N[np.argsort(group_N[by_score_N].astype(narrow), kind="stable")]


def finite(score_N: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores with 0 for what is not finite, and which groups hold only finite scores."""
    good_N = np.isfinite(score_N)
    if good_N.all():
        return score_N, np.ones(rows.groups, bool)
    return np.where(good_N, score_N, 0.0), np.bincount(rows.group_N, weights=~good_N, minlength=rows.groups) == 0


def _auc(score_N: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, code_N: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """AUC within each code, NaN for one class, and each row's influence on its code's AUC."""
    positive_N = weight_N * label_N
    negative_N = weight_N - positive_N
    order = sort_within(score_N, code_N, codes)
    positives_K = np.bincount(code_N, weights=positive_N, minlength=codes)
    negatives_K = np.bincount(code_N, weights=negative_N, minlength=codes)
    with np.errstate(divide="ignore", invalid="ignore"):
        above_positive_N = order.above(positive_N) / positives_K[code_N]  # share of positives that outrank the row
        below_negative_N = 1 - order.above(negative_N) / negatives_K[code_N]  # share of negatives that the row outranks
        value_K = np.bincount(code_N, weights=np.nan_to_num(positive_N * below_negative_N), minlength=codes) / positives_K
        value_K = np.where((positives_K > 0) & (negatives_K > 0), value_K, np.nan)
        influence_N = positive_N * (below_negative_N - value_K[code_N]) / positives_K[code_N]
        influence_N += negative_N * (above_positive_N - value_K[code_N]) / negatives_K[code_N]
    return value_K, np.nan_to_num(influence_N)


def auc(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Estimate:
    """Area under the ROC curve in each group; the probability that a positive outranks a negative, ties one half.

    The influence is that of DeLong, DeLong and Clarke-Pearson (1988); summed within users it is Obuchowski's (1997) variance for
    clustered data.

    Args:
        score_N: Scores; a group with one that is not finite has no value.
        label_N: 0 or 1.
        rows: Groups, clusters and weights.
    """
    score_N, good_G = finite(score_N, rows)
    value_G, influence_N = _auc(score_N, label_N, rows.weight_N, rows.group_N, rows.groups)
    return only_where(Estimate(value_G, influence_N), good_G, rows)


def gauc(score_N: np.ndarray, label_N: np.ndarray, rows: Rows, slate_N: np.ndarray | None = None) -> Estimate:
    """Mean of per-user AUC in each group, weighted by impressions, over users with both classes (Zhou et al., DIN, 2018).

    Args:
        score_N: Scores.
        label_N: 0 or 1.
        rows: Groups, clusters and weights.
        slate_N: Slates to average over instead of users, dense codes: rows that were scored at the same moment. A slate that lies in
            several groups counts in each with its rows there.
    """
    score_N, good_G = finite(score_N, rows)
    code_N, codes = rows.cluster_N, len(rows.cluster_group_C)
    if slate_N is not None:
        code_N, codes = within_groups(slate_N, rows)
    value_K, _ = _auc(score_N, label_N, rows.weight_N, code_N, codes)
    return only_where(_mean_of(value_K, code_N, rows.weight_N, rows), good_G, rows)


def within_groups(slate_N: np.ndarray, rows: Rows) -> tuple[np.ndarray, int]:
    """Returns dense codes of (group, slate), and how many there are."""
    if rows.groups == 1:
        return slate_N, int(slate_N.max(initial=-1)) + 1
    found, code_N = np.unique(rows.group_N * (int(slate_N.max(initial=0)) + 1) + slate_N, return_inverse=True)
    return code_N, len(found)


def users_with_mixed_slates(x_N: np.ndarray, rows: Rows, slate_N: np.ndarray | None = None) -> np.ndarray:
    """Counts in each group the users who have a slate with different outcomes: what a mean over slates rests on.

    Rows say nothing of that: of a thousand rows with rare positives perhaps one slate can be ranked at all, and a mean over one slate has
    no error to be seen.

    Args:
        x_N: Outcome of each row.
        rows: Groups and clusters.
        slate_N: Slates, dense codes; default: all rows of a user are one.
    """
    code_N, codes = (rows.cluster_N, len(rows.cluster_group_C)) if slate_N is None else within_groups(slate_N, rows)
    some_K = np.zeros(codes)
    some_K[code_N] = x_N  # one row's outcome stands for its slate
    mixed_K = np.zeros(codes, bool)
    mixed_K[code_N[x_N != some_K[code_N]]] = True
    counted_C = np.zeros(len(rows.cluster_group_C))
    counted_C[rows.cluster_N[mixed_K[code_N]]] = 1.0
    return np.bincount(rows.cluster_group_C, weights=counted_C, minlength=rows.groups)


def _mean_of(value_K: np.ndarray, code_N: np.ndarray, weight_N: np.ndarray, rows: Rows) -> Estimate:
    """Weighted mean over the codes that have a value; a code's influence is spread over its rows."""
    defined_N = np.isfinite(value_K)[code_N]
    weighted = Rows(rows.group_N, rows.groups, rows.cluster_N, rows.cluster_group_C, np.where(defined_N, weight_N, 0.0))
    return mean(np.nan_to_num(value_K)[code_N], weighted)


def ndcg(score_N: np.ndarray, gain_N: np.ndarray, slate_N: np.ndarray, rows: Rows, top_k: int) -> Estimate:
    """Mean NDCG@k over the slates of each group, every slate counting once.

    Tied scores share their positions' discounts, the expectation over all orders of the ties (McSherry and Najork, 2008). A slate
    whose gains are all equal cannot be ranked wrong and is left out. Gains below 0 are lifted by their slate's smallest one.

    Args:
        score_N: What ranks a slate.
        gain_N: What a row turned out to be worth.
        slate_N: Slate of each row, dense codes; a slate that lies in several groups counts in each with its rows there.
        rows: Groups and clusters; row weights are not used, because a slate is judged as it was shown.
        top_k: Positions that count.
    """
    score_N, good_G = finite(score_N, rows)
    slate_N, count = within_groups(slate_N, rows)
    lowest_S = np.full(count, np.inf)
    highest_S = np.full(count, -np.inf)
    np.minimum.at(lowest_S, slate_N, gain_N)
    np.maximum.at(highest_S, slate_N, gain_N)
    gain_N = gain_N - np.minimum(lowest_S, 0.0)[slate_N]
    with np.errstate(divide="ignore", invalid="ignore"):
        value_S = _dcg(score_N, gain_N, slate_N, count, top_k) / _dcg(gain_N, gain_N, slate_N, count, top_k)
    value_S = np.where(highest_S > lowest_S, value_S, np.nan)
    per_row_N = 1.0 / np.bincount(slate_N, minlength=count)[slate_N]
    return only_where(_mean_of(value_S, slate_N, per_row_N, rows), good_G, rows)


def _dcg(score_N: np.ndarray, gain_N: np.ndarray, slate_N: np.ndarray, slates: int, top_k: int) -> np.ndarray:
    order = sort_within(-score_N, slate_N, slates)
    size_S = np.bincount(slate_N, minlength=slates)
    sorted_slate_N = slate_N[order.order_N]
    rank_N = np.arange(len(score_N)) - (np.cumsum(size_S) - size_S)[sorted_slate_N]
    discount_N = np.where(rank_N < top_k, 1 / np.log2(rank_N + 2), 0.0)
    shared_B = np.bincount(order.block_N, weights=discount_N) / np.maximum(np.bincount(order.block_N), 1)
    return np.bincount(sorted_slate_N, weights=gain_N[order.order_N] * shared_B[order.block_N], minlength=slates)


def rank_correlation(score_N: np.ndarray, label_N: np.ndarray, rows: Rows) -> Estimate:
    """Spearman's correlation of score and label in each group, with midranks; for counts and durations.

    Both ranks are estimated, and the influence carries that: moving one row changes every rank above it.
    """
    score_N, good_G = finite(score_N, rows)
    by_score, by_label = (sort_within(x_N, rows.group_N, rows.groups) for x_N in (score_N, label_N))
    with np.errstate(divide="ignore", invalid="ignore"):
        total_N = rows.total_G[rows.group_N]
        u_N = np.nan_to_num(0.5 - by_score.above(rows.weight_N) / total_N)
        v_N = np.nan_to_num(0.5 - by_label.above(rows.weight_N) / total_N)

        def product(x_N: np.ndarray, y_N: np.ndarray, x_order: Order, y_order: Order) -> Estimate:
            moved_N = x_order_effect(x_order, y_N) + x_order_effect(y_order, x_N)
            return Estimate(mean(x_N * y_N, rows).value_G, mean(x_N * y_N + moved_N, rows).influence_N)

        def x_order_effect(order: Order, other_N: np.ndarray) -> np.ndarray:
            return np.nan_to_num(order.above(rows.weight_N * other_N) / total_N)

        cross, uu, vv = product(u_N, v_N, by_score, by_label), product(u_N, u_N, by_score, by_score), product(v_N, v_N, by_label, by_label)
        norm_G = np.sqrt(uu.value_G * vv.value_G)
        value_G = np.where(norm_G > 1e-12, cross.value_G / norm_G, np.nan)
        g_N = rows.group_N
        own_N = uu.influence_N / uu.value_G[g_N] + vv.influence_N / vv.value_G[g_N]
        influence_N = np.nan_to_num(cross.influence_N / norm_G[g_N] - value_G[g_N] / 2 * own_N)
    return only_where(Estimate(value_G, influence_N), good_G, rows)


def concentration(code_N: np.ndarray, rows: Rows) -> Estimate:
    """How concentrated the weight of each group is on few codes: the chance that two draws share a code.

    1 when one code has everything, ``1 / k`` for k equal codes. Pairs of a row with itself are left out, so that the value does not grow
    because the sample is small.

    Args:
        code_N: Author, topic, ... of each row.
        rows: Groups, clusters and weights.
    """
    pair_N = rows.group_N * (int(code_N.max(initial=0)) + 1) + code_N
    found, pair_N = np.unique(pair_N, return_inverse=True)
    own_N = np.bincount(pair_N, weights=rows.weight_N, minlength=len(found))[pair_N] - rows.weight_N
    other_N = rows.total_G[rows.group_N] - rows.weight_N
    agreeing = quotient(own_N, other_N, rows)  # sum w_i (W_code - w_i) / sum w_i (W - w_i)
    return Estimate(agreeing.value_G, 2 * agreeing.influence_N)  # a row is the first draw and the second


def rank_biased_overlap(score_N: np.ndarray, other_N: np.ndarray, slate_N: np.ndarray, rows: Rows, p: float = 0.9) -> Estimate:
    """Mean rank-biased overlap of two orders of the same slates, every slate counting once (Webber, Moffat and Zobel, TOIS 2010).

    The slates are finite and hold the same rows in both orders, so the sum ends at the slate's length and is scaled to reach 1.

    Args:
        score_N: What ranks a slate in one order.
        other_N: What ranks it in the other.
        slate_N: Slate of each row, dense codes.
        rows: Groups and clusters.
        p: Persistence: 0.9 puts about 86 % of the weight on the first ten positions.
    """
    slate_N, count = within_groups(slate_N, rows)
    deepest_N = np.maximum(ranks(score_N, slate_N, count), ranks(other_N, slate_N, count))
    size_S = np.bincount(slate_N, minlength=count)
    step_D = p ** np.arange(int(size_S.max(initial=0))) / np.arange(1, int(size_S.max(initial=0)) + 1)
    sum_D = np.concatenate([[0.0], np.cumsum(step_D)])
    weight_N = (1 - p) * (sum_D[size_S[slate_N]] - sum_D[deepest_N])  # a row is in both heads at every depth beyond its deeper rank
    value_S = np.bincount(slate_N, weights=weight_N, minlength=count) / np.maximum(1 - p**size_S, 1e-300)
    return _mean_of(value_S, slate_N, 1.0 / np.maximum(size_S, 1)[slate_N], rows)


def ranks(score_N: np.ndarray, slate_N: np.ndarray, slates: int) -> np.ndarray:
    """Position of each row in its slate by falling score, from 0; ties in the order of the rows."""
    order_N = np.lexsort((-score_N, slate_N))
    size_S = np.bincount(slate_N, minlength=slates)
    rank_N = np.empty(len(score_N), np.int64)
    rank_N[order_N] = np.arange(len(score_N)) - (np.cumsum(size_S) - size_S)[slate_N[order_N]]
    return rank_N
