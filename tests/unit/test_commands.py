"""What becomes of the command line before Hydra reads it."""

from __future__ import annotations

import multiprocessing

import joblib
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from trainer.commands import _checked_argument, _plain_processes
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


def _kinds() -> tuple[str, str]:
    """How processes are started in a trial before and after the wrapper looked: a pool of it must not inherit the launcher's kind."""
    before = multiprocessing.get_start_method()
    _plain_processes()
    return before, multiprocessing.get_start_method()


def test_a_trial_that_a_launcher_started_starts_processes_as_python_does():
    assert _kinds() == (multiprocessing.get_start_method(),) * 2, "elsewhere nothing changes"
    assert joblib.Parallel(n_jobs=2)([joblib.delayed(_kinds)()]) == [("loky", "spawn")]
