"""The loop of the main job on made-up batches of a chosen size: what `embedding.py` and `scaling.py` time.

Every step's batch holds the same sequences of items, under another renaming of the items each step. So a batch has the same
number of distinct ids at every vocabulary, and no step finds the rows of the last one in a cache.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

import models
from models.ranker import ActionShape, RankerShape
from trainer.config import OptimizerConfig, ScheduleConfig
from trainer.data import BatchModule, Shard, ShardStore, plan_batches
from trainer.data.shards import ShardKey
from trainer.fit.schedule import schedule_of
from trainer.fit.task import RankingTask
from trainer.schema.vocabulary import RESERVED_ROWS

POPULAR = 4_000  # items that sequences are made of, by Zipf's law; every vocabulary must hold as many
WARM_UP = 4  # steps that are not timed


@dataclass(frozen=True, kw_only=True)
class Case:
    """Size of a step.

    Attributes:
        architecture: ``sasrec`` or ``hstu``.
        vocabulary: Items, and as many users; authors are a tenth.
        length: Tokens of every history.
        dim: Width.
        layers: Blocks.
        batch_tokens: History tokens a step.
        workers: Loader processes.
        tables: `OptimizerConfig.tables`.
        steps: Timed steps.
    """

    architecture: str = "sasrec"
    vocabulary: int = 10_000
    length: int = 32
    dim: int = 64
    layers: int = 2
    batch_tokens: int = 4_096
    workers: int = 0
    tables: str = "adamw"
    steps: int = 20

    @property
    def units(self) -> int:
        """Sequences of a step."""
        return max(self.batch_tokens // self.length, 1)

    @property
    def vocabularies(self) -> dict[str, int]:
        """Rows of each vocabulary."""
        sizes = {"item": self.vocabulary, "user": self.vocabulary, "author": self.vocabulary // 10}
        return {name: size + RESERVED_ROWS for name, size in sizes.items()}


@dataclass(frozen=True)
class Measured:
    """What a case cost.

    Attributes:
        wall: Seconds of each timed step, waiting for data included.
        cpu: CPU seconds of each, of this process: what to compare where other work shares the machine.
    """

    wall: list[float]
    cpu: list[float]


def measure(case: Case, seed: int = 0) -> Measured:
    """Trains `WARM_UP` steps and times those that follow."""
    with tempfile.TemporaryDirectory() as folder:
        store = ShardStore(Path(folder))
        keys = [ShardKey(f"step-{step:04d}", 0) for step in range(WARM_UP + case.steps)]
        for step, key in enumerate(keys):
            store.write(key, _shard(case, step, seed))
        units = 10**9  # a shard is a step
        plan = plan_batches(keys, store.lengths, batch_targets=units, batch_tokens=units, passes=1, seed=seed)
        task = _task(case, plan.steps, seed)
        clock = Clock()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="lightning")
        trainer = L.Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu", devices=1, max_epochs=1, limit_val_batches=0,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, logger=False, callbacks=[clock],
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(task, datamodule=BatchModule(store, plan, case.workers))
    wall, cpu = (np.diff(values)[WARM_UP - 1 :].tolist() for values in (clock.wall, clock.cpu))
    return Measured(wall, cpu)


class Clock(Callback):
    """Moves the cursor, and notes when each step ends."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the step; the device's work belongs to it."""
        trainer.datamodule.cursor += 1  # type: ignore[attr-defined]
        if task.device.type == "cuda":
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def _task(case: Case, steps: int, seed: int) -> RankingTask:
    torch.manual_seed(seed)
    shape = RankerShape(
        architecture=case.architecture,
        actions=(ActionShape(name="click", kind="binary", base_rate=0.3), ActionShape(name="watch", kind="duration", base_rate=2.0)),
        history_actions=("click", "watch"), vocabularies=case.vocabularies, item_vocabulary="item", item_features={"author": "author"},
        categorical={"user": "user"}, numeric=("rate",), dim=case.dim, layers=case.layers, heads=2, head_dim=case.dim // 2,
        ffn_dim=4 * case.dim, context_dim=case.dim, dropout=0.1,
    )  # fmt: skip
    return RankingTask(
        models.build(shape), action_weights={"click": 1.0, "watch": 1.0}, optimizer=OptimizerConfig(tables=case.tables),
        schedule=schedule_of(ScheduleConfig(), steps, warm=False), ema_decay=0.98, seed=seed, max_skipped_steps=0,
    )  # fmt: skip


def _shard(case: Case, step: int, seed: int) -> Shard:
    """The same sequences at every step, each time under other names."""
    rng = np.random.default_rng(seed)
    tokens, targets = case.units * case.length, 2 * case.units
    popularity = 1 / np.arange(1, POPULAR + 1)
    item_T, item_N = (rng.choice(POPULAR, count, p=popularity / popularity.sum()) for count in (tokens, targets))
    user_N = np.repeat(rng.choice(POPULAR, case.units), 2)
    renamed = {name: _renaming(rows - RESERVED_ROWS, step) for name, rows in case.vocabularies.items()}
    time_T = np.tile(np.arange(case.length) * 60_000, case.units)
    return Shard(
        token_offsets_U1=np.arange(case.units + 1) * case.length, target_offsets_U1=np.arange(case.units + 1) * 2,
        token_item_T=renamed["item"][item_T], token_item_features_TI=renamed["author"][item_T % 400][:, None],
        token_features_TK=np.zeros((tokens, 0), np.int64), token_action_TH=rng.random((tokens, 2), np.float32),
        token_action_known_TH=rng.random((tokens, 2)) < 0.9, token_time_T=time_T,
        target_position_N=np.full(targets, case.length), target_time_N=np.full(targets, case.length * 60_000),
        target_item_N=renamed["item"][item_N], target_item_features_NI=renamed["author"][item_N % 400][:, None],
        target_token_features_NK=np.zeros((targets, 0), np.int64), categorical_NC=renamed["user"][user_N][:, None],
        numeric_NF=rng.standard_normal((targets, 1), np.float32), present_NF=np.ones((targets, 1), bool),
        label_NA=(rng.random((targets, 2)) < 0.3).astype(np.float32), known_NA=np.ones((targets, 2), bool),
        weight_N=np.ones(targets, np.float32), row_N=np.arange(targets),
    )  # fmt: skip


def _renaming(size: int, step: int) -> np.ndarray:
    """Returns int64 [POPULAR or fewer]: distinct rows of a vocabulary, others at every step: an affine bijection."""
    factor = next(number for number in range(size // 3 + 7 * step + 1, 2 * size) if math.gcd(number, size) == 1)
    return RESERVED_ROWS + (np.arange(min(POPULAR, size)) * factor + 7_919 * step) % size
