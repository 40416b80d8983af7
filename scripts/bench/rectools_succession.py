"""The same model, the same data: what RecTools makes of re-ordered rows, and what rewarm makes of the model.

    python scripts/bench/rectools_succession.py --rectools /path/to/python [--out DIR]

`--rectools` is the interpreter of an environment with RecTools (`pip install "rectools[torch]"`). There a SASRec learns 400 walks over 300
items, and goes on with `fit_partial`: on the same rows, and on the same rows in another order. Here its export is imported (scores
equal to 1e-5 of the largest), then succeeded: 4 layers instead of 2, an attention head more, a feed-forward layer twice as wide,
histories twice as long, 100 items more, ten fewer, every item in another row; and trained on for two passes. Hit rate: the held-out
last event of every user is among the ten best of the whole catalogue, seen items removed. Once ten items are dropped, their events
are too, for both models.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

import models
from trainer.checkpoint import build_ranker, read_bundle
from trainer.config import ImportConfig, NextItemConfig, RegistryConfig, RetrainConfig, load
from trainer.importing import run as import_checkpoint
from trainer.next_item.judge import judge, ranker_scorer
from trainer.next_item.sequences import Sequences, read_sequences
from trainer.next_item.train import read_fitted, shape_of, train
from trainer.next_item.units import TEST, questions
from trainer.next_item.warm import begin, with_catalogue
from trainer.release import Registry

PEER = Path(__file__).parent / "peers" / "rectools_succession.py"
USERS, ITEMS, NEW_ITEMS, TOP = 400, 300, 100, 10
DROPPED = [f"i{number:03d}" for number in range(100, 110)]
LENGTH = 64  # of the successor's histories
FILE = "sasrec_order.parquet"
_COLUMNS = NextItemConfig(path=FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rectools", required=True, help="python of an environment with RecTools")
    parser.add_argument("--out", type=Path, help="folder to keep; a temporary one otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        show(compare(arguments.rectools, out))


def compare(python: str, out: Path) -> list[tuple[str, str, float, str]]:
    """Runs both sides; returns (tool, what, hit rate, remark)."""
    write_rows(out)
    subprocess.run([python, PEER, out], check=True, stdout=subprocess.DEVNULL)
    theirs = json.loads((out / "rectools.json").read_text())
    result = [("RecTools", what, rate, "") for what, rate in theirs.items()]
    registry = RegistryConfig(root=str(out / "registry"))
    imported = import_checkpoint(
        ImportConfig(format="rectools", checkpoint=str(out / "exported"), as_of="2024-01-31", promote=True, registry=registry)
    )
    live = Registry(out / "registry").production_path()
    assert live is not None  # promoted
    bundle = read_bundle(live / "bundle")
    old, production = with_catalogue(read_sequences(out, _COLUMNS), bundle), build_ranker(bundle)
    remark = f"largest difference {imported.proof.max_difference:.1e}, bound {imported.proof.bound:.1e}"
    result.append(("rewarm", "imported", hit_rate(production, old), remark))
    old = without_events_of(old, DROPPED)
    result.append(("rewarm", f"the same, without the events of {len(DROPPED)} items", hit_rate(production, old), ""))
    grown = in_another_order(old, DROPPED)
    config = configured(out, imported.model)
    torch.manual_seed(0)
    ranker = models.build(shape_of(config.model, grown.items, bundle))
    begin(config.warm_start, ranker, grown, bundle, LENGTH, seed=0)
    kept = np.asarray(pc.index_in(grown.item_ids[NEW_ITEMS:], value_set=old.item_ids))
    difference = float((scores(ranker.eval(), grown)[:, NEW_ITEMS:] - scores(production, old)[:, kept]).abs().max())
    remark = f"largest difference {difference:.1e} of {grown.users:,} x {len(kept)} scores"
    what = f"grown, {NEW_ITEMS} items more, {len(DROPPED)} fewer, another order"
    result.append(("rewarm", what, hit_rate(ranker, grown), remark))
    folder = out / "next_item"
    folder.mkdir(exist_ok=True)
    train(config, grown, TOP, 1, folder, bundle)
    fitted = read_fitted(folder)
    parameters = sum(p.numel() for p in fitted.ranker.parameters())
    result.append(
        ("rewarm", "the same, trained on", hit_rate(fitted.ranker, grown), f"{len(fitted.curve)} passes, {parameters:,} parameters")
    )
    return result


def write_rows(out: Path) -> None:
    """Writes walks over a cycle of items: whoever knows the order of the items knows what comes next."""
    draw = random.Random(0)
    starts = [(draw.randrange(ITEMS), draw.randrange(12, 31)) for _ in range(USERS)]
    rows = [(user, f"i{(start + step) % ITEMS:03d}", step) for user, (start, length) in enumerate(starts) for step in range(length)]
    (out / "rows.json").write_text(json.dumps(rows))
    user, item, position = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "seq_pos": position}), out / FILE)


def without_events_of(sequences: Sequences, items: list[str]) -> Sequences:
    """The other events, with the same catalogue."""
    kept_E = ~np.isin(sequences.item_E, np.asarray(pc.index_in(pa.array(items), value_set=sequences.item_ids)))
    user_E = np.repeat(np.arange(sequences.users), np.diff(sequences.offsets_U1))
    offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_E[kept_E], minlength=sequences.users))])
    return replace(sequences, offsets_U1=offsets_U1, item_E=sequences.item_E[kept_E])


def in_another_order(sequences: Sequences, dropped: list[str]) -> Sequences:
    """The same events; items but the dropped ones in reverse order, behind a hundred new ones, which nobody has met yet."""
    new = pa.array([f"new{number:03d}" for number in range(NEW_ITEMS)])
    kept = sequences.item_ids.filter(pc.invert(pc.is_in(sequences.item_ids, value_set=pa.array(dropped))))
    keys = pa.concat_arrays([new, kept.take(pa.array(np.arange(len(kept))[::-1]))])
    place_V = np.asarray(pc.fill_null(pc.index_in(sequences.item_ids, value_set=keys), -1), np.int64)
    return replace(sequences, item_ids=keys, item_E=place_V[sequences.item_E])


def scores(ranker: models.Ranker, sequences: Sequences) -> Tensor:
    """Returns [users, items]: scores of the whole catalogue, for everybody's last event."""
    asked = questions(sequences, TEST, LENGTH)
    return ranker_scorer(ranker)(asked, np.arange(asked.units))


