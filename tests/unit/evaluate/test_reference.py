"""The value function stands beside every model that scores all its actions."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluate.run import _production_columns, _with_values
from trainer.schema.predictions import unscored


def _columns(*models: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"time": np.zeros(5)} | {f"{model}_{action}": rng.random(5) for model in models for action in ("click", "like")}


def test_the_reference_gets_a_value_of_its_own():
    columns = _with_values(_columns("production", "challenger", "reference"), {"click": 1.0, "like": 3.0})
    for model in ("production", "challenger", "reference"):
        assert columns[f"value_{model}"] == pytest.approx(columns[f"{model}_click"] + 3 * columns[f"{model}_like"])


def test_a_reference_that_lacks_an_action_has_no_value():
    columns = _columns("production", "challenger", "reference")
    del columns["reference_like"]
    assert "value_reference" not in _with_values(columns, {"click": 1.0, "like": 3.0})
    assert "value_reference" not in _with_values(_columns("production", "challenger"), {"click": 1.0, "like": 3.0})


def test_rows_without_a_logged_score_have_no_value_and_are_told_from_scores_that_are_no_number():
    examples = pa.table({"logged_click": [0.2, None, 0.4, float("nan"), 0.1], "logged_like": [0.0, 0.1, 0.2, 0.3, float("inf")]})
    spec = SimpleNamespace(logged_scores={"click": "score_click", "like": "score_like"})
    logged = _production_columns(spec, examples, examples, None, 0, None)
    columns = _with_values(_columns("challenger") | logged, {"click": 1.0, "like": 3.0})
    table = pa.table(columns)
    assert unscored(table).tolist() == [False, True, False, True, False]
    assert table["value_production"].to_pylist() == [0.2, None, pytest.approx(1.0), None, float("inf")]
    broken = pa.table(_with_values(_columns("challenger") | {"production_click": np.array([0.1, np.nan, 0, 0, 0])}, {"click": 1.0}))
    assert not unscored(broken).any(), "a bundle that makes NaN is broken, not silent"
