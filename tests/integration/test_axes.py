"""A warm start keeps the axes of its embeddings: what a consumer reads in a coordinate tonight is what stood there last night."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.align import ROTATION, Pairs, compare, fit, pair, read_table
from trainer.align.agreement import agreement
from trainer.align.compare import SAME

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def nights(simulated, tmp_path_factory) -> Callable[[str, str], Pairs]:
    """The serving vectors, which no alignment touched: of the first night beside those of the second, warm or cold."""
    root = tmp_path_factory.mktemp("axes")

    def night(name: str, day: str, registry: str, seed: int) -> None:
        config = configure(
            "data=simulated", f"data.root={simulated}", f"registry.root={root / registry}", f"rebuild.root={root / 'rebuild'}",
            f"run_dir={root / name}", f"as_of={day}", "gate.first=promote", f"seed={seed}",
        )  # fmt: skip
        pipeline.retrain(config)

    def vectors(entity: str, name: str) -> Pairs:
        old, new = (read_table(_folder(root, each), entity) for each in ("first", name))
        return pair(old, new)

    night("first", "2026-03-06", "registry", seed=0)
    night("warm", "2026-03-07", "registry", seed=1)
    night("cold", "2026-03-07", "empty", seed=1)
    return vectors


def _folder(root: Path, name: str) -> Path:
    return root / name / "embeddings"


def diagonal(pairs: Pairs) -> np.ndarray:
    """Cosine between each axis of the new night and where the best rotation takes it: float [D], ones where nothing turned."""
    half_E = pairs.half_E & pairs.old_ED.any(axis=1) & pairs.new_ED.any(axis=1)
    return np.diag(fit(pairs.old_ED[half_E], pairs.new_ED[half_E], ROTATION).rotation_DD)


def gain(pairs: Pairs) -> float:
    """Share of the old variance that the best rotation, fitted on one half, explains in the other beyond what agrees as it is."""
    alignment = fit(pairs.old_ED[pairs.half_E], pairs.new_ED[pairs.half_E], ROTATION)
    old_ED, new_ED = pairs.old_ED[~pairs.half_E], pairs.new_ED[~pairs.half_E]
    return agreement(old_ED, new_ED).residual - agreement(old_ED, alignment.apply(new_ED)).residual


def test_items_of_a_warm_start_lie_where_they_lay(nights):
    pairs = nights("item", "warm")
    assert (pairs.old_ED != pairs.new_ED).any(axis=1).all(), "the night has trained"
    assert compare(pairs).outcome == SAME
    assert diagonal(pairs).min() > 0.99
    assert gain(pairs) < 0.01


def test_users_move_with_their_histories_but_no_rotation_explains_it(nights):
    pairs = nights("user", "warm")
    assert diagonal(pairs).mean() > 0.8
    assert gain(pairs) < 0.05


@pytest.mark.parametrize("entity", ["item", "user"])
def test_a_cold_start_has_axes_of_its_own(nights, entity: str):
    pairs = nights(entity, "cold")
    assert abs(diagonal(pairs).mean()) < 0.3
    assert gain(pairs) > 0.2


@pytest.mark.parametrize("entity", ["item", "user"])
def test_a_warm_start_that_permuted_its_width_would_be_seen(nights, entity: str):
    """Scores stay what they were, and the vectors of either night look alike but for the order of their numbers."""
    pairs = nights(entity, "warm")
    permuted = replace(pairs, new_ED=np.roll(pairs.new_ED, 1, axis=1))
    assert abs(diagonal(permuted).mean()) < 0.3
    assert gain(permuted) > 0.2
    if entity == "item":
        assert compare(permuted).outcome != SAME
