"""W&B mirrors a run: nothing depends on it."""

from __future__ import annotations

import pytest

from trainer.config import TrackingConfig
from trainer.errors import Stopped
from trainer.tracking import logger

wandb = pytest.importorskip("wandb")


def failing(monkeypatch, error):
    def init(**options):
        raise error

    monkeypatch.setattr(wandb, "init", init)


def test_service_that_does_not_start_costs_the_mirror_and_not_the_run(monkeypatch, tmp_path, capsys):
    failing(monkeypatch, TimeoutError("Failed to read port info after 30.0 seconds\nmore"))
    assert logger(TrackingConfig(), tmp_path) is None
    said = capsys.readouterr().err
    assert "goes on untracked" in said
    assert "TimeoutError: Failed to read port info after 30.0 seconds)" in said


def test_signal_that_comes_while_it_starts_still_stops_the_run(monkeypatch, tmp_path):
    failing(monkeypatch, Stopped("stopped by SIGTERM"))
    with pytest.raises(Stopped):
        logger(TrackingConfig(), tmp_path)
