"""Experiment tracking: W&B mirrors a run, nothing depends on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainer.config import TrackingConfig


def logger(config: TrackingConfig, run_dir: Path) -> Any:
    """Returns a Lightning logger, or None where nothing is tracked.

    Offline by default: a training node needs no network and no account; `wandb sync` uploads later.
    """
    if config.name == "none" or config.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # The run is opened here, because Lightning would pass a setting that W&B has retired and warns about.
    run = wandb.init(project=config.project, name=run_dir.name, dir=str(run_dir), mode="online" if config.mode == "online" else "offline")
    return WandbLogger(experiment=run)
