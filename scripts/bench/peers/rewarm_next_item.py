"""rewarm's side of peers.py: `trainer.next_item`, with its own loader, optimizers, average and checkpoints.

    python rewarm_next_item.py JOB.json        # keys: `scripts/bench/peers.py`, `Job`

Runs in this project's environment.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from clock import Clock, Finished, on_device
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from models.flops import training_flops
from trainer import __version__
from trainer.config import RetrainConfig, load
from trainer.fit.cost import work_of_plan
from trainer.next_item.judge import ranker_scorer
from trainer.next_item.sequences import HELD_OUT, Sequences
from trainer.next_item.train import train
from trainer.next_item.units import TEST, questions

PASSES = 8  # planned where the clock ends the run


class Rounds(L.Callback):
    """Ends a step of the clock; a token and the event behind it are a pair, what a user's empty history predicts is none.

    Args:
        clock: The clock.
        items: Items of the softmax.
    """

    def __init__(self, clock: Clock, items: int) -> None:
        self.clock = clock
        self.items = items

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Waits for the first round."""
        ranker, data = task.ranker, trainer.datamodule  # type: ignore[attr-defined]
        self.clock.facts["parameters"] = sum(p.numel() for p in ranker.parameters())  # type: ignore[union-attr]
        work = work_of_plan(data.plan, data.store)
        self.clock.facts["flops"] = training_flops(ranker, work, self.items, data.plan.steps) / work.tokens  # type: ignore[arg-type]
        self.clock.begin()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch."""
        self.clock.step(batch.tokens)


def main(job: dict[str, Any]) -> None:
    sequences = read(job)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(job, folder)
        observers = [] if job["scores"] else [Rounds(Clock(version=__version__, **on_device(torch, job["device"])), job["items"])]
        try:
            fitted = train(config, sequences, top_k=10, every=1, folder=Path(folder), observers=observers)
        except Finished:
            return
    np.save(job["scores"], scores(fitted.ranker, job, sequences))


def read(job: dict[str, Any]) -> Sequences:
    """Returns the log; behind each user's training events stand two held-out ones, which nothing learns from."""
    table = pq.read_table(job["sequences"])
    items = [np.asarray(user, np.int64) for user in table["item_id"].to_pylist()]
    held = table["held"].to_pylist() if "held" in table.column_names else [user[-HELD_OUT:].tolist() for user in items]
    whole = [np.concatenate([user, pair]) for user, pair in zip(items, held, strict=True)]
    offsets_U1 = np.concatenate([[0], np.cumsum([len(user) for user in whole])]).astype(np.int64)
    return Sequences(pa.array(np.arange(len(whole))), pa.array(np.arange(job["items"])), offsets_U1, np.concatenate(whole))


def settings(job: dict[str, Any], folder: str) -> RetrainConfig:
    """Returns the shipped experiment in the job's shape; a run that is stopped by the clock plans as many passes as it may need."""
    values = {
        "data.root": folder, "run_dir": folder, "model": job["model"], "model.dim": job["dim"], "model.layers": job["layers"],
        "model.heads": job["heads"], "model.head_dim": job["dim"] // job["heads"], "model.dropout": job["dropout"],
        "model.max_history": job["length"], "fit.threads": job["threads"], "fit.passes": job["epochs"] or PASSES,
        "fit.device": job["device"], "fit.precision": "bf16" if job["device"] == "gpu" else "fp32",
        "fit.batch_targets": job["batch_targets"], "fit.batch_tokens": 4 * job["batch_targets"], "fit.progress": "false",
        "next_item.path": "none", "seed": job["seed"],
    }  # fmt: skip
    if job["model"] == "sasrec":
        values["model.ffn_dim"] = job["dim"]  # as in the paper, and in the peers
    with initialize_config_module("trainer.conf", version_base="1.3"):
        composed = compose("retrain", ["experiment=ml1m", *(f"{name}={value}" for name, value in values.items()), *job["overrides"]])
    return load(RetrainConfig, OmegaConf.to_container(composed))


@torch.no_grad()
def scores(ranker: Any, job: dict[str, Any], sequences: Sequences) -> np.ndarray:
    """Returns float32 [users, items]: scores after each user's history."""
    score, asked = ranker_scorer(ranker), questions(sequences, TEST, job["length"])
    blocks = [score(asked, units) for units in np.array_split(np.arange(asked.units), -(-asked.units // 256))]
    return torch.cat(blocks).numpy()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
