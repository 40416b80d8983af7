import json

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.metrics import evaluate_action


def _log(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    score_N = rng.random(n) * 0.4
    return (rng.random(n) < score_N).astype(float), score_N, rng.integers(0, 300, n)


def test_binary_metrics_and_intervals():
    label_N, score_N, user_N = _log()
    [found] = evaluate_action(label_N, score_N, user_N)
    parts = {"miscalibration", "discrimination", "uncertainty"}
    assert set(found.plain()) == {"auc", "gauc", "ne", "ne_free", "log_loss", "ratio", "ece", "n", "positives"} | parts
    assert found.n == 4000 and found.positives == label_N.sum() and found.users == 300
    for name in set(found.values) - parts:
        assert found.values[name].low <= found.values[name].value <= found.values[name].high, name
    worth = found.values
    assert worth["log_loss"].value == pytest.approx(
        worth["miscalibration"].value - worth["discrimination"].value + worth["uncertainty"].value
    )
    assert found.values["ratio"].low < 1 < found.values["ratio"].high
    json.dumps([found.plain(), found.intervals()], allow_nan=False)


def test_unripe_rows_are_left_out():
    label_N, score_N, user_N = _log()
    unripe_N = np.arange(4000) % 4 == 0
    [found] = evaluate_action(np.where(unripe_N, np.nan, label_N), score_N, user_N)
    [expected] = evaluate_action(label_N[~unripe_N], score_N[~unripe_N], user_N[~unripe_N])
    assert found == expected


def test_a_duration_has_its_own_metrics():
    label_N, score_N, user_N = _log()
    [found] = evaluate_action(label_N * 12.5, score_N * 12.5, user_N, kind="duration")
    assert set(found.plain()) == {"rank_correlation", "deviance", "mae", "ratio", "n", "positives"}
    assert found.values["deviance"].value < 1


def test_degenerate_cases_are_named_and_null():
    label_N, score_N, user_N = _log()
    cases = {
        "no rows": (np.full(4000, np.nan), score_N),
        "one class": (np.zeros(4000), score_N),
        "constant score": (label_N, np.full(4000, 0.2)),
        "score not finite": (label_N, np.where(np.arange(4000) == 7, np.nan, score_N)),
    }
    for note, (labels, scores) in cases.items():
        [found] = evaluate_action(labels, scores, user_N)
        assert note in found.notes
        if note != "constant score":
            assert found.plain()["auc"] is None and found.intervals()["auc"] is None
        json.dumps([found.plain(), found.intervals()], allow_nan=False)


def test_groups_equal_separate_evaluations():
    label_N, score_N, user_N = _log()
    group_N = user_N % 3
    for group, found in enumerate(evaluate_action(label_N, score_N, user_N, group_N=group_N, groups=3, background=0.2, bootstrap=0)):
        own_N = group_N == group
        [expected] = evaluate_action(label_N[own_N], score_N[own_N], user_N[own_N], background=0.2, bootstrap=0)
        for name in ("auc", "gauc", "ne", "ratio", "ece"):
            assert found.plain()[name] == pytest.approx(expected.plain()[name], abs=1e-12)
        assert found.values["auc"].low == pytest.approx(expected.values["auc"].low, abs=1e-12)


def test_same_input_same_numbers():
    assert evaluate_action(*_log()) == evaluate_action(*_log())


@pytest.mark.parametrize(
    ("label", "kind", "message"), [(0.5, "binary", "neither 0 nor 1"), (-1.0, "count", "negative"), (1.0, "ordinal", "unknown kind")]
)
def test_impossible_labels_are_refused(label, kind, message):
    with pytest.raises(DataError, match=message):
        evaluate_action(np.array([label, 1.0]), np.array([0.1, 0.2]), np.array([1, 2]), kind=kind)
