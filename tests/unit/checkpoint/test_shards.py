"""Tensors in shards: the same values back, cut between rows, and lies refused by file and tensor."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint.shards import Layout, ShardReader, ShardWriter, index_path, read_sharded, write_sharded
from trainer.errors import CheckpointError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "table": torch.randn(100, 8, generator=generator),
        "bias": torch.randn(5, generator=generator),
        "half": torch.randn(33, 3, generator=generator).to(torch.bfloat16),
        "step": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "flat": torch.zeros(3, 0),
        "count": torch.arange(20),
    }


@pytest.mark.parametrize("shard_bytes", [1, 500, 1 << 20])
def test_what_is_written_is_read_back(tmp_path, tensors, shard_bytes):
    path = tmp_path / "trunk.safetensors"
    write_sharded(path, tensors, shard_bytes)
    back = read_sharded(path)
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == tensor.dtype and torch.equal(back[name], tensor) for name, tensor in tensors.items())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert all(file.stat().st_size <= shard_bytes + 2000 for file in files) and (len(files) > 1) == (shard_bytes < 1 << 20)
    joined = torch.cat([load_file(file)["table"] for file in files if "table" in load_file(file)])
    assert torch.equal(joined, tensors["table"]), "any safetensors reader opens a shard"


def test_rows_are_read_alone_in_any_order(tmp_path, tensors):
    write_sharded(tmp_path / "t.safetensors", tensors, 500)
    with ShardReader(tmp_path / "t.safetensors") as reader:
        index = np.array([99, 0, 17, 17, 50])
        assert torch.equal(reader.take("table", index), tensors["table"][index])
        assert reader.take("table", np.zeros(0, np.int64)).shape == (0, 8)


def test_a_plain_file_is_read_by_rows_too(tmp_path, tensors):
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "plain.safetensors")
    with ShardReader(tmp_path / "plain.safetensors") as reader:
        assert torch.equal(reader.take("half", np.array([3, 30])), tensors["half"][[3, 30]])


def changed(change):
    def altered(folder):
        file = index_path(folder / "t.safetensors")
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return altered


def cut(folder):
    file = folder / "t-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


LIES = {
    "outside": (changed(lambda v: v["tensors"]["table"]["parts"][0].__setitem__(0, "../t-00000.safetensors")), "outside its folder"),
    "rows": (changed(lambda v: v["tensors"]["table"]["shape"].__setitem__(0, 101)), "not its rows"),
    "shape": (
        changed(lambda v: v["tensors"]["bias"].update(shape=[4], parts=[["t-00000.safetensors", 4]])),
        "not hold what the index says",
    ),
    "number": (changed(lambda v: v["tensors"]["table"]["shape"].__setitem__(0, 100.0)), "cannot be read"),
    "version": (changed(lambda v: v.update(version=9)), "cannot read an index"),
    "type": (changed(lambda v: v["tensors"]["bias"].update(dtype="OBJECT")), "cannot be read"),
    "cut": (cut, "does not fit its data"),
    "missing": (lambda folder: (folder / "t-00001.safetensors").unlink(), "cannot read tensors"),
    "no index": (lambda folder: index_path(folder / "t.safetensors").unlink(), "cannot read tensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_by_name(tmp_path, tensors, lie):
    write_sharded(tmp_path / "t.safetensors", tensors, 500)
    alter, message = LIES[lie]
    alter(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        ShardReader(tmp_path / "t.safetensors")
    assert "t" in str(error.value.where)


def test_values_that_are_not_finite_are_refused_by_tensor(tmp_path, tensors):
    tensors["table"][70, 3] = float("nan")
    write_sharded(tmp_path / "t.safetensors", tensors, 500)
    with ShardReader(tmp_path / "t.safetensors") as reader, pytest.raises(CheckpointError, match="not finite") as error:
        reader["table"]
    assert str(error.value.where).endswith("table")


def test_a_writer_refuses_what_was_not_declared(tmp_path):
    layouts = {"a": Layout((4, 2), torch.float32), "b": Layout((3,), torch.float32)}
    for name, block, message in (
        ("b", torch.zeros(3), "out of turn"),
        ("a", torch.zeros(3, 2), "fewer rows"),
        ("a", torch.zeros(5, 2), "more rows"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ShardWriter(tmp_path / "w.safetensors", layouts).write(name, [block])
    writer = ShardWriter(tmp_path / "w.safetensors", layouts)
    writer.write("a", [torch.ones(1, 2), torch.ones(3, 2)])
    with pytest.raises(CheckpointError, match="not written"):
        writer.close()
    assert not index_path(tmp_path / "w.safetensors").exists(), "without an index the folder holds nothing"


def test_a_bundle_larger_than_a_shard_is_read_and_verified_as_any_other(tmp_path, monkeypatch):
    from tests import small, warm
    from trainer.checkpoint import build_ranker, bundle, read_bundle

    monkeypatch.setattr(bundle.write_tensors, "__defaults__", (2000,))
    encoder = small.encoder()
    ranker = warm.build(encoder)
    written = small_bundle(tmp_path / "bundle", ranker, encoder)
    assert not (tmp_path / "bundle" / "trunk.safetensors").exists() and "trunk.safetensors.index.json" in written.manifest.files
    state = build_ranker(read_bundle(tmp_path / "bundle"), "trunk.safetensors").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ranker.state_dict().items())
    (tmp_path / "bundle" / "trunk-00001.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="altered"):
        read_bundle(tmp_path / "bundle")


def small_bundle(path, ranker, encoder):
    import pyarrow as pa

    from trainer.checkpoint import write_bundle
    from trainer.schema.bundle import BundleManifest
    from trainer.schema.plain import as_plain

    manifest = BundleManifest(
        code_version="test",
        shape=as_plain(ranker.shape),
        inputs=encoder.inputs,
        features={},
        labels={},
        value={},
        config={},
        axes={},
        trained={},
    )
    state = ranker.state_dict()
    items = pa.table({"item": encoder.vocabularies["item"].keys})
    return write_bundle(path, manifest, trunk=state, serving=state, optimizer={}, vocabularies=encoder.vocabularies, items=items)
