"""RecTools' side of rectools_succession.py: trains, exports, and goes on with `fit_partial` on the same rows in another order.

    python rectools_succession.py FOLDER      # FOLDER/rows.json in; FOLDER/exported and FOLDER/rectools.json out

Runs in RecTools' own environment.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

warnings.filterwarnings("ignore")
WINDOW, TOP = 32, 10


def main(folder: Path) -> None:
    rows = json.loads((folder / "rows.json").read_text())
    train, asked = held_out(rows)
    pl.seed_everything(0, verbose=False)
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=WINDOW,
        epochs=25,
        batch_size=64,
        lr=3e-3,
        dropout_rate=0.1,
        deterministic=True,
        item_net_block_types=(IdEmbeddingsItemNet,),
    )
    model.fit(dataset(train))
    found = {"trained": hit_rate(model, asked)}
    exporter().export(model, folder / "exported")
    for name, again in (("same order", train), ("another order", sorted(train, key=lambda row: (-row[0], row[2])))):
        partial = copy.deepcopy(model).fit_partial(dataset(again), 1, 1)
        found[f"fit_partial, {name}"] = hit_rate(partial, asked)
    (folder / "rectools.json").write_text(json.dumps(found))


def held_out(rows: list[list[Any]]) -> tuple[list[list[Any]], list[tuple[list[Any], Any]]]:
    """Splits off every user's last event; returns the rest, and (history, item that came next)."""
    walks: dict[int, list[Any]] = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        walks.setdefault(user, []).append(item)
    last = {user: len(walk) - 1 for user, walk in walks.items()}
    return [row for row in rows if row[2] < last[row[0]]], [(walk[:-1], walk[-1]) for walk in walks.values()]


def dataset(rows: list[list[Any]]) -> Dataset:
    """A RecTools data set: rows of items follow the order in which items first appear."""
    begin = pd.Timestamp("2024-01-01")
    values = [(user, item, 1.0, begin + pd.Timedelta(hours=place)) for user, item, place in rows]
    return Dataset.construct(pd.DataFrame(values, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]))


@torch.no_grad()
def hit_rate(model: SASRecModel, asked: list[tuple[list[Any], Any]]) -> float:
    """Share of users whose next item is among the ten best that they have not seen."""
    ids = list(model.data_preparator.item_id_map.external_ids)
    row = {item: place for place, item in enumerate(ids)}
    network = model.lightning_model.torch_model.eval().cpu()
    hits = 0
    for history, item in asked:
        window = torch.zeros(1, WINDOW, dtype=torch.int64)
        recent = torch.tensor([row[seen] for seen in history[-WINDOW:]])
        window[0, -len(recent) :] = recent
        score = network({"x": window})[0, -1]
        score[[0, *(row[seen] for seen in history)]] = -torch.inf
        hits += row[item] in score.topk(TOP).indices.tolist()
    return hits / len(asked)


def exporter() -> Any:
    """Loads scripts/export_rectools.py, which is no package."""
    spec = importlib.util.spec_from_file_location("export_rectools", Path(__file__).parents[2] / "export_rectools.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
