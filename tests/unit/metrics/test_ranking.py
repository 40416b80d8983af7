import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score, roc_auc_score

from trainer.metrics import arrange, auc, gauc, ndcg, rank_correlation


@pytest.fixture
def log():
    """Rows with ties in scores, uneven users and uneven weights."""
    rng = np.random.default_rng(0)
    n = 3000
    score_N = np.round(rng.random(n), 2)
    return {
        "user": np.minimum(rng.geometric(0.02, n), 200), "score": score_N, "label": (rng.random(n) < score_N).astype(float),
        "count": rng.poisson(3 * score_N).astype(float), "weight": rng.random(n) + 0.5, "slate": rng.integers(0, 300, n),
        "group": rng.integers(0, 4, n),
    }  # fmt: skip


def test_auc_agrees_with_scikit_learn_on_ties_and_weights(log):
    rows = arrange(log["user"], weight_N=log["weight"])
    expected = roc_auc_score(log["label"], log["score"], sample_weight=log["weight"])
    assert auc(log["score"], log["label"], rows).value_G[0] == pytest.approx(expected, abs=1e-12)


def test_grouped_auc_is_the_auc_of_each_group(log):
    value_G = auc(log["score"], log["label"], arrange(log["user"], log["group"], 5)).value_G
    for group in range(4):
        own_N = log["group"] == group
        assert value_G[group] == pytest.approx(roc_auc_score(log["label"][own_N], log["score"][own_N]), abs=1e-12)
    assert np.isnan(value_G[4]), "a group without rows has no AUC"


def test_gauc_is_the_impression_weighted_mean_over_users_with_both_classes(log):
    total = weight = 0.0
    for user in np.unique(log["user"]):
        own_N = log["user"] == user
        if 0 < log["label"][own_N].sum() < own_N.sum():
            total += own_N.sum() * roc_auc_score(log["label"][own_N], log["score"][own_N])
            weight += own_N.sum()
    assert gauc(log["score"], log["label"], arrange(log["user"])).value_G[0] == pytest.approx(total / weight, abs=1e-12)


def test_gauc_of_users_with_one_class_is_undefined_not_one_half():
    value_G = gauc(np.array([0.1, 0.9, 0.4]), np.array([0.0, 0.0, 1.0]), arrange(np.array([1, 1, 2]))).value_G
    assert np.isnan(value_G[0])


@pytest.mark.parametrize("top_k", [1, 5, 50])
def test_ndcg_agrees_with_scikit_learn_on_ties(log, top_k):
    expected = []
    for slate in np.unique(log["slate"]):
        own_N = log["slate"] == slate
        gain_N = log["count"][own_N]
        if gain_N.max() > gain_N.min():
            expected.append(ndcg_score(gain_N[None], log["score"][own_N][None], k=top_k))
    found = ndcg(log["score"], log["count"], log["slate"], arrange(log["user"]), top_k)
    assert found.value_G[0] == pytest.approx(np.mean(expected), abs=1e-12)


def test_ndcg_lifts_negative_gains_so_that_the_best_order_scores_one():
    gain_N = np.array([-1.0, 0.0, 2.0])
    rows = arrange(np.zeros(3))
    assert ndcg(gain_N, gain_N, np.zeros(3, int), rows, 3).value_G[0] == pytest.approx(1.0)
    assert 0 <= ndcg(-gain_N, gain_N, np.zeros(3, int), rows, 3).value_G[0] < 1


def test_rank_correlation_agrees_with_scipy(log):
    found = rank_correlation(log["score"], log["count"], arrange(log["user"])).value_G[0]
    assert found == pytest.approx(spearmanr(log["score"], log["count"]).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", [auc, gauc, rank_correlation])
def test_influence_is_the_derivative_by_a_users_weight(log, metric):
    label_N = log["count"] if metric is rank_correlation else log["label"]
    base = metric(log["score"], label_N, arrange(log["user"], weight_N=log["weight"]))
    step = 1e-5
    for user in (1, 7, 50):
        own_N = log["user"] == user
        nudged_N = log["weight"] * np.where(own_N, 1 + step, 1.0)
        moved = metric(log["score"], label_N, arrange(log["user"], weight_N=nudged_N)).value_G[0] - base.value_G[0]
        assert base.influence_N[own_N].sum() == pytest.approx(moved / step, rel=1e-3, abs=1e-8)


def test_ndcg_influence_is_what_leaving_a_user_out_changes(log):
    slate_N = log["user"]  # one slate a user, so a slate is a cluster
    rows = arrange(log["user"])
    base = ndcg(log["score"], log["count"], slate_N, rows, 10)
    slates = 1 + int(np.abs(base.influence_N).sum() > 0) * (len(np.unique(slate_N[base.influence_N != 0])) - 1)
    user = 7
    kept_N = log["user"] != user
    without = ndcg(log["score"][kept_N], log["count"][kept_N], slate_N[kept_N], arrange(log["user"][kept_N]), 10).value_G[0]
    moved = base.influence_N[~kept_N].sum() * slates / (slates - 1)
    assert base.value_G[0] - without == pytest.approx(moved, rel=1e-6)


@pytest.mark.parametrize("metric", [auc, gauc, rank_correlation])
def test_influences_sum_to_zero(log, metric):
    assert abs(metric(log["score"], log["label"], arrange(log["user"])).influence_N.sum()) < 1e-9


def test_nothing_depends_on_the_order_of_the_rows(log):
    order_N = np.random.default_rng(1).permutation(len(log["user"]))
    shuffled = {name: x_N[order_N] for name, x_N in log.items()}
    for metric in (auc, gauc, rank_correlation):
        one, two = (metric(d["score"], d["label"], arrange(d["user"])).value_G[0] for d in (log, shuffled))
        assert one == pytest.approx(two, abs=1e-12)
    one, two = (ndcg(d["score"], d["count"], d["slate"], arrange(d["user"]), 10).value_G[0] for d in (log, shuffled))
    assert one == pytest.approx(two, abs=1e-12)


def test_a_score_that_is_not_finite_withdraws_its_group_and_no_other(log):
    score_N = log["score"].copy()
    score_N[np.flatnonzero(log["group"] == 2)[0]] = np.nan
    rows = arrange(log["user"], log["group"], 4)
    for estimate in (auc(score_N, log["label"], rows), gauc(score_N, log["label"], rows), rank_correlation(score_N, log["count"], rows)):
        assert np.isnan(estimate.value_G).tolist() == [False, False, True, False]
        assert not estimate.influence_N[log["group"] == 2].any()


def test_one_class_has_no_auc_and_a_constant_score_has_exactly_one_half(log):
    rows = arrange(log["user"])
    assert np.isnan(auc(log["score"], np.ones(len(log["user"])), rows).value_G[0])
    assert auc(np.full(len(log["user"]), 0.3), log["label"], rows).value_G[0] == 0.5
    assert np.isnan(rank_correlation(np.full(len(log["user"]), 0.3), log["count"], rows).value_G[0])


def test_no_rows_at_all():
    rows = arrange(np.zeros(0))
    empty_N = np.zeros(0)
    for metric in (auc, gauc, rank_correlation):
        assert np.isnan(metric(empty_N, empty_N, rows).value_G).all()
    assert np.isnan(ndcg(empty_N, empty_N, np.zeros(0, int), rows, 5).value_G).all()
