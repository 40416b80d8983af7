import numpy as np
import pytest
from sklearn import metrics as sk

from trainer.metrics import absolute_error, arrange, loss, normalised_loss, ratio


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    score_N = rng.random(2000) * 0.98 + 0.01
    return {
        "user": rng.integers(0, 100, 2000), "score": score_N, "weight": rng.random(2000) + 0.5,
        "label": (rng.random(2000) < score_N).astype(float), "count": rng.poisson(score_N * 4).astype(float),
    }  # fmt: skip


def test_log_loss_agrees_with_scikit_learn(log):
    rows = arrange(log["user"], weight_N=log["weight"])
    expected = sk.log_loss(log["label"], log["score"], sample_weight=log["weight"])
    assert loss("binary", log["score"], log["label"], rows).value_G[0] == pytest.approx(expected, abs=1e-12)


def test_deviance_is_half_of_scikit_learns(log):
    expected = sk.mean_poisson_deviance(log["count"], log["score"]) / 2
    assert loss("count", log["score"], log["count"], arrange(log["user"])).value_G[0] == pytest.approx(expected, abs=1e-9)


def test_the_true_mean_minimises_the_deviance(log):
    rows = arrange(log["user"])
    at = {factor: loss("duration", factor * log["score"] * 4, log["count"], rows).value_G[0] for factor in (0.8, 1.0, 1.25)}
    assert at[1.0] < min(at[0.8], at[1.25])


def test_ne_is_log_loss_over_the_entropy_of_the_rate(log):
    rate = log["label"].mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    rows = arrange(log["user"])
    expected = sk.log_loss(log["label"], log["score"]) / entropy
    assert normalised_loss("binary", log["score"], log["label"], rows).value_G[0] == pytest.approx(expected, abs=1e-12)
    assert normalised_loss("binary", np.full(2000, rate), log["label"], rows).value_G[0] == pytest.approx(1.0)


def test_one_background_rate_serves_every_group(log):
    group_N = (log["score"] > 0.5).astype(int)
    grouped = normalised_loss("binary", log["score"], log["label"], arrange(log["user"], group_N, 2)).value_G
    rate = log["label"].mean()
    own_N = group_N == 1
    base = -np.mean(np.where(log["label"][own_N] > 0, np.log(rate), np.log(1 - rate)))
    assert grouped[1] == pytest.approx(sk.log_loss(log["label"][own_N], log["score"][own_N]) / base)


@pytest.mark.parametrize("metric", [loss, normalised_loss])
def test_influence_is_the_derivative_by_a_users_weight(log, metric):
    def value(weight_N):
        return metric("binary", log["score"], log["label"], arrange(log["user"], weight_N=weight_N))

    base, own_N = value(log["weight"]), log["user"] == 3
    moved = value(log["weight"] * np.where(own_N, 1 + 1e-5, 1)).value_G[0] - base.value_G[0]
    assert base.influence_N[own_N].sum() == pytest.approx(moved / 1e-5, rel=1e-3)


def test_certain_and_wrong_is_dear_but_finite():
    rows = arrange(np.arange(2))
    assert 10 < loss("binary", np.array([0.0, 1.0]), np.array([1.0, 0.0]), rows).value_G[0] < 20


def test_ratio_and_absolute_error(log):
    rows = arrange(log["user"])
    assert ratio(1.3 * log["score"], log["label"], rows).value_G[0] == pytest.approx(1.3 * log["score"].sum() / log["label"].sum())
    assert absolute_error(log["score"], log["count"], rows).value_G[0] == pytest.approx(np.abs(log["score"] - log["count"]).mean())


def test_without_a_positive_there_is_no_ratio_and_no_ne(log):
    rows, none_N = arrange(log["user"]), np.zeros(2000)
    assert np.isnan(ratio(log["score"], none_N, rows).value_G[0])
    assert np.isnan(normalised_loss("binary", log["score"], none_N, rows).value_G[0])
    assert np.isfinite(loss("binary", log["score"], none_N, rows).value_G[0])
