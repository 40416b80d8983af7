"""A model of other code is imported, goes live, and is what the next night's challenger starts from."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from tests import rectools_oracle as oracle
from tests.conftest import ROOT
from trainer.importing import rectools
from trainer.release import Registry

WINDOW, DIM, HEADS = 12, 8, 2
OPTIONS = {
    "n_blocks": 1, "n_heads": HEADS, "n_factors": DIM, "session_max_len": WINDOW, "dropout_rate": 0.0, "use_pos_emb": True,
    "use_scale_factor": False, "use_key_padding_mask": False, "use_causal_attn": True, "layers": "SASRecTransformerLayers",
    "similarity": "dot", "item_net": ["IdEmbeddingsItemNet"],
}  # fmt: skip

pytestmark = pytest.mark.integration


def command(script, *arguments):
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def export(folder, log):
    """What scripts/export_rectools.py would write of a model that knows the items of a log."""
    files = [file for file in log.rglob("*.parquet") if "dt=" in str(file) and "truth" not in str(file)]
    ids = sorted({item for file in files for item in pq.read_table(file, columns=["item_id"])["item_id"].unique().to_pylist()})
    tensors = oracle.state(len(ids), DIM, layers=1, window=WINDOW, std=0.1)
    asked = [[n * 7 % len(ids) for n in range(start, start + 1 + start % WINDOW)] for start in range(16)]
    folder.mkdir()
    torch.save(tensors, folder / rectools.WEIGHTS)
    (folder / rectools.ITEMS).write_text(json.dumps(ids))
    (folder / rectools.OPTIONS).write_text(json.dumps(OPTIONS))
    probe = {"history": [[ids[item] for item in history] for history in asked], "scores": oracle.scores(tensors, asked, HEADS).tolist()}
    (folder / rectools.PROBE).write_text(json.dumps(probe))


def test_a_next_item_model_of_other_code_becomes_the_parent_of_a_ranker(tmp_path):
    assert command("simulate.py", "simulation=tiny", f"out={tmp_path / 'log'}").returncode == 0
    export(tmp_path / "exported", tmp_path / "log")
    registry = f"registry.root={tmp_path / 'registry'}"
    checkpoint = f"checkpoint={tmp_path / 'exported'}"
    done = command("import_checkpoint.py", "format=rectools", checkpoint, "as_of=2026-02-28", registry, "promote=true")
    assert done.returncode == 0, done.stderr
    model = next(line for line in done.stdout.splitlines() if "model.dim" in line).split()
    live = Registry(tmp_path / "registry").aliases().production
    run = tmp_path / "run"
    done = command(
        "retrain.py", "data=simulated", f"data.root={tmp_path / 'log'}", registry, f"run_dir={run}", f"rebuild.root={tmp_path / 'rebuilt'}",
        "tracking=none", "downstream.enabled=false", *model, "model.layers=2", "model.context_dim=16",
    )  # fmt: skip
    assert done.returncode in (0, 10, 20), done.stderr
    transfer = json.loads((run / "transfer.json").read_text())
    assert transfer["vocabularies"]["item"]["kept"] > 100 and transfer["vocabularies"]["item"]["dropped"] == 0
    fates = {fate["target"]: fate for fate in transfer["fates"]}
    assert fates["blocks.0.query.weight"]["fate"] == "copied" and fates["blocks.1.out.weight"]["fate"] == "inserted as identity"
    assert fates["context.output"]["reason"].startswith("zero"), "new heads start at their base rates"
    assert json.loads((run / "summary.json").read_text())["challenger"]["click"]["n"] > 0
    if done.returncode != 0:
        assert Registry(tmp_path / "registry").aliases().production == live
