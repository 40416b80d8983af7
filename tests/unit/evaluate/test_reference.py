"""The value function stands beside every model that scores all its actions."""

import numpy as np
import pytest

from trainer.evaluate.run import _with_values


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
