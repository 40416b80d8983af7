"""Every shipped configuration composes, loads, and says what it means; the README's worked specification is a real one."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.conftest import ROOT
from trainer.config import (
    BacktestConfig,
    CompareRunConfig,
    DiagnoseRunConfig,
    GateRunConfig,
    ImportConfig,
    InjectConfig,
    ModelConfig,
    ReleaseRunConfig,
    RetrainConfig,
    ScanRunConfig,
    ScoreConfig,
    SimulateConfig,
    SuiteRunConfig,
    load,
    resolve_log_spec,
)
from trainer.errors import ConfigError

ROOTS = {
    "retrain": RetrainConfig,
    "judge": GateRunConfig,
    "inspect": ScanRunConfig,
    "simulate": SimulateConfig,
    "operate": ReleaseRunConfig,
    "backtest": BacktestConfig,
    "compare": CompareRunConfig,
    "diagnose": DiagnoseRunConfig,
    "import": ImportConfig,
    "inject": InjectConfig,
    "score": ScoreConfig,
    "suite": SuiteRunConfig,
}
OWNERS = {"simulation": "simulate", "arms": "backtest", "faults": "inject"}  # groups that the main job does not have
NEEDED = ("data.root", "predictions", "run_dir", "out", "old", "new", "checkpoint", "input")
GIVEN = {
    "inject": ["faults=constant"],
    "import": ["format=rectools", "as_of=2026-03-27"],
    "diagnose": [],
    "suite": ["action=list"],
    "score": ["rebuild.root=x"],
}


def composed(name, *overrides):
    with initialize_config_module("trainer.conf", version_base="1.3"):
        config = compose(name, list(overrides))
    for key in NEEDED:
        if OmegaConf.is_missing(config, key.split(".")[0]) or (
            key == "data.root" and "data" in config and OmegaConf.is_missing(config.data, "root")
        ):
            OmegaConf.update(config, key, f"somewhere/{key}")
    return OmegaConf.to_container(config, resolve=True)


def choices():
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir()):
        for file in sorted(group.glob("*.yaml")):
            yield group.name, file.stem


@pytest.mark.parametrize(("group", "choice"), list(choices()))
def test_every_choice_composes_and_loads(group, choice):
    name = OWNERS.get(group, "retrain")
    load(ROOTS[name], composed(name, f"{group}={choice}"))


@pytest.mark.parametrize("name", ROOTS)
def test_every_root_loads(name):
    load(ROOTS[name], composed(name, *GIVEN.get(name, [])))


def test_every_root_is_listed():
    assert {path.stem for path in (ROOT / "conf").glob("*.yaml")} == set(ROOTS) | {"settings"}


def test_the_worked_specification_of_the_readme_loads(tmp_path):
    block = re.search(r"```yaml\n# my_logs.yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    file = tmp_path / "my_logs.yaml"
    file.write_text(block.group(1))
    values = {**composed("retrain"), "data": {"spec": str(file)}}
    config = load(RetrainConfig, resolve_log_spec(values, {"data.spec": str(file), "evaluation.slice_rows": "7"}))
    assert config.data.name == "my_feed" and set(config.features.counters) == set(yaml.safe_load(block.group(1))["counters"])
    assert config.evaluation.slices == ["surface"] and config.evaluation.slice_rows == 7


def test_types_and_ranges_are_checked_by_name():
    good = {"name": "sasrec"}
    assert load(ModelConfig, good).dim == 64
    for key, value in (("dim", "64"), ("dim", True), ("dim", 0), ("head_dim", 7), ("name", "gru"), ("nope", 1)):
        with pytest.raises(ConfigError, match=key):
            load(ModelConfig, {**good, key: value}, "model")


def test_new_rows_without_moments_are_adagrads():
    """Under Adam's large count of steps they would overshoot."""
    load(RetrainConfig, composed("retrain", "warm_start.new_rows=none", "optimizer.tables=rowwise_adagrad"))
    for override in ("optimizer.tables=adamw", "warm_start.optimizer=reset"):
        with pytest.raises(ConfigError, match="new_rows"):
            load(RetrainConfig, composed("retrain", "optimizer.tables=rowwise_adagrad", "warm_start.new_rows=none", override))
