"""The Lightning data module: plays a batch plan from a cursor, so that resume neither loses nor repeats a batch.

Lightning's own resume of loaders loses or repeats batches in several configurations. The cursor is the number of steps
whose optimizer step is done; it is part of the data module's state, which Lightning restores before it builds a loader, and
the loader simply starts there. There is no shuffle buffer and nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset, Sampler

from models.batch import Batch
from trainer.data.batches import take
from trainer.data.plan import BatchPlan, PlannedBatch
from trainer.data.shards import ShardStore
from trainer.errors import TrainingError


class PlannedBatches(Dataset):
    """Batches of one rank: item i is step i."""

    def __init__(self, store: ShardStore, batches: list[PlannedBatch]) -> None:
        self.store = store
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        planned = self.batches[index]
        return take(self.store.read(planned.key), planned.units_B)


class RemainingSteps(Sampler[int]):
    """Steps from the cursor on. Its length is that of the whole plan: Lightning adds the steps of the killed run to its count
    of fetched batches, and would stop that many batches early if the loader told its remaining length.
    """

    def __init__(self, start: int, steps: int) -> None:
        self.start = start
        self.steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.steps))

    def __len__(self) -> int:
        return self.steps


def _identity(item: Any) -> Any:
    return item


class BatchModule(L.LightningDataModule):
    """Loads the batches of a plan.

    Attributes:
        store: Encoded shards.
        plan: All steps of the run.
        workers: Loader processes.
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

    def train_dataloader(self) -> DataLoader:
        """Returns the loader of this rank's remaining batches."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return DataLoader(
            PlannedBatches(self.store, self.plan.of_rank(rank)),
            sampler=RemainingSteps(self.cursor, self.plan.steps),
            batch_size=None,
            collate_fn=_identity,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

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
                remedy="start in a new run_dir",
            )
        self.cursor = state["cursor"]
