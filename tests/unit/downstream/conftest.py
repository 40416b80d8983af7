from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import DownstreamConfig

pytest.importorskip("lightgbm", reason="needs the extra `downstream`")


@pytest.fixture
def config() -> DownstreamConfig:
    return DownstreamConfig(trees=60, leaves=15, learning_rate=0.1)


def vectors(values_ND: np.ndarray) -> pa.Array:
    flat = pa.array(values_ND.astype(np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_ND.shape[1])


@pytest.fixture(scope="session")
def log() -> Callable[..., pa.Table]:
    """A log in which a click depends on a plain feature, a category, and user times item vectors."""

    def make(rows: int = 6000, users: int = 600, seed: int = 0, strength: float = 2.0) -> pa.Table:
        generator = np.random.default_rng(seed)
        user_U4, item_I4 = generator.normal(size=(users, 4)), generator.normal(size=(50, 4))
        user_N, item_N = generator.integers(0, users, rows), generator.integers(0, 50, rows)
        plain_N, tab_N = generator.normal(size=rows), generator.integers(0, 3, rows)
        dot_N = (user_U4[user_N] * item_I4[item_N]).sum(1) / 2
        logit_N = -1 + 0.7 * plain_N + np.array([0, 0.8, -0.8])[tab_N] + strength * dot_N
        click_N = (generator.random(rows) < 1 / (1 + np.exp(-logit_N))).astype(np.float32)
        return pa.table(
            {
                "user": pa.array([f"u{user}" for user in user_N]), "item": item_N, "request_time": np.arange(rows),
                "feature_plain": plain_N.astype(np.float32), "feature_tab": pa.array([f"tab{tab}" for tab in tab_N]),
                "label_click": click_N, "dot": dot_N.astype(np.float32), "noise": generator.normal(size=rows).astype(np.float32),
                "user_vector": vectors(user_U4[user_N]), "item_vector": vectors(item_I4[item_N]),
            }
        )  # fmt: skip

    return make
