"""Experiment tracking: W&B mirrors a run, nothing depends on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from trainer.config import TrackingConfig
from trainer.errors import RewarmError


def logger(config: TrackingConfig, run_dir: Path) -> Any:
    """Returns a Lightning logger, or None where nothing is tracked.

    Offline by default: a training node needs no network and no account; `wandb sync` uploads later. Where W&B does not start, say
    because its service does not answer on a busy machine, the run says so and goes on untracked: a night is worth more than its mirror.
    """
    if config.name == "none" or config.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # The run is opened here, because Lightning would pass a setting that W&B has retired and warns about.
    try:
        run = wandb.init(
            project=config.project, name=run_dir.name, dir=str(run_dir), mode="online" if config.mode == "online" else "offline"
        )
    except RewarmError:  # a signal that came meanwhile
        raise
    except Exception as error:  # theirs have no common class, and none of them may end a night
        reason = str(error).strip().splitlines()[:1] or [""]
        print(f"tracking: W&B did not start, the run goes on untracked ({type(error).__name__}: {reason[0]})", file=sys.stderr, flush=True)
        return None
    return WandbLogger(experiment=run)
