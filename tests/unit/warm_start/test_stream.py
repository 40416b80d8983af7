"""A plan carried out shard by shard writes the bytes that it gives in memory."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.checkpoint.shards import Layout, ShardReader, ShardWriter, read_sharded, write_sharded
from trainer.schema.vocabulary import Vocabulary
from trainer.warm_start import Rules, Side, apply, carry_moments, plan, stream
from trainer.warm_start.apply import InMemory
from trainer.warm_start.stream import load, stream_moments, stream_weights

TABLE = "embedding.item.weight"
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


def table(keys, width=1):
    """One table as a side: what a transfer of millions of ids is made of."""
    days = pa.array(["2026-01-01"] * len(keys))
    ids = Vocabulary("item", pa.array(keys), np.ones(len(keys), np.int64), days, days)
    return Side(
        shapes={TABLE: (len(keys) + 2, width)}, axes={TABLE: ("vocab:item", "dim")}, dtypes={TABLE: "float32"},
        keys={"numeric": (), "output": (), "history_action": ()}, vocabularies={"item": ids}, architecture="sasrec", heads=1,
        dim=width, norm_eps=1e-6,
    )  # fmt: skip


def test_beside_blocks_a_transfer_holds_little_an_id(monkeypatch):
    for part in ("schema.vocabulary._HASHED_KEYS", "warm_start.places._ENTRIES", "warm_start.moments._RATED_IDS"):
        monkeypatch.setattr(f"trainer.{part}", 10_000)  # small beside the whole, as parts are beside millions
    count = 400_000
    source, target = table(np.arange(count)), table(np.random.default_rng(0).permutation(np.arange(4_000, count + 4_000)))
    states = {f"{TABLE}/{state}": torch.float32 for state in ("exp_avg", "exp_avg_sq")}
    old = InMemory({name: torch.ones(count + 2, 1) for name in (TABLE, *states)})
    rows = []

    def write(name, blocks):
        rows.extend(len(block) for block in blocks)

    tracemalloc.start()  # numpy's arrays; torch's blocks are not seen
    transfer = plan(source, target)
    stream_weights(transfer, source, target, old, lambda _, part: torch.empty(part.stop - part.start, 1), write, lambda _: 1000)
    stream_moments(transfer, source, target, old, states, write, lambda _: 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(rows) == 3 * (count + 2) and max(rows) <= 1000
    assert peak < 12 * count, f"{peak / count:.0f} bytes an id"


def test_ids_are_matched_once_for_each_production():
    one, two, target = table([5, 3, 9]), table([9, 5]), table([3, 5, 7])
    first = target.match(one.vocabularies["item"], "item")
    assert first.index.tolist() == [0, 1, 3, 2, -1] and target.match(one.vocabularies["item"], "item") is first
    assert target.match(two.vocabularies["item"], "item").index.tolist() == [0, 1, -1, 3, -1]
