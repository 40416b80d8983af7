"""The most memory that an export holds does not grow with the number of entities, nor does a delta's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer.config import ExportConfig
from trainer.export.delta import _among

ROOT = Path(__file__).parents[3]
DIM = 64


def peak_mb(rows: int, layout: str, folder: Path) -> float:
    """Most memory of one export with the wide view, in a process of its own, above what it had before."""
    command = [sys.executable, str(ROOT / "scripts/bench/export.py"), "--memory", "--wide", "1", "--layout", layout, "--dim", str(DIM)]
    done = subprocess.run([*command, "--rows", str(rows), "--folder", str(folder)], check=True, capture_output=True, text=True, cwd=ROOT)
    return float(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("layout", ["packed", "list"])
def test_four_hundred_thousand_vectors_take_no_more_than_eighty_thousand(tmp_path: Path, layout: str):
    few, many = (peak_mb(rows, layout, tmp_path) for rows in (80_000, 400_000))
    assert many - few < 25, (
        f"{few} MB, then {many} MB; a shard has {200_000 * DIM * 4 >> 20} MB, the vectors more have {320_000 * DIM * 4 >> 20}"
    )


def test_a_delta_of_a_few_changes_is_one_row_group(source, write, tmp_path: Path):
    made = source(users=20_000, dim=32, block=500)
    config = ExportConfig(delta=True, wide=False)
    write(made, tmp_path / "live", config)
    changed_MD = made.users[1].copy()
    changed_MD[::1000] += 1
    made.users = made.users[0], changed_MD
    manifest = write(made, tmp_path / "e", config, live=tmp_path / "live")
    (shard,) = manifest.shards["user_delta"]
    written = pq.ParquetFile(tmp_path / "e" / shard.path)
    assert (written.metadata.num_row_groups, shard.rows) == (1, 20)
    assert written.read()["id"].to_pylist() == [index * 3 for index in range(0, 20_000, 1000)]


def test_membership_in_sorted_hashes():
    sorted_K = np.array([3, 5, 2**64 - 1], np.uint64)
    hash_M = np.array([0, 3, 4, 5, 6, 2**64 - 1], np.uint64)
    assert _among(hash_M, sorted_K).tolist() == [False, True, False, True, False, True]
    assert _among(hash_M, sorted_K[:0]).tolist() == [False] * 6
