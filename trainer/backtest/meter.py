"""Watches training: what it has cost so far, and how good the weights that would be served are by then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from models.batch import Batch
from models.flops import forward_flops, training_flops
from models.ranker import Ranker
from trainer.errors import DataError
from trainer.fit.task import RankingTask
from trainer.schema.files import write_text

METER = "meter.json"


@dataclass(frozen=True)
class Point:
    """One point of a learning curve.

    Attributes:
        step: Steps done.
        flops: Operations spent so far in this run (`models.flops`).
        seconds: Seconds spent in training steps so far; judging does not count.
        ne: Action -> NE on the judged rows; empty where the point was not judged.
    """

    step: int
    flops: int
    seconds: float
    ne: dict[str, float]


class Meter(Callback):
    """Counts compute, and judges the served weights before the first step and at a few points on the way.

    It must stand before the callback that moves the cursor: a checkpoint then holds the step it was saved after.

    Args:
        judge: NE by action of a ranker in evaluation mode; None only counts.
        checkpoints: Judged points between the first and the last step, evenly spread over the logarithm of the step.
        folder: Where `METER` is written when training ends.
        teacher: Ranker whose forward pass every batch pays for as well (an upper bound: its scores are kept for further passes);
            None where nobody had to compute them.
    """

    def __init__(
        self, judge: Callable[[Ranker], dict[str, float]] | None, checkpoints: int, folder: Path, teacher: Ranker | None = None
    ) -> None:
        self.judge = judge
        self.checkpoints = checkpoints
        self.folder = folder
        self.teacher = teacher
        self.points: list[Point] = []
        self.flops, self.seconds, self.clock = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, task: RankingTask) -> None:  # type: ignore[override]
        """Judges where training begins, unless a killed run has done so, and starts the clock."""
        if not self.points:
            self._add(0, task)
        self.clock = time.perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, task: RankingTask, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts a step; judges at the planned ones."""
        self.seconds += time.perf_counter() - self.clock
        data = trainer.datamodule  # type: ignore[attr-defined]
        copies = 1 if task.annealed is None or data.cursor < task.annealed.steps - task.annealed.anneal else 2
        self.flops += copies * training_flops(task.ranker, batch)
        if self.teacher is not None:
            self.flops += forward_flops(self.teacher, batch)
        if data.cursor + 1 in milestones(data.plan.steps, self.checkpoints):
            self._add(data.cursor + 1, task)
        self.clock = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, task: RankingTask) -> None:  # type: ignore[override]
        """Writes the curve; its last point is the whole run, judged later as the bundle that was written."""
        steps = trainer.datamodule.plan.steps  # type: ignore[attr-defined]
        self.points.append(Point(steps, self.flops, self.seconds, {}))
        write_text(self.folder / METER, json.dumps([asdict(point) for point in self.points], indent=1))

    def _add(self, step: int, task: RankingTask) -> None:
        served = task.ranker if task.average is None else task.average  # an annealed copy is judged at the end only
        training = served.training
        try:
            ne = self.judge(served.eval()) if self.judge else {}
        finally:
            served.train(training)
        self.points.append(Point(step, self.flops, self.seconds, ne))

    def state_dict(self) -> dict[str, Any]:
        """Returns the curve so far and what was spent."""
        return {"points": [asdict(point) for point in self.points], "spent": [self.flops, self.seconds]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the curve and what was spent."""
        self.points = [Point(**point) for point in state["points"]]
        self.flops, self.seconds = state["spent"]


def milestones(steps: int, checkpoints: int) -> set[int]:
    """Returns the steps after which a curve is judged: at most `checkpoints`, none of them the last."""
    if steps < 2 or not checkpoints:
        return set()
    return {int(step) for step in np.geomspace(1, steps, checkpoints + 1).round()} - {steps}


def read_points(folder: Path) -> list[Point]:
    """Reads what a finished run's meter wrote.

    Raises:
        DataError: If it is absent or damaged: what the run has cost is then unknown.
    """
    try:
        return [Point(**point) for point in json.loads((folder / METER).read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            "what a night of training has cost is unknown", where=folder / METER, got=str(error),
            remedy="remove the folder of that night; it is trained again",
        ) from error  # fmt: skip
