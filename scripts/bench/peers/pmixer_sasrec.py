"""pmixer's side of peers.py: SASRec of github.com/pmixer/SASRec.pytorch, by its own model and sampler, with the loss of its script.

    python pmixer_sasrec.py JOB.json        # keys: `scripts/bench/peers.py`, `Job`; `source` is the folder with its model.py and utils.py

It is in no package registry: clone it, and give the folder with --pmixer. Every position has one negative of its own and a binary
cross-entropy, so a step needs two dot products a position where the other tools' softmax needs the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from clock import Clock, Finished, on_device

SAMPLERS = 3  # processes that draw negatives, as in its main.py


def main(job: dict[str, Any]) -> None:
    if job["scores"]:
        raise SystemExit("only its speed is measured: its loss learns another score than a softmax over the catalogue")
    sys.path.insert(0, job["source"])
    from model import SASRec
    from utils import WarpSampler

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002 - its sampler takes its processes' seeds from here
    items = pq.read_table(job["sequences"])["item_id"].to_pylist()
    events = {user: [item + 1 for item in mine] for user, mine in enumerate(items, start=1)}  # 0 is its padding
    shape = {"hidden_units": job["dim"], "num_blocks": job["layers"], "num_heads": job["heads"], "maxlen": job["length"]}
    device = "cuda" if job["device"] == "gpu" else "cpu"
    model = SASRec(len(events), job["items"], Namespace(device=device, norm_first=False, dropout_rate=job["dropout"], **shape)).to(device)
    begin(model)
    sampler = WarpSampler(events, len(events), job["items"], batch_size=job["batch"], maxlen=job["length"], n_workers=SAMPLERS)
    source = hashlib.sha256((Path(job["source"]) / "model.py").read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in model.parameters())
    clock = Clock(version=f"model.py {source[:8]}", parameters=parameters, **on_device(torch, job["device"]))
    with suppress(Finished):
        learn(model, sampler, clock, job["lr"])
    sampler.close()


def begin(model: torch.nn.Module) -> None:
    """Starts the weights as its script does: Xavier for matrices, zero for padding."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter.data)
    with torch.no_grad():
        model.get_submodule("item_emb").weight[0] = 0  # type: ignore[index,operator]
        model.get_submodule("pos_emb").weight[0] = 0  # type: ignore[index,operator]


def learn(model: torch.nn.Module, sampler: Any, clock: Clock, lr: float) -> None:
    """Makes steps until the clock ends them."""
    adam = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    entropy = torch.nn.BCEWithLogitsLoss()
    model.train()
    clock.begin()
    while True:
        user_B, history_BL, next_BL, negative_BL = (np.array(column) for column in sampler.next_batch())
        right_BL, wrong_BL = model(user_B, history_BL, next_BL, negative_BL)
        real_BL = torch.from_numpy(next_BL != 0).to(right_BL.device)
        right_N, wrong_N = right_BL[real_BL], wrong_BL[real_BL]
        adam.zero_grad()
        (entropy(right_N, torch.ones_like(right_N)) + entropy(wrong_N, torch.zeros_like(wrong_N))).backward()
        adam.step()
        clock.step(len(right_N))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
