from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from trainer.config import load
from trainer.inject import inject
from trainer.schema.injection import FaultSettings
from trainer.schema.logs import LogSpec
from trainer.schema.simulation import SimulationSpec
from trainer.simulate import simulate

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture(scope="session")
def log(tmp_path_factory) -> LogSpec:
    """Eight days of a simulated log, about 4,000 rows each; the last is a Monday."""
    root = tmp_path_factory.mktemp("log") / "simulated"
    simulate(SimulationSpec(seed=5, days=8, users=1500, items=500, births_per_day=20), root)
    return load(LogSpec, yaml.safe_load((CONF / "data" / "simulated.yaml").read_text()) | {"root": str(root)})


@pytest.fixture
def plant(log, tmp_path):
    """Plants one kind with the shipped settings (or others); returns the copy's specification, the truth and the hazards."""

    def run(kind: str, seed: int = 0, day: str | None = None, name: str = "copy", spec: LogSpec = log, **settings):
        shipped = yaml.safe_load((CONF / "faults" / f"{kind}.yaml").read_text())[kind]
        out = tmp_path / name
        truth, sites = inject(spec, out, {kind: load(FaultSettings, {**shipped, **settings})}, day=day, seed=seed)
        return replace(spec, root=str(out)), truth, sites

    return run
