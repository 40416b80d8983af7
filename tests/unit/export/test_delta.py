from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import ExportConfig
from trainer.export import read_manifest
from trainer.export.digest import changed_and_gone, hash_vectors
from trainer.export.read import read_view

DELTA = ExportConfig(delta=True, shard_rows=30)


def ids_of(folder: Path, view: str) -> set:
    manifest = read_manifest(folder)
    if view.endswith("_gone"):
        return {value for shard in manifest.shards.get(view, []) for value in pq.read_table(folder / shard.path)["id"].to_pylist()}
    return {value for block in read_view(folder, manifest, view) for value in block.ids.to_pylist()}


@pytest.mark.parametrize("layout", ["list", "packed"])
def test_changed_new_and_gone_are_told_apart_and_the_rest_stays_out(source, write, tmp_path: Path, layout: str):
    config = ExportConfig(delta=True, shard_rows=30, layout=layout)
    made = source(users=200, items=40)
    write(made, tmp_path / "0", config)
    ids, x = made.users
    x = x.copy()
    x[[5, 17], 3] += np.float32(1e-6)
    made.users = (pa.concat_arrays([ids[10:], pa.array([7])]), np.concatenate([x[10:], x[:1]]))
    manifest = write(made, tmp_path / "1", config, live=tmp_path / "0", producer="q")
    assert manifest.delta_of == {"producer": "p", "as_of": "2022-05-01"}
    assert ids_of(tmp_path / "1", "user_delta") == {17 * 3, 7}
    assert ids_of(tmp_path / "1", "user_gone") == {n * 3 for n in range(10)}
    assert (manifest.changed, manifest.tombstones) == ({"user": 2, "item": 0}, {"user": 10, "item": 0})
    # A consumer that upserts the delta and deletes the gone holds exactly the full export.
    store: dict = {}
    for folder in ("0", "1"):
        view = "user" if folder == "0" else "user_delta"
        for block in read_view(tmp_path / folder, read_manifest(tmp_path / folder), view):
            store |= dict(zip(block.ids.to_pylist(), map(bytes, block.vectors_MD), strict=True))
    for gone in ids_of(tmp_path / "1", "user_gone"):
        del store[gone]
    full = {}
    for block in read_view(tmp_path / "1", read_manifest(tmp_path / "1"), "user"):
        full |= dict(zip(block.ids.to_pylist(), map(bytes, block.vectors_MD), strict=True))
    assert store == full


def test_no_delta_across_spaces_widths_or_without_digests(source, write, tmp_path: Path):
    write(source(), tmp_path / "plain")
    write(source(), tmp_path / "other", DELTA, space_id="space-0")
    write(source(dim=9), tmp_path / "wide", DELTA)
    for name in ("plain", "other", "wide"):
        manifest = write(source(), tmp_path / "new", DELTA, live=tmp_path / name)
        assert manifest.delta_of is None
        assert "user_delta" not in manifest.shards
    assert write(source(), tmp_path / "first", DELTA).delta_of is None


def test_digests_survive_many_parts_and_row_groups(source, write, tmp_path: Path):
    made = source(users=5000, items=40)
    config = ExportConfig(delta=True, shard_rows=700)
    write(made, tmp_path / "0", config)
    made.users = (made.users[0].take(pa.array(np.arange(5000)[::-1])), made.users[1][::-1].copy())
    manifest = write(made, tmp_path / "1", config, live=tmp_path / "0")
    assert (manifest.changed["user"], manifest.tombstones["user"]) == (0, 0)


def test_hashes_of_vectors_see_every_bit():
    x = np.random.default_rng(0).normal(size=(2000, 7)).astype(np.float32)
    assert len(np.unique(hash_vectors(x))) == 2000
    for column in range(7):
        changed = x.copy()
        changed[:, column] = np.nextafter(changed[:, column], np.float32(np.inf))
        assert not (hash_vectors(changed) == hash_vectors(x)).any()
    assert not (hash_vectors(x[:, ::-1]) == hash_vectors(x)).any()


def test_changed_and_gone_on_empty_parts():
    empty = np.zeros((0, 2), np.uint64)
    some = np.array([[1, 5], [3, 7]], np.uint64)
    changed, gone = changed_and_gone(iter([empty, some]), iter([some, empty]))
    assert (changed.tolist(), gone.tolist()) == ([1, 3], [1, 3])
