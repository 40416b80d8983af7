import numpy as np
import pytest
from scipy import stats

from trainer.errors import DataError
from trainer.metrics import Estimate, arrange, auc, interval, mean, quotient, spread
from trainer.metrics.rows import student_quantile


def test_clusters_are_users_within_groups():
    rows = arrange(np.array(["b", "a", "b", "a"]), np.array([0, 0, 1, 1]), 3)
    assert rows.clusters_G.tolist() == [2, 2, 0]
    assert rows.n_G.tolist() == [2, 2, 0]


def test_a_mean_of_independent_rows_has_the_textbook_standard_error():
    x_N = np.random.default_rng(0).normal(size=2000)
    rows = arrange(np.arange(2000))
    found = spread(mean(x_N, rows), rows)
    assert found.se_G[0] == pytest.approx(x_N.std(ddof=1) / np.sqrt(2000), rel=2e-3)
    assert found.dof_G[0] > 1000


def test_repeating_every_row_of_a_user_brings_no_certainty():
    rng = np.random.default_rng(0)
    score_N, user_N = rng.random(500), np.arange(500) // 2
    label_N = (rng.random(500) < score_N).astype(float)
    once, often = (
        spread(auc(np.repeat(score_N, k), np.repeat(label_N, k), rows), rows).se_G[0]
        for k in (1, 20)
        for rows in [arrange(np.repeat(user_N, k))]
    )
    assert often == pytest.approx(once, rel=1e-9)


def test_paired_differences_on_equal_columns_are_exactly_zero():
    rng = np.random.default_rng(0)
    score_N, label_N = rng.random(300), rng.integers(0, 2, 300).astype(float)
    rows = arrange(np.arange(300) // 3)
    difference = auc(score_N, label_N, rows).minus(auc(score_N.copy(), label_N, rows))
    assert difference.value_G[0] == 0
    assert spread(difference, rows).se_G[0] == 0


def test_one_user_has_no_standard_error():
    rows = arrange(np.zeros(50))
    assert np.isnan(spread(mean(np.arange(50.0), rows), rows).se_G[0])


@pytest.mark.parametrize("heavy", [False, True])
def test_intervals_cover_the_truth_under_clustered_users(heavy):
    """20 rows a user that share a user effect; `heavy`: 2 % of the users own half the rows. iid intervals would cover 60 to 80 %."""
    rng = np.random.default_rng(1)
    users, runs = 400, 300
    size_U = np.where(np.arange(users) < users // 50, 200, 4) if heavy else np.full(users, 20)
    user_N = np.repeat(np.arange(users), size_U)
    rows = arrange(user_N)
    covered, naive = 0, 0
    for _ in range(runs):
        x_N = rng.normal(0, 1, users)[user_N] + rng.normal(0, 1, len(user_N))
        low_G, high_G = interval(mean(x_N, rows), rows)
        covered += low_G[0] <= 0 <= high_G[0]
        naive += abs(x_N.mean()) <= 1.96 * x_N.std() / np.sqrt(len(x_N))
    assert 0.92 <= covered / runs <= 0.99
    assert naive / runs < 0.8


def test_log_and_quotient_follow_the_delta_method():
    rng = np.random.default_rng(0)
    x_N, y_N, weight_N = rng.random(500), rng.random(500), rng.random(500) + 0.5
    user_N = np.arange(500) // 5
    base = quotient(x_N, y_N, arrange(user_N, weight_N=weight_N))
    logged = base.log(arrange(user_N, weight_N=weight_N))
    own_N = user_N == 3
    nudged = quotient(x_N, y_N, arrange(user_N, weight_N=weight_N * np.where(own_N, 1 + 1e-6, 1)))
    assert base.influence_N[own_N].sum() == pytest.approx((nudged.value_G - base.value_G)[0] / 1e-6, rel=1e-4)
    assert logged.influence_N[own_N].sum() == pytest.approx(np.log(nudged.value_G / base.value_G)[0] / 1e-6, rel=1e-4)


def test_the_logarithm_of_nothing_is_undefined():
    rows = arrange(np.arange(3))
    assert np.isnan(Estimate(np.array([0.0]), np.ones(3)).log(rows).value_G[0])
    assert np.isnan(quotient(np.ones(3), np.zeros(3), rows).value_G[0])


@pytest.mark.parametrize("dof", [5.0, 10.0, 30.0, 1000.0])
@pytest.mark.parametrize("z", [-1.96, 1.0, 1.96, 2.6])
def test_student_quantile_is_near_the_exact_one_and_never_inside_it(dof, z):
    ratio = float(student_quantile(z, np.asarray(dof))) / stats.t.ppf(stats.norm.cdf(z), dof)
    assert 1 - 1e-6 <= ratio < (1.02 if dof >= 10 and abs(z) < 2 else 1.6)


def test_degrees_of_freedom_see_how_few_rows_carry_the_information():
    """Fifty positives among 20,000 rows: the standard error is as uncertain as one from about a hundred normal rows."""
    x_N = np.zeros(20_000)
    x_N[:50] = 1
    rows = arrange(np.arange(20_000))
    assert 80 < spread(mean(x_N, rows), rows).dof_G[0] < 120


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_N": np.array([1.0, -1.0])},
        {"weight_N": np.array([1.0, np.nan])},
        {"weight_N": np.array([1.0])},
        {"group_N": np.array([0, 3]), "groups": 2},
    ],
)
def test_impossible_rows_are_refused(arguments):
    with pytest.raises(DataError):
        arrange(np.array([1, 2]), **arguments)
