"""Times the training loop: how long steps take, and how long they wait for the next batch."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class Clock(Callback):
    """Must stand before all other observers, so that what they do (judging, saving) counts neither as a step nor as waiting.

    On an accelerator the host runs ahead of the device: one step's time is that of its launches, their sum is the run's.

    Attributes:
        steps: Seconds of each step of this process.
        seconds: Seconds of all steps, those of a killed attempt before it included.
        waited: Seconds between steps in which the loop fetched and moved batches.
        first: Seconds of the first step; allocation and compilation make it slow.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.seconds, self.waited, self.first = 0.0, 0.0, 0.0
        self._begun = self._idle = time.perf_counter()
        self.observed = _Observed(self)

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the wait and begins the step."""
        self._begun = time.perf_counter()
        self.waited += self._begun - self._idle

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends the step; the last one when the device has done all of them."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if task.device.type == "cuda" and data.cursor + 1 == data.plan.steps:
            torch.cuda.synchronize(task.device)
        took = time.perf_counter() - self._begun
        if self.seconds == 0:
            self.first = took
        self.steps.append(took)
        self.seconds += took

    def begin_waiting(self) -> None:
        """Begins the wait for the next batch."""
        self._idle = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums."""
        return {"seconds": self.seconds, "waited": self.waited, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sums."""
        self.seconds, self.waited, self.first = state["seconds"], state["waited"], state["first"]


class _Observed(Callback):
    """Stands behind all other observers of a step: the wait begins where they have done their work."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.clock.begin_waiting()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.begin_waiting()
