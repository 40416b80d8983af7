"""What becomes of the command line before Hydra reads it."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from trainer.commands import _checked_argument
from trainer.config import RetrainConfig, ScoreConfig

DAY_FILE = "/logs/events/dt=2026-03-27/hour=04/part 0.parquet"


@pytest.mark.parametrize(
    ("argument", "kind", "value"),
    [
        (f"input={DAY_FILE}", ScoreConfig, DAY_FILE),
        (f"input='{DAY_FILE}'", ScoreConfig, DAY_FILE),
        ("data.root=/logs/run=3", ScoreConfig, "/logs/run=3"),
        ("warm_start.rename={click: click@feed}", RetrainConfig, {"click": "click@feed"}),
        ("model.dim=32", RetrainConfig, 32),
    ],
)
def test_a_path_through_day_folders_needs_no_quotes(argument, kind, value):
    [override] = OverridesParser.create().parse_overrides([_checked_argument(argument, kind)])
    assert override.value() == value
