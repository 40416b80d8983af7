import numpy as np
import pytest
from mapie.metrics.calibration import expected_calibration_error, kuiper_p_value

from trainer.metrics import arrange, ecce, ece
from trainer.metrics.calibration import BINS, brownian_range_tail, equal_mass_bins


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _log(n, seed, users=None, user_sd=0.0):
    """Calibrated scores; a user effect that the score does not know makes a user's residuals move together."""
    rng = np.random.default_rng(seed)
    user_N = np.arange(n) if users is None else np.repeat(np.arange(users), n // users)
    logit_N = rng.normal(-2.5, 1, n)
    noise_N = rng.normal(0, user_sd, n if users is None else users)[user_N]
    score_N = _sigmoid(logit_N)
    true_N = _sigmoid(logit_N + noise_N)
    true_N *= score_N.mean() / true_N.mean() if user_sd else 1.0
    return user_N, score_N, (rng.random(n) < true_N).astype(float)


def test_bins_hold_equal_weight_and_never_split_ties():
    score_N = np.concatenate([np.zeros(400), np.linspace(0.1, 1, 600)])
    bin_N = equal_mass_bins(score_N, arrange(np.arange(1000)), 10)
    assert len(np.unique(bin_N[:400])) == 1
    assert np.bincount(bin_N[400:])[5:].tolist() == [100] * 5


def test_debiasing_takes_the_label_noise_out():
    """The plug-in ECE of a calibrated model at 20,000 rows is about 5 % of the base rate; debiased it is near 0."""
    plug_in, ours = [], []
    for seed in range(20):
        user_N, score_N, label_N = _log(20_000, seed)
        plug_in.append(expected_calibration_error(label_N, score_N, num_bins=BINS, split_strategy="quantile"))
        ours.append(ece(score_N, label_N, arrange(user_N), replicates=0).value_G[0])
    assert np.mean(plug_in) > 0.003
    assert np.mean(ours) < np.mean(plug_in) / 3


def test_agrees_with_mapie_where_the_error_dwarfs_the_noise():
    user_N, score_N, label_N = _log(200_000, 0)
    score_N = np.minimum(1, score_N * 1.5)
    expected = expected_calibration_error(label_N, score_N, num_bins=BINS, split_strategy="quantile")
    found = ece(score_N, label_N, arrange(user_N))
    assert found.value_G[0] == pytest.approx(expected, rel=0.02)
    assert found.low_G[0] < expected < found.high_G[0]


def test_interval_covers_the_truth_of_a_miscalibrated_model_with_clustered_users():
    covered, truth = 0, 0.3 * _sigmoid(np.random.default_rng(99).normal(-2.5, 1, 2_000_000)).mean()
    for seed in range(60):
        user_N, score_N, label_N = _log(10_000, seed, users=500, user_sd=0.7)
        found = ece(1.3 * score_N, label_N, arrange(user_N), seed=seed)
        covered += found.low_G[0] <= truth <= found.high_G[0]
    assert covered >= 52


def test_groups_are_judged_apart():
    user_N, score_N, label_N = _log(60_000, 3)
    group_N = np.arange(60_000) % 2
    found = ece(np.where(group_N == 1, 1.4 * score_N, score_N), label_N, arrange(user_N, group_N, 3))
    assert found.value_G[1] == pytest.approx(0.4 * score_N.mean(), rel=0.15)
    assert found.value_G[0] < 0.1 * found.value_G[1]
    assert np.isnan(found.value_G[2])


def test_range_of_brownian_motion_has_its_known_tail():
    assert brownian_range_tail(2.4977) == pytest.approx(0.05, rel=1e-3)
    assert brownian_range_tail(4.708) == pytest.approx(1e-5, rel=1e-2)
    assert brownian_range_tail(0.1) == 1.0


def test_ecce_agrees_with_mapies_kuiper_test_on_independent_rows():
    difference = []
    for seed in range(12):
        user_N, score_N, label_N = _log(4_000, seed)
        difference.append(ecce(score_N, label_N, arrange(user_N), seed=seed).p_G[0] - kuiper_p_value(label_N, score_N))
    assert np.abs(difference).mean() < 0.06
    assert abs(np.mean(difference)) < 0.04


def test_ecce_keeps_its_level_with_clustered_users_where_an_iid_test_does_not():
    clustered, iid = 0, 0
    for seed in range(150):
        user_N, score_N, label_N = _log(8_000, seed, users=400, user_sd=1.0)
        clustered += ecce(score_N, label_N, arrange(user_N), replicates=200, seed=seed).p_G[0] < 0.05
        iid += kuiper_p_value(label_N, score_N) < 0.05
    assert clustered <= 18, "more than 12 % alarms at a nominal 5 %"
    assert iid > clustered


def test_ecce_sees_a_stretch_that_leaves_the_ratio_at_one():
    user_N, score_N, label_N = _log(60_000, 5)
    logit_N = np.log(score_N / (1 - score_N))
    stretched_N = _sigmoid(1.3 * (logit_N + 2.5) - 2.5)
    stretched_N *= score_N.mean() / stretched_N.mean()
    found = ecce(stretched_N, label_N, arrange(user_N))
    assert stretched_N.sum() / label_N.sum() == pytest.approx(1, abs=0.03)
    assert found.p_G[0] < 1e-4 and found.value_G[0] > 0.03
