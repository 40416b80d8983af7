"""Takes a rank's share of the machine (`trainer.machine` decides how large it is)."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from trainer.config import FitConfig
from trainer.machine import Share, cores, keep_freed_memory, share, threads_of_openmp


def share_of(config: FitConfig) -> Share:
    """Returns what each rank of a training run takes."""
    return share(
        cores(),
        ranks=config.devices if config.device == "ddp" else 1,
        on_gpu=config.device != "cpu" and torch.cuda.is_available(),
        threads=config.threads,
        workers=config.workers,
        most=threads_of_openmp(),
    )


class TakeShare(Callback):
    """Sets threads and memory in the rank's own process: a spawned one knows nothing of what was set where it was started."""

    def __init__(self, taken: Share) -> None:
        self.taken = taken

    def setup(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        """Sets them before the first step."""
        torch.set_num_threads(self.taken.threads)
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
