"""Scale against order, checked against scikit-learn's isotonic regression and log loss."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from trainer.metrics import arrange, decompose, free_normalised_loss, normalised_loss, spread
from trainer.metrics.loss import CLIP


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    z_N = rng.normal(-2, 1, 6_000)
    label_N = (rng.random(6_000) < 1 / (1 + np.exp(-z_N))).astype(float)
    score_N = np.round(1 / (1 + np.exp(-1.4 * z_N)), 3)  # too steep, and with ties
    rows = arrange(np.arange(6_000) // 5, rng.integers(0, 3, 6_000), 3, rng.integers(1, 4, 6_000).astype(float))
    return score_N, label_N, rows


def test_the_decomposition_is_that_of_isotonic_regression(sample):
    score_N, label_N, rows = sample
    found = decompose("binary", score_N, label_N, rows)
    for group in range(3):
        own_N = rows.group_N == group
        label, score, weight = label_N[own_N], score_N[own_N], rows.weight_N[own_N]
        fitted = IsotonicRegression().fit(score, label, sample_weight=weight).predict(score)
        flat = np.full(len(label), np.average(label, weights=weight))
        model, fit, base = (log_loss(label, np.clip(p, CLIP, 1 - CLIP), sample_weight=weight) for p in (score, fitted, flat))
        assert found.miscalibration_G[group] == pytest.approx(model - fit, abs=1e-9)
        assert found.discrimination_G[group] == pytest.approx(base - fit, abs=1e-9)
        assert found.uncertainty_G[group] == pytest.approx(base, abs=1e-9)


def test_a_change_of_scale_is_all_miscalibration_and_none_of_the_order(sample):
    score_N, label_N, rows = sample
    one, two = (decompose("binary", p_N, label_N, rows) for p_N in (score_N, score_N**2))
    assert two.discrimination_G == pytest.approx(one.discrimination_G, abs=1e-9)
    assert (two.miscalibration_G > one.miscalibration_G + 0.01).all()


def test_counts_decompose_by_their_deviance():
    rng = np.random.default_rng(1)
    mean_N = rng.gamma(2.0, 1.0, 4_000)
    label_N = rng.poisson(mean_N).astype(float)
    rows = arrange(np.arange(4_000))
    right, doubled = (decompose("count", p_N, label_N, rows) for p_N in (mean_N, 2 * mean_N))
    assert right.miscalibration_G[0] < 0.02 < doubled.miscalibration_G[0]
    assert doubled.discrimination_G == pytest.approx(right.discrimination_G)


def test_ne_without_its_scale_does_not_see_odds_multiplied(sample):
    score_N, label_N, rows = sample
    score_N = np.clip(score_N, 0.001, 0.999)
    scaled_N = 2 * score_N / (1 + score_N)  # odds doubled
    one, two = (free_normalised_loss("binary", p_N, label_N, rows) for p_N in (score_N, scaled_N))
    assert two.value_G == pytest.approx(one.value_G, abs=1e-9)
    assert two.influence_N == pytest.approx(one.influence_N, abs=1e-9)
    assert (normalised_loss("binary", scaled_N, label_N, rows).value_G > two.value_G + 0.002).all()


def test_the_factor_adds_no_noise_to_the_first_order():
    """400 resamples: the standard error by influence is the spread that is seen."""
    rng = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(400):
        z_N = rng.normal(-2, 1, 2_000)
        label_N = (rng.random(2_000) < 1 / (1 + np.exp(-z_N))).astype(float)
        rows = arrange(np.arange(2_000))
        found = free_normalised_loss("binary", 1 / (1 + np.exp(-z_N - 0.5)), label_N, rows, background=0.15)
        values.append(found.value_G[0])
        errors.append(spread(found, rows).se_G[0])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_one_class_and_no_rows_have_no_decomposition_to_speak_of():
    rows = arrange(np.arange(4), np.array([0, 0, 1, 1]), 3)
    found = decompose("binary", np.array([0.1, 0.2, 0.3, np.nan]), np.array([0.0, 0.0, 1.0, 0.0]), rows)
    assert found.discrimination_G[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(found.miscalibration_G[1:]).all()
    assert np.isfinite(free_normalised_loss("binary", np.full(4, 0.5), np.array([0.0, 0.0, 1.0, 1.0]), rows).value_G[:2]).all()
