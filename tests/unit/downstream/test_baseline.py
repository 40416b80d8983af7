import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from trainer.downstream import baseline
from trainer.errors import ConfigError, DataError

FEATURES = ["feature_plain", "feature_tab", "dot"]


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    rest = table.drop_columns(name) if name in table.column_names else table
    return rest.append_column(name, values)


def test_it_ranks_later_rows_and_is_calibrated(log, config):
    table = log(rows=8000)
    train, holdout = table.slice(0, 6000), table.slice(6000)
    score_N = baseline(train, holdout, {"click": "binary"}, FEATURES, config, seed=0)["click"]
    label_N = holdout["label_click"].to_numpy()
    assert score_N.dtype == np.float64
    assert roc_auc_score(label_N, score_N) > 0.8
    assert 0.9 < score_N.sum() / label_N.sum() < 1.1


def test_same_inputs_same_scores_whatever_the_threads_and_nothing_is_read_from_the_holdouts_labels(log, config):
    train, holdout = log(), log(rows=500, seed=1)
    first_N = baseline(train, holdout, {"click": "binary"}, FEATURES, config, seed=0)["click"]
    unlabelled = holdout.drop_columns("label_click")
    two = dataclasses.replace(config, threads=2)
    for settings in (config, two):
        assert np.array_equal(baseline(train, unlabelled, {"click": "binary"}, FEATURES, settings, seed=0)["click"], first_N)
    assert not np.array_equal(baseline(train, holdout, {"click": "binary"}, FEATURES, config, seed=1)["click"], first_N)


def test_a_rows_score_does_not_depend_on_the_rest_of_the_holdout(log, config):
    train, holdout = log(), log(rows=500, seed=1)
    whole_N = baseline(train, holdout, {"click": "binary"}, FEATURES, config, seed=0)["click"]
    part_N = baseline(train, holdout.slice(100, 50), {"click": "binary"}, FEATURES, config, seed=0)["click"]
    assert np.array_equal(part_N, whole_N[100:150])
    assert len(baseline(train, holdout.slice(0, 0), {"click": "binary"}, FEATURES, config, seed=0)["click"]) == 0


def test_unknown_and_missing_categories_are_scored(log, config):
    holdout = log(rows=3, seed=1)
    holdout = with_column(holdout, "feature_tab", pa.array(["never seen", None, "tab1"]))
    score_N = baseline(log(), holdout, {"click": "binary"}, FEATURES, config, seed=0)["click"]
    assert np.isfinite(score_N).all()


def test_counts_and_durations_are_expectations(log, config):
    generator = np.random.default_rng(0)
    table = log(rows=4000)
    mean_N = np.exp(table["feature_plain"].to_numpy())
    table = with_column(table, "label_shares", pa.array(generator.poisson(mean_N).astype(np.float32)))
    table = with_column(table, "label_seconds", pa.array((10 * mean_N * generator.random(4000)).astype(np.float32)))
    actions = {"shares": "count", "seconds": "duration"}
    scores = baseline(table.slice(0, 3000), table.slice(3000), actions, ["feature_plain"], config, seed=0)
    for action, expected_N in (("shares", mean_N[3000:]), ("seconds", 5 * mean_N[3000:])):
        assert (scores[action] >= 0).all()
        assert np.corrcoef(scores[action], expected_N)[0, 1] > 0.8
        assert 0.85 < scores[action].mean() / expected_N.mean() < 1.15


def test_an_action_that_never_happened_is_predicted_never_to_happen(log, config):
    train = with_column(log(), "label_click", pa.array(np.zeros(6000, np.float32)))
    assert not baseline(train, log(rows=10), {"click": "binary"}, FEATURES, config, seed=0)["click"].any()


def test_wrong_input_is_refused(log, config):
    table = log(rows=1000)
    with pytest.raises(ConfigError, match="unknown kind"):
        baseline(table, table, {"click": "bniary"}, FEATURES, config, seed=0)
    with pytest.raises(ConfigError, match="did you mean 'label_click'"):
        baseline(table, table, {"clik": "binary"}, FEATURES, config, seed=0)
    with pytest.raises(DataError, match="no training row"):
        unripe = with_column(table, "label_click", pa.nulls(1000, pa.float32()))
        baseline(unripe, table, {"click": "binary"}, FEATURES, config, seed=0)
    with pytest.raises(ConfigError, match="feature is not in the table"):
        baseline(table, table.drop_columns("dot"), {"click": "binary"}, FEATURES, config, seed=0)
