"""A plan carried out shard by shard writes the bytes that it gives in memory."""

import pytest
import torch

from tests import small, warm
from trainer.checkpoint.shards import Layout, ShardReader, ShardWriter, read_sharded, write_sharded
from trainer.warm_start import Rules, apply, carry_moments, plan, stream
from trainer.warm_start.stream import load, stream_moments, stream_weights

RULES = [
    {},
    {"new_ids": "mean", "noise": 0.5},
    {"shrink": 0.5, "perturb": 0.2, "approximate": True},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
def test_the_same_bytes_as_in_memory(tmp_path, monkeypatch, architecture, rules):
    old = small.encoder()
    new = warm.reordered(small.encoder(categorical=()), add=range(900, 950))  # a feature less: its mean row is folded in
    source = warm.build(old, name=architecture)
    target = warm.fresh(new, name=architecture, like=source, layers=3, dim=24, heads=3, head_dim=12)
    sides = warm.sides(old, source, new, target)
    the_plan = plan(*sides, Rules(**rules, coverage={}))
    moments = warm.random_moments(source)
    moments["embedding.item.weight/last"] = torch.arange(42.0)
    write_sharded(tmp_path / "old.safetensors", {**source.state_dict(), **moments}, 700)

    initial = target.state_dict()
    writer = ShardWriter(tmp_path / "new.safetensors", {name: Layout(tuple(t.shape), t.dtype) for name, t in initial.items()}, 700)
    with ShardReader(tmp_path / "old.safetensors") as reader:
        stream_weights(the_plan, *sides, reader, lambda name, rows: initial[name][rows].clone(), writer.write, writer.block_rows, seed=4)
    writer.close()
    expected = apply(the_plan, *sides, source.state_dict(), initial, seed=4)
    got = read_sharded(tmp_path / "new.safetensors")
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)

    monkeypatch.setattr(stream, "_LOADED_ROWS", 7)
    with ShardReader(tmp_path / "old.safetensors") as reader:
        load(the_plan, *sides, reader, target.state_dict(), seed=4)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())

    with ShardReader(tmp_path / "old.safetensors") as reader:
        carried = carry_moments(the_plan, *sides, {name: reader[name] for name in reader if name in moments})
    inserted = {fate.target for fate in the_plan.fates if fate.fate == "inserted as identity"}
    wanted = {f"{name}/{key}": v for name, state in carried.items() if name not in inserted for key, v in state.items() if key != "step"}
    writer = ShardWriter(tmp_path / "state.safetensors", {name: Layout(tuple(t.shape), t.dtype) for name, t in wanted.items()}, 700)
    with ShardReader(tmp_path / "old.safetensors") as reader:
        states = {name: layout.dtype for name, layout in reader.tensors.items() if "/" in name and not name.endswith("/step")}
        stream_moments(the_plan, *sides, reader, states, writer.write, writer.block_rows)
    writer.close()
    got = read_sharded(tmp_path / "state.safetensors")
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
