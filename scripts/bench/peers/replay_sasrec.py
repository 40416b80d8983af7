"""RePlay's side of peers.py: SASRec of `replay.nn` with full cross-entropy, trained by Lightning from its Parquet module.

    python replay_sasrec.py JOB.json        # keys: `scripts/bench/peers.py`, `Job`

Runs in RePlay's own environment (`pip install torch==2.13.0 "replay-rec[torch]"`).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow.parquet as pq
import torch
from clock import Clock, Finished, on_device, trained_on
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder
from replay.nn.transform.template import make_default_sasrec_transforms

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
ITEM = "item_id"
BUCKET = 32  # sequences encoded together where the encoder sorts them by length


class Rounds(L.Callback):
    """Ends a step of the clock with the pairs that the batch's targets hold."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Waits for the first round."""
        self.clock.begin()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch."""
        pairs = batch["target_padding_mask"].squeeze(-1) & batch["padding_mask"]
        self.clock.step(pairs.sum())


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    L.seed_everything(job["seed"], verbose=False)
    schema = schema_of(job)
    model = SasRec.from_params(
        schema, embedding_dim=job["dim"], num_heads=job["heads"], num_blocks=job["layers"], max_sequence_length=job["length"],
        dropout=job["dropout"],
    )  # fmt: skip
    if job["bucketed"]:
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, BUCKET)
    module = LightningModule(model, optimizer_factory=OptimizerFactory(learning_rate=job["lr"]))
    data = ParquetModule(
        batch_size=job["batch"],
        # One more than the model's window: the transform shifts the sequence by one to get its targets.
        metadata={"train": {ITEM: {"shape": job["length"] + 1, "padding": job["items"]}}},
        transforms=make_default_sasrec_transforms(schema),
        train_path=job["sequences"],
    )
    parameters = sum(p.numel() for p in model.parameters())
    clock = Clock(version=version("replay-rec"), parameters=parameters, **on_device(torch, job["device"]))
    trainer = L.Trainer(
        **trained_on(job["device"]), max_epochs=job["epochs"] or -1,
        limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[] if job["scores"] else [Rounds(clock)],
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data)
    except Finished:
        return
    np.save(job["scores"], scores(model.eval(), job))


def schema_of(job: dict[str, Any]) -> TensorSchema:
    item = TensorFeatureInfo(
        ITEM, is_seq=True, feature_type=FeatureType.CATEGORICAL, embedding_dim=job["dim"], padding_value=job["items"],
        cardinality=job["items"], feature_hint=FeatureHint.ITEM_ID, feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, ITEM)],
    )  # fmt: skip
    return TensorSchema([item])


@torch.no_grad()
def scores(model: SasRec, job: dict[str, Any]) -> np.ndarray:
    """Returns float32 [users, items]: scores after each user's history."""
    histories = pq.read_table(job["questions"])[ITEM].to_pylist()
    row_BL = torch.full((len(histories), job["length"]), job["items"])
    for row, history in zip(row_BL, histories, strict=True):
        row[len(row) - len(history) :] = torch.tensor(history)
    blocks = [model({ITEM: block}, block != job["items"])["logits"] for block in row_BL.split(256)]
    return torch.cat(blocks)[:, : job["items"]].numpy()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
