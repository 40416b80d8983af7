"""Simulated predictions with known truth: labels are drawn from production's own probabilities, so production is calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from trainer.config import load
from trainer.schema.policy import GatePolicy, RuleSet

CONF = Path(__file__).resolve().parents[3] / "conf"
WEIGHTS = {"click": 1.0, "like": 3.0}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p / (1 - p))


@pytest.fixture
def policy():
    """A policy as shipped, with some values replaced."""

    def make(name: str = "refresh", **changes) -> GatePolicy:
        return load(GatePolicy, {**yaml.safe_load((CONF / "gate" / f"{name}.yaml").read_text()), **changes})

    return make


@pytest.fixture
def no_rules():
    return RuleSet()


@pytest.fixture
def world():
    """Columns of a predictions table: clustered users, slates of ten rows, two actions, twenty countries."""

    def make(rows: int = 40_000, users: int = 4_000, countries: int = 20, noise: float = 0.05, seed: int = 0, heavy: bool = False) -> dict:
        rng = np.random.default_rng(seed)
        user_N = rng.integers(0, users, rows)
        if heavy:  # one per cent of the users own half the rows
            often_N = rng.random(rows) < 0.5
            user_N[often_N] = rng.integers(0, users // 100, often_N.sum())
        effect_U = rng.normal(0, 0.7, users)
        columns = {
            "user": user_N, "item": rng.integers(0, 500, rows), "request": user_N * 1000 + rng.integers(0, 2, rows),
            "time": 1_650_000_000_000 + rng.integers(0, 86_400_000, rows), "country": rng.integers(0, countries, rows),
        }  # fmt: skip
        for shift, action in enumerate(WEIGHTS):
            logit_N = -2.5 - 0.5 * shift + effect_U[user_N] + rng.normal(0, 1, rows)
            columns[f"label_{action}"] = (rng.random(rows) < sigmoid(logit_N)).astype(float)
            columns[f"production_{action}"] = sigmoid(logit_N)
            columns[f"challenger_{action}"] = sigmoid(logit_N + rng.normal(0, noise, rows) - noise**2 / 2)
        return with_values(columns)

    return make


def with_values(columns: dict) -> dict:
    """Recomputes both value columns from the scores."""
    for model in ("production", "challenger"):
        columns[f"value_{model}"] = sum(weight * columns[f"{model}_{action}"] for action, weight in WEIGHTS.items())
    return columns


@pytest.fixture
def revalued():
    return with_values


@pytest.fixture
def table():
    return lambda columns: pa.table(columns)
