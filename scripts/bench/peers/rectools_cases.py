"""RecTools' column of silent_failures.py. Runs in RecTools' own environment; prints one JSON line a case.

RecTools goes on from a model in two ways: `fit_partial` on a data set, and `load_weights_from_checkpoint` into a model that was built
for another one. Learning rate 0 where only the mapping is asked about, so what changes is not what was learned.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

warnings.filterwarnings("ignore")
ITEMS = [f"item {n:02d}" for n in range(24)]
DIM = 16


def dataset(items: list[str]) -> Dataset:
    """Forty users walk over the items; the first user meets them in the given order, which makes the order of the rows."""
    draw = np.random.default_rng(0)
    walks = [items, *([items[n] for n in draw.integers(0, len(items), 9)] for _ in range(40))]
    rows = [
        (user, item, 1.0, pd.Timestamp("2024-01-01") + pd.Timedelta(hours=hour))
        for user, walk in enumerate(walks)
        for hour, item in enumerate(walk)
    ]
    return Dataset.construct(pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]))


def model(**changes: object) -> SASRecModel:
    """A small SASRec whose learning rate is zero."""
    settings = {
        "n_blocks": 2,
        "n_heads": 2,
        "n_factors": DIM,
        "session_max_len": 12,
        "epochs": 1,
        "lr": 0.0,
        "batch_size": 16,
        "deterministic": True,
        "dropout_rate": 0.0,
        "item_net_block_types": (IdEmbeddingsItemNet,),
        **changes,
    }
    pl.seed_everything(int(changes != {}), verbose=False)
    return SASRecModel(**settings)


@torch.no_grad()
def scores(fitted: SASRecModel, kept: list[str]) -> torch.Tensor:
    """Scores of kept items after histories of kept items."""
    ids = list(fitted.data_preparator.item_id_map.external_ids)
    place = {item: ids.index(item) for item in kept}
    draw, network = np.random.default_rng(1), fitted.lightning_model.torch_model.eval().cpu()
    rows = torch.tensor([[place[kept[n]] for n in draw.integers(0, len(kept), 12)] for _ in range(20)])
    return network({"x": rows})[:, -1, [place[item] for item in kept]]


def fit_partial(items: list[str]) -> tuple[SASRecModel, SASRecModel]:
    """Goes on with `fit_partial` on another data set."""
    before, after = model().fit(dataset(ITEMS)), model().fit(dataset(ITEMS))
    return before, after.fit_partial(dataset(items), 1, 1)


def load_weights(change: Callable[[dict], dict] = dict, **shape: object) -> tuple[SASRecModel, SASRecModel]:
    """Loads a checkpoint's weights into a model of another shape."""
    before = model().fit(dataset(ITEMS))
    after = model(**shape).fit(dataset(ITEMS))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "last.ckpt"
        before.fit_trainer.save_checkpoint(file)
        content = torch.load(file, weights_only=False)
        torch.save({**content, "state_dict": change(content["state_dict"])}, file)
        after.load_weights_from_checkpoint(file)
    return before, after


def renamed(state: dict) -> dict:
    """A tower that used to have another name."""
    return {name.replace("last_layernorm", "final_norm"): value for name, value in state.items()}


def moved_padding(state: dict) -> dict:
    """Padding in the last row, as other code keeps it."""
    return {name: value.roll(-1, 0) if name.endswith("ids_emb.weight") else value for name, value in state.items()}


CASES: dict[str, tuple[Callable[[], tuple[SASRecModel, SASRecModel]], list[str]]] = {
    "same ids in another order": (lambda: fit_partial(sorted(ITEMS, key=lambda item: item[::-1])), ITEMS),
    "one id swapped for a new one": (lambda: fit_partial(["new item", *ITEMS[1:]]), ITEMS[1:]),
    "one id added": (lambda: fit_partial([*ITEMS[:5], "new item", *ITEMS[5:]]), ITEMS),
    "one id dropped": (lambda: fit_partial([*ITEMS[:5], *ITEMS[6:]]), [*ITEMS[:5], *ITEMS[6:]]),
    "width changed": (lambda: load_weights(n_factors=24), ITEMS),
    "depth changed": (lambda: load_weights(n_blocks=3), ITEMS),
    "padding row moved": (lambda: load_weights(moved_padding), ITEMS),
    "renamed tower": (lambda: load_weights(renamed), ITEMS),
    "extra unused tensor": (lambda: load_weights(lambda state: {**state, "statistics.mean": torch.ones(3)}), ITEMS),
}


def outcome(name: str) -> dict[str, str]:
    """Carries a case out; a new id that owns a retired id's row is wrong too."""
    run, kept = CASES[name]
    try:
        before, after = run()
        old, new = scores(before, kept), scores(after, kept)
    except Exception as error:
        return {"case": name, "outcome": "error", "detail": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
    right = torch.allclose(old, new, rtol=0, atol=1e-5 * float(old.abs().max()))
    if name == "one id swapped for a new one":
        tables = [m.lightning_model.torch_model.item_model.get_all_embeddings().detach() for m in (before, after)]
        ids = [list(m.data_preparator.item_id_map.external_ids) for m in (before, after)]
        right = right and not torch.equal(tables[0][ids[0].index(ITEMS[0])], tables[1][ids[1].index("new item")])
    return {"case": name, "outcome": "right" if right else "wrong_silently", "detail": ""}


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps(outcome(case)), flush=True)
