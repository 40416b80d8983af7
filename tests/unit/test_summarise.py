"""What a run says has changed against the live model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests import small
from trainer.config import OptimizerConfig, ScheduleConfig
from trainer.schema.plain import as_plain
from trainer.summarise import _changes


def bundle(**model: Any) -> Any:
    config = {"model": as_plain(small.model_config()), "optimizer": as_plain(OptimizerConfig()), "schedule": as_plain(ScheduleConfig())}
    config["model"] = {name: value for name, value in {**config["model"], **model}.items() if value != "absent"}
    inputs = SimpleNamespace(numeric=[], categorical={})
    return SimpleNamespace(
        manifest=SimpleNamespace(config=config, inputs=inputs, code_version="", labels={}, value={}, trained={}), sha256="p"
    )


def changed(old: Any, new: Any) -> dict[str, list[Any]]:
    days, examples = SimpleNamespace(train=[], refused=[]), SimpleNamespace(source_days={})
    return _changes(None, days, examples, new, old)["config"]  # type: ignore[arg-type]


def test_a_setting_that_older_code_did_not_have_is_a_change_only_away_from_its_default():
    default = small.model_config().norm
    assert changed(bundle(norm="absent"), bundle()) == {}
    assert changed(bundle(norm="absent"), bundle(norm="other")) == {"model.norm": [default, "other"]}
    assert changed(bundle(dim=16), bundle(dim=32)) == {"model.dim": [16, 32]}
