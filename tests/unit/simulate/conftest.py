from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.schema.simulation import SimulationReport, SimulationSpec
from trainer.simulate import ProductionScorer, Scorer, World, serve, simulate

CONF = Path(__file__).parents[3] / "conf"


@dataclass(frozen=True)
class Log:
    """A simulation on disk, and its specification."""

    spec: SimulationSpec
    folder: Path
    report: SimulationReport

    def read(self, day: str, part: str = "events") -> pa.Table:
        path = self.folder / part / f"dt={day}" / "part-0.parquet"
        return pq.read_table(path, partitioning=None, page_checksum_verification=True)


@pytest.fixture(scope="session")
def tiny() -> SimulationSpec:
    return SimulationSpec(**yaml.safe_load((CONF / "simulation" / "tiny.yaml").read_text()))


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SimulationSpec], Log]:
    def run(spec: SimulationSpec) -> Log:
        folder = tmp_path_factory.mktemp("simulated")
        return Log(spec, folder, simulate(spec, folder))

    return run


@pytest.fixture(scope="session")
def log(tiny: SimulationSpec, write: Callable[[SimulationSpec], Log]) -> Log:
    return write(tiny)


@pytest.fixture(scope="session")
def play() -> Callable[..., dict[str, np.ndarray]]:
    """Runs the feed without writing it; returns the cells of all days, with the day."""

    def run(spec: SimulationSpec, scorer_of: Callable[[World], Scorer] = ProductionScorer) -> dict[str, np.ndarray]:
        world = World(spec)
        scorer = scorer_of(world)
        days = [serve(world, scorer, day) for day in range(spec.days)]
        cells = {name: np.concatenate([feed.cells[name] for feed in days]) for name in days[0].cells}
        return cells | {"day": np.repeat(np.arange(spec.days), [len(feed) for feed in days])}

    return run


@pytest.fixture(scope="session")
def many(tiny: SimulationSpec, play: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """About 70,000 events, enough to test probabilities."""
    return play(dataclasses.replace(tiny, users=2000, days=7))
