"""`scripts/compare_embeddings.py` as a user starts it: the answer, the repaired table, and the live model replayed on all three."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.integration
IDS, DIM = 400, 6


def write(path: Path, vectors_ED: np.ndarray) -> Path:
    flat = pa.array(vectors_ED.astype(np.float32).ravel())
    pq.write_table(pa.table({"id": np.arange(IDS), "vector": pa.FixedSizeListArray.from_arrays(flat, vectors_ED.shape[1])}), path)
    return path


def started(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "compare_embeddings.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Old vectors, a rotation of them, and a live LightGBM model with its rows."""
    lightgbm = pytest.importorskip("lightgbm")
    folder, rng = tmp_path_factory.mktemp("compare"), np.random.default_rng(0)
    old_ED = rng.normal(size=(IDS, DIM)) * np.linspace(2, 0.5, DIM)
    write(folder / "old.parquet", old_ED)
    write(folder / "rotated.parquet", old_ED @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0])
    write(folder / "narrow.parquet", old_ED[:, 1:])
    ids, price = rng.integers(0, IDS, 4000), rng.normal(size=4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-(old_ED[ids] @ rng.normal(size=DIM) + price)))).astype(int)
    pq.write_table(pa.table({"id": ids, "label": label, "price": price}), folder / "rows.parquet")
    data = lightgbm.Dataset(np.c_[price, old_ED[ids]], label, feature_name=["price", *(f"e{index:03d}" for index in range(DIM))])
    lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 40).save_model(folder / "model.txt")
    return folder


def test_a_rotation_is_named_repaired_and_replayed(tables: Path, tmp_path: Path):
    """`downstream=` names a file here, though `downstream` is a group of choices for the main job."""
    done = started(
        f"old={tables / 'old.parquet'}", f"new={tables / 'rotated.parquet'}", f"run_dir={tmp_path}", f"repair={tmp_path / 'fixed.parquet'}",
        f"downstream={tables / 'model.txt'}", f"rows={tables / 'rows.parquet'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "compare.json").read_text())
    assert answer["outcome"] == "rotated"
    replayed = {(check["name"], check["slice"]): check for check in answer["checks"] if check["family"] == "downstream"}
    assert replayed["replay_auc", "vectors=new"]["outcome"] == "fail"
    assert replayed["replay_auc", "vectors=repaired"]["outcome"] == "pass"
    assert abs(replayed["replay_auc", "vectors=repaired"]["estimate"]) < 5e-5, "back to four digits"
    old, fixed = (np.stack(pq.read_table(path)["vector"].to_numpy()) for path in (tables / "old.parquet", tmp_path / "fixed.parquet"))
    np.testing.assert_allclose(fixed, old, atol=1e-4)


def test_another_width_is_what_is_named(tables: Path, tmp_path: Path):
    done = started(f"old={tables / 'old.parquet'}", f"new={tables / 'narrow.parquet'}", f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "compare.json").read_text())
    assert answer["outcome"] == "broken" and answer["sentence"].startswith("Vectors are 5 wide, 6 before")


def test_a_model_without_rows_is_a_wrong_configuration(tables: Path, tmp_path: Path):
    done = started(
        f"old={tables / 'old.parquet'}", f"new={tables / 'old.parquet'}", f"run_dir={tmp_path}", f"downstream={tables / 'model.txt'}"
    )
    assert done.returncode == 2 and "rows" in done.stderr and "Traceback" not in done.stderr