def hit_rate(ranker: models.Ranker, sequences: Sequences) -> float:
    """Share of users whose last event is among the ten best of the catalogue."""
    return float(judge(ranker_scorer(ranker), sequences, TEST, 64, TOP)[f"hr@{TOP}"])


def configured(out: Path, imported: object) -> RetrainConfig:
    """The shipped next-item experiment with production's model, grown."""
    model = {
        **{key: value for key, value in vars(imported).items() if value is not None},
        "layers": 4,
        "heads": 3,
        "ffn_dim": 128,
        "positions": LENGTH,
        "max_history": LENGTH,
    }
    settings = {
        **{f"model.{key}": value for key, value in model.items()},
        "data.root": out,
        "run_dir": out / "run",
        "registry.root": out / "registry",
        "fit.passes": 2,
        "fit.batch_targets": 1024,
        "fit.progress": False,
        "fit.device": "cpu",
        "fit.ema_decay": 0.0,
        "schedule.warmup_steps": 5,
    }
    with initialize_config_module("trainer.conf", version_base="1.3"):
        composed = compose(
            "retrain", ["experiment=ml1m", "warm_start=production", *(f"++{key}={value}" for key, value in settings.items())]
        )
    return load(RetrainConfig, OmegaConf.to_container(composed, resolve=True))


def show(result: list[tuple[str, str, float, str]]) -> None:
    """Prints the table and a JSON line a row."""
    table = Table(title=f"hit rate at {TOP} on the same held-out events", title_justify="left")
    for column in ("tool", "model", "hit rate", ""):
        table.add_column(column)
    for tool, what, rate, remark in result:
        table.add_row(tool, what, f"{rate:.3f}", remark)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    for tool, what, rate, remark in result:
        print(json.dumps({"tool": tool, "model": what, "hit_rate": rate, "remark": remark}))


if __name__ == "__main__":
    main()
