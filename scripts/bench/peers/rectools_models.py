"""RecTools' side of peers.py: SASRec and HSTU with full softmax, trained by the model's own `fit`.

    python rectools_models.py JOB.json        # keys: `scripts/bench/peers.py`, `Job`

Runs in RecTools' own environment (`pip install torch==2.13.0 "rectools[torch]"`).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from clock import Clock, Finished, on_device, trained_on
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
DAY = pd.Timedelta("1D")


class Rounds(pl.Callback):
    """Ends a step of the clock with the pairs that the batch's targets hold."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Waits for the first round."""
        self.clock.facts["parameters"] = sum(p.numel() for p in task.parameters())
        self.clock.begin()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch."""
        self.clock.step((batch["y"] != 0).sum())


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    pl.seed_everything(job["seed"], verbose=False)
    clock = Clock(version=version("rectools"), **on_device(torch, job["device"]))

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            **trained_on(job["device"]), max_epochs=-1,
            limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Rounds(clock)],
        )  # fmt: skip

    kind = {"sasrec": SASRecModel, "hstu": HSTUModel}[job["model"]]
    # The log has an order and no clock, so HSTU goes without the part that reads one.
    settings = {"relative_time_attention": False} if job["model"] == "hstu" else {}
    model = kind(
        n_blocks=job["layers"], n_heads=job["heads"], n_factors=job["dim"], session_max_len=job["length"], dropout_rate=job["dropout"],
        loss="softmax", lr=job["lr"], batch_size=job["batch"], item_net_block_types=(IdEmbeddingsItemNet,),
        train_min_user_interactions=2, get_trainer_func=trainer, **settings,
    )  # fmt: skip
    try:
        model.fit(dataset(job))
    except Finished:
        return


def dataset(job: dict[str, Any]) -> Dataset:
    """Returns the log; its order becomes days."""
    arrays = np.load(Path(job["sequences"]).with_suffix(".npz"))  # RecTools holds numpy below 2, and pyarrow above
    length_U = arrays["length_U"]
    place_E = np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)
    frame = pd.DataFrame({
        Columns.User: np.repeat(np.arange(len(length_U)), length_U),
        Columns.Item: arrays["item_E"],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2000-01-01") + place_E * DAY,
    })  # fmt: skip
    return Dataset.construct(frame)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
