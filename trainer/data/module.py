"""The Lightning data module: plays a batch plan from a cursor, so that resume neither loses nor repeats a batch.

Lightning's own resume of loaders loses or repeats batches in several configurations. The cursor is the number of steps
whose optimizer step is done; it is part of the data module's state, which Lightning restores before it builds a loader, and
the loader simply starts there. There is no shuffle buffer and nothing is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L

from models.batch import Batch
from trainer.data.batches import join, take
from trainer.data.plan import BatchPlan, PlannedBatch
from trainer.data.shards import ShardStore
from trainer.errors import TrainingError

AHEAD = 4  # batches that each loader thread may be ahead of the step


class Loader:
    """Batches of one rank from a step on, in order; threads make them ahead of the steps that take them.

    Threads, not processes: to make a batch is to copy, which runs outside of Python's lock, and a batch of twenty tensors costs more
    to hand from process to process than to make (scripts/bench/RESULTS.md). Threads also share the shards they have read.

    Its length is that of the whole plan: Lightning adds the steps of the killed run to its count of fetched batches, and would stop
    that many batches early if the loader told its remaining length.

    Args:
        store: Encoded shards.
        batches: The rank's batches; item i is step i.
        start: First step.
        workers: Threads; 0 makes each batch when it is asked for.
        pin: Whether batches lie in page-locked memory, from which a GPU copies while it computes.
    """

    def __init__(self, store: ShardStore, batches: list[PlannedBatch], start: int = 0, workers: int = 0, pin: bool = False) -> None:
        self.store = store
        self.batches = batches
        self.start = start
        self.workers = workers
        self.pin = pin

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start, len(self.batches))
        if not self.workers:
            yield from map(self._make, steps)
            return
        pool, ahead = ThreadPoolExecutor(self.workers, thread_name_prefix="loader"), deque[Future[Batch]]()
        try:
            for step in steps:
                ahead.append(pool.submit(self._make, step))
                if len(ahead) > AHEAD * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # also where the steps end before the batches
            pool.shutdown(cancel_futures=True)

    def _make(self, step: int) -> Batch:
        planned = self.batches[step]
        batch = join([take(self.store.read(part.key), part.units_B) for part in planned.parts])
        return batch.pin_memory() if self.pin else batch


class BatchModule(L.LightningDataModule):
    """Loads the batches of a plan.

    Attributes:
        store: Encoded shards.
        plan: All steps of the run.
        workers: Loader threads.
        cursor: Steps already trained.
        identity: Steps and hash of the plan.
    """

    def __init__(self, store: ShardStore, plan: BatchPlan, workers: int = 0) -> None:
        super().__init__()
        self.store = store
        self.plan = plan
        self.workers = workers
        self.cursor = 0
        self.identity = f"{plan.steps} steps, {plan.sha256[:16]}"

    def train_dataloader(self) -> Loader:
        """Returns the loader of this rank's remaining batches."""
        trainer = self.trainer
        rank, pin = (0, False) if trainer is None else (trainer.global_rank, trainer.strategy.root_device.type == "cuda")
        return Loader(self.store, self.plan.of_rank(rank), self.cursor, self.workers, pin)

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        """Moves a batch; pinned memory makes the copy asynchronous."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the cursor and the plan's identity, by which a resume checks that it plays the same plan."""
        return {"cursor": self.cursor, "plan": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the cursor.

        Raises:
            TrainingError: If the plan is another one: steps would be lost or made twice.
        """
        if state["plan"] != self.identity:
            raise TrainingError(
                "cannot resume: the batch plan changed",
                got=self.identity,
                expected=state["plan"],
                remedy="the code or the shards changed: remove resume.ckpt of the run's fit folder, and training begins anew",
            )
        self.cursor = state["cursor"]
