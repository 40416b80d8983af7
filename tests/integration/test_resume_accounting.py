"""Every row is trained once, whatever kills a run: loader workers, ranks, and their number after the kill make no difference."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import models
from tests import small
from trainer.config import FitConfig, OptimizerConfig, ScheduleConfig
from trainer.data import ShardStore, plan_batches
from trainer.data.shards import ShardKey
from trainer.fit.run import fit
from trainer.fit.train import shape_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MODEL = small.model_config(layers=1, dropout=0.0)
CHECKPOINT, KILLED = 4, 10  # the last checkpoint before the kill holds 8 steps; steps 8 to 10 are made again
KEYS = [ShardKey(f"2026-01-0{day}", bucket) for day in (1, 2) for bucket in (0, 1)]


class Watch(Callback):
    """Writes down the rows of every step whose optimizer step is done, and kills all processes of the run at a step."""

    def __init__(self, file: Path, kill_at: int) -> None:
        self.file = file
        self.kill_at = kill_at

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        step = trainer.datamodule.cursor
        with self.file.with_suffix(f".{trainer.global_rank}").open("a") as file:
            file.write(json.dumps({"step": step, "rows": batch.row_N.tolist()}) + "\n")
        if step == self.kill_at and trainer.global_rank == 0:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def shards(folder: Path) -> ShardStore:
    """Writes four shards whose rows are numbered apart."""
    store, encoder = ShardStore(folder / "shards"), small.encoder()
    for number, key in enumerate(KEYS):
        if not store.exists(key):
            shard = encoder.encode(*small.tables(seed=number, rows=300), 100 * small.HOUR)
            store.write(key, dataclasses.replace(shard, row_N=shard.row_N + 10_000 * number))
    return store


def run(folder: Path, file: Path, workers: int, ranks: int, kill_at: int) -> None:
    """Trains in this process; what a killed run left in `folder` is resumed."""
    store, encoder = shards(folder), small.encoder()
    torch.manual_seed(0)
    ranker = models.build(shape_of(MODEL, encoder.inputs, encoder.vocabularies))
    plan = plan_batches(KEYS, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0, ranks=ranks)
    device = {"device": "ddp", "devices": ranks} if ranks > 1 else {"device": "cpu"}
    fit(
        ranker, store, plan, action_weights={"click": 1.0, "like": 1.0}, optimizer=OptimizerConfig(), schedule=ScheduleConfig(),
        config=FitConfig(batch_targets=32, progress=False, checkpoint_steps=CHECKPOINT, workers=workers, **device),
        seed=0, warm=False, folder=folder / "fit", callbacks=[Watch(file, kill_at)],
    )  # fmt: skip


def in_a_process(folder: Path, file: str, workers: int, ranks: int, kill_at: int = -1) -> int:
    """Runs `run` in a process group of its own; returns how it ended."""
    call = f"run(Path({str(folder)!r}), Path({str(folder / file)!r}), {workers}, {ranks}, {kill_at})"
    code = f"from pathlib import Path\nfrom tests.integration.test_resume_accounting import run\n{call}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], check=False, env=environment, start_new_session=True, timeout=300).returncode


def steps_of(folder: Path, file: str, ranks: int) -> dict[tuple[int, int], list[int]]:
    """Returns (rank, step) -> rows; a step that is told twice by one run fails."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(ranks):
        for line in (folder / f"{file}.{rank}").read_text().splitlines():
            entry = json.loads(line)
            assert (rank, entry["step"]) not in found
            found[rank, entry["step"]] = entry["rows"]
    return found


@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [(0, 1, 1), *(pytest.param(*case, marks=pytest.mark.proof) for case in ((1, 0, 2), (1, 0, 1), (4, 1, 1), (0, 4, 1), (0, 1, 2)))],
)
def test_rows_trained_equal_the_rows_there_are_after_a_kill(tmp_path, before, after, ranks):
    assert in_a_process(tmp_path, "killed", before, ranks, KILLED) == -signal.SIGKILL
    assert (tmp_path / "fit" / "resume.ckpt").exists()
    assert in_a_process(tmp_path, "resumed", after, ranks) == 0
    first, second = steps_of(tmp_path, "killed", ranks), steps_of(tmp_path, "resumed", ranks)
    kept = KILLED // CHECKPOINT * CHECKPOINT
    assert min(step for _, step in second) == kept, "goes on where the checkpoint was made"
    counted = {**{place: rows for place, rows in first.items() if place[1] < kept}, **second}
    there = np.concatenate([shards(tmp_path).read(key).row_N for key in KEYS]).tolist()
    assert len(there) > 1000
    assert Counter(row for rows in counted.values() for row in rows) == Counter(there)
    again = [place for place in first if place in second]
    assert again and all(first[place] == second[place] for place in again), "the steps after the checkpoint are the same ones"
