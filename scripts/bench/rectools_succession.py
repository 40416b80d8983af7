"""The same model, the same data: what RecTools makes of re-ordered rows, and what rewarm makes of the model.

    python scripts/bench/rectools_succession.py --rectools /path/to/python [--out DIR]

`--rectools` is the interpreter of an environment with RecTools (`pip install "rectools[torch]"`). There a SASRec learns 400 walks over 300
items, and goes on with `fit_partial`: on the same rows, and on the same rows in another order. Here its export is imported (scores
equal to 1e-5 of the largest), then succeeded: 4 layers instead of 2, a feed-forward layer twice as wide, histories twice as long, 100
items more, every item in another row; and trained on for two passes. Hit rate: the held-out last event of every user is among the ten
best of the whole catalogue, seen items removed.
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
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import models
from trainer.checkpoint import build_ranker, read_bundle
from trainer.config import ImportConfig, NextItemConfig, RegistryConfig, RetrainConfig, load
from trainer.importing import run as import_checkpoint
from trainer.next_item.judge import judge, ranker_scorer
from trainer.next_item.sequences import Sequences, read_sequences
from trainer.next_item.train import read_fitted, shape_of, train
from trainer.next_item.units import TEST
from trainer.next_item.warm import begin, with_catalogue
from trainer.release import Registry

PEER = Path(__file__).parent / "peers" / "rectools_succession.py"
USERS, ITEMS, NEW_ITEMS, TOP = 400, 300, 100, 10
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
    bundle = read_bundle(Registry(out / "registry").production_path() / "bundle")
    old = with_catalogue(read_sequences(out, _COLUMNS), bundle)
    rate = hit_rate(build_ranker(bundle), old)
    result.append(("rewarm", "imported", rate, f"largest difference {imported.proof.max_difference:.1e}, bound {imported.proof.bound:.1e}"))
    grown = with_catalogue(in_another_order(read_sequences(out, _COLUMNS)), bundle)
    config = configured(out, imported.model)
    torch.manual_seed(0)
    ranker = models.build(shape_of(config.model, grown.items, bundle))
    start = begin(config.warm_start, ranker, grown, bundle, config.model.max_history, seed=0)
    parity = (start.report or {})["parity"]
    remark = f"largest difference {parity['max_difference']:.1e} on {parity['rows']} probes, exact {parity['exact']}"
    result.append(("rewarm", f"grown, {NEW_ITEMS} items more, another order", hit_rate(ranker.eval(), grown), remark))
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


def in_another_order(sequences: Sequences) -> Sequences:
    """The same events; items in reverse order behind a hundred new ones, which nobody has met yet."""
    new = pa.array([f"new{number:03d}" for number in range(NEW_ITEMS)])
    keys = pa.concat_arrays([new, sequences.item_ids.take(pa.array(np.arange(sequences.items)[::-1]))])
    return replace(sequences, item_ids=keys, item_E=NEW_ITEMS + sequences.items - 1 - sequences.item_E)


def hit_rate(ranker: models.Ranker, sequences: Sequences) -> float:
    """Share of users whose last event is among the ten best of the catalogue."""
    return float(judge(ranker_scorer(ranker), sequences, TEST, 64, TOP)[f"hr@{TOP}"])


def configured(out: Path, imported: object) -> RetrainConfig:
    """The shipped next-item experiment with production's model, grown."""
    model = {
        **{key: value for key, value in vars(imported).items() if value is not None},
        "layers": 4,
        "ffn_dim": 128,
        "positions": 64,
        "max_history": 64,
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
