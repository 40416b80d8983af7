"""A small simulated log and a way to run the main job in process."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer.config import BacktestConfig, RetrainConfig, load
from trainer.schema.simulation import SimulationSpec
from trainer.simulate import simulate

SMALL = (
    "model.dim=16", "model.head_dim=8", "model.ffn_dim=32", "model.context_dim=16", "model.max_history=8", "model.layers=1",
    "fit.device=cpu", "fit.progress=false", "fit.batch_targets=256", "scan.workers=1", "rebuild.workers=1", "rebuild.user_buckets=2",
    "downstream.trees=10", "evaluation.bootstrap=20", "tracking=none", "downstream.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Six days of a small feed: 2026-03-02 (a Monday) to 2026-03-07."""
    out = tmp_path_factory.mktemp("log") / "simulated"
    with initialize_config_module("trainer.conf", version_base="1.3"):
        values = OmegaConf.to_container(compose("simulate", ["simulation=tiny", f"out={out}"]), resolve=True)
    simulate(load(SimulationSpec, values["simulation"]), out)
    return out


def configure(*overrides):
    with initialize_config_module("trainer.conf", version_base="1.3"):
        prefixed = [f"++{o}" if "." in o.split("=")[0] else o for o in (*SMALL, *overrides)]
        return load(RetrainConfig, OmegaConf.to_container(compose("retrain", prefixed), resolve=True))


def configure_backtest(*overrides):
    """Four small arms, the baseline and the reference among them."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        prefixed = [f"++{o}" if "." in o.split("=")[0] else o for o in (*SMALL, "arms=small", *overrides)]
        return load(BacktestConfig, OmegaConf.to_container(compose("backtest", prefixed), resolve=True))
