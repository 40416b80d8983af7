"""Metrics of slates against the definition, row by row."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trainer.metrics import arrange, concentration, gauc, rank_biased_overlap, spread, users_with_mixed_slates


def test_gauc_within_slates_averages_over_slates_with_both_classes():
    rng = np.random.default_rng(0)
    slate_N, group_N = rng.integers(0, 60, 600), rng.integers(0, 2, 600)
    label_N, score_N = (rng.random(600) < 0.3).astype(float), rng.random(600)
    rows = arrange(slate_N // 3, group_N, 2)
    found = gauc(score_N, label_N, rows, slate_N)
    for group in range(2):
        parts = []
        for slate in range(60):
            own_N = (group_N == group) & (slate_N == slate)
            if 0 < label_N[own_N].sum() < own_N.sum():
                parts.append((roc_auc_score(label_N[own_N], score_N[own_N]), own_N.sum()))
        value, weight = np.array(parts).T
        assert found.value_G[group] == pytest.approx(np.average(value, weights=weight))


def test_concentration_is_the_chance_that_two_draws_agree():
    rng = np.random.default_rng(1)
    code_N = rng.integers(0, 4, 40)
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    agree = np.mean([code_N[i] == code_N[j] for i, j in pairs])
    assert concentration(code_N, arrange(np.arange(40))).value_G[0] == pytest.approx(agree)
    assert concentration(np.zeros(5, int), arrange(np.arange(5))).value_G[0] == 1.0


def test_concentration_does_not_grow_because_the_sample_is_small():
    rng = np.random.default_rng(2)
    small = np.mean([concentration(rng.integers(0, 10, 50), arrange(np.arange(50))).value_G[0] for _ in range(300)])
    assert small == pytest.approx(0.1, abs=0.005)


def test_the_standard_error_of_concentration_is_the_spread_that_is_seen():
    rng = np.random.default_rng(3)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    found = []
    for _ in range(300):
        user_N = np.repeat(np.arange(300), 2)
        code_N = rng.choice(4, 300, p=share)[user_N]  # both rows of a user agree
        rows = arrange(user_N)
        estimate = concentration(code_N, rows)
        found.append((estimate.value_G[0], spread(estimate, rows).se_G[0]))
    value, error = np.array(found).T
    assert error.mean() == pytest.approx(value.std(), rel=0.15)


def _overlap(one, two, p):
    depths = range(1, len(one) + 1)
    parts = [(1 - p) * p ** (d - 1) * len(set(one[:d]) & set(two[:d])) / d for d in depths]
    return sum(parts) / (1 - p ** len(one))


def test_rank_biased_overlap_follows_its_definition():
    rng = np.random.default_rng(4)
    slate_N = np.repeat(np.arange(3), [4, 7, 1])
    score_N, other_N = rng.random(12), rng.random(12)
    expected = []
    for slate in range(3):
        own = np.flatnonzero(slate_N == slate)
        expected.append(_overlap(*(own[np.argsort(-x[own])].tolist() for x in (score_N, other_N)), 0.9))
    rows = arrange(np.arange(12))
    assert rank_biased_overlap(score_N, other_N, slate_N, rows).value_G[0] == pytest.approx(np.mean(expected))
    assert rank_biased_overlap(score_N, score_N, slate_N, rows).value_G[0] == pytest.approx(1.0)


def test_users_with_mixed_slates_are_counted_by_group():
    rows = arrange(np.array([1, 1, 1, 1, 2, 2, 3, 3, 3]), np.array([0, 0, 0, 0, 0, 0, 1, 1, 1]), groups=3)
    outcome_N, slate_N = np.array([0.0, 1, 1, 0, 0, 1, 0, 0, 5]), np.array([0, 0, 1, 1, 2, 3, 4, 4, 4])
    assert users_with_mixed_slates(outcome_N, rows, slate_N).tolist() == [1, 1, 0]  # user 1 twice, counted once; user 2 in no slate
    assert users_with_mixed_slates(outcome_N, rows).tolist() == [2, 1, 0]
