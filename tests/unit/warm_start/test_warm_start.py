"""Invariants of reference/warm-start.md (A1 to A18) that the first form covers; each fails when its rule is broken."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import models
from tests import small
from trainer.data import Encoder, take
from trainer.errors import CheckpointError
from trainer.fit.train import shape_of
from trainer.schema.hashing import sha256_json
from trainer.schema.plain import as_plain
from trainer.warm_start import Side, apply, carry_moments, plan, verify

LATE = 100 * small.HOUR
ARCHITECTURES = ["sasrec", "hstu"]


def build(encoder, seed=0, **overrides):
    torch.manual_seed(seed)
    ranker = models.build(shape_of(small.model_config(**overrides), encoder.inputs, encoder.vocabularies))
    with torch.no_grad():  # trained weights are not at their special initial values
        for parameter in ranker.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, axes in ranker.axes().items():
            if axes[0].startswith("vocab:"):
                ranker.state_dict()[name][0] = 0
    return ranker.eval()


def transfer(source_encoder, source, target_encoder, target, new_ids="oov"):
    sides = Side.of(source, source_encoder.vocabularies), Side.of(target, target_encoder.vocabularies)
    the_plan = plan(*sides, new_ids)
    weights = apply(the_plan, *sides, source.state_dict(), target.state_dict())
    target.load_state_dict(weights)
    return the_plan, sides


def outputs(encoder, ranker, double=True):
    examples, tail = small.tables()
    shard = encoder.encode(examples, tail, LATE)
    ranker = ranker.double() if double else ranker
    batch = take(shard, np.arange(shard.units))
    with torch.inference_mode():
        return ranker(batch).output_NO[torch.from_numpy(np.argsort(shard.row_N))]


def reordered(encoder, add=(), drop=()):
    """The same vocabularies in another order, with ids added and dropped."""
    vocabularies = {}
    for name, vocabulary in encoder.vocabularies.items():
        keys = vocabulary.keys.to_pylist()
        if name == "item":
            keys = [key for key in keys if key not in drop] + list(add)
        vocabularies[name] = small.vocabulary(name, np.random.default_rng(5).permutation(keys).tolist())
    return Encoder(encoder.inputs, vocabularies)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_identity_is_bit_equal(architecture):
    encoder = small.encoder()
    source, target = build(encoder, 0, name=architecture), build(encoder, 1, name=architecture)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    the_plan, _ = transfer(encoder, source, encoder, target)
    assert the_plan.exact and {fate.fate for fate in the_plan.fates} == {"copied"}
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_both_sides_has_one_fate_and_elements_add_up(architecture):
    old, new = small.encoder(), small.encoder(actions=("click", "like", "watch"), numeric=("age", "rate"))
    source, target = build(old, name=architecture, layers=3), build(new, name=architecture, layers=2)
    the_plan = plan(Side.of(source, old.vocabularies), Side.of(target, new.vocabularies))
    assert sorted(f.target for f in the_plan.fates if f.target) == sorted(target.state_dict())
    used = [f.source for f in the_plan.fates if f.source]
    assert sorted(used) == sorted(source.state_dict())
    counted = sum(n for fate, n in the_plan.elements.items() if fate != "dropped")
    assert counted == sum(t.numel() for t in target.state_dict().values())
    assert not the_plan.exact  # a layer was dropped


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_move_by_key_never_by_position(architecture):
    old = small.encoder()
    new = reordered(old, add=range(900, 1000))
    source, target = build(old, name=architecture), build(new, 1, name=architecture)
    expected = outputs(old, source)
    the_plan, _ = transfer(old, source.float(), new, target)
    assert the_plan.exact
    assert torch.allclose(outputs(new, target), expected, atol=1e-10, rtol=0)


def test_a_copy_by_position_would_be_noticed():
    old = small.encoder()
    new = reordered(old)
    source, target = build(old), build(new, 1)
    expected = outputs(old, source)
    target.load_state_dict(source.float().state_dict())
    assert (outputs(new, target) - expected).abs().max() > 1e-3


def test_new_ids_start_as_what_production_did_with_them():
    old = small.encoder(items=range(100, 130))  # tables() uses items 100..142: production serves 130.. as OOV
    new = small.encoder(items=range(100, 143))
    source, target = build(old), build(new, 1)
    expected = outputs(old, source)
    the_plan, _ = transfer(old, source.float(), new, target)
    assert the_plan.exact
    assert torch.allclose(outputs(new, target), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("policy", "check"), [("zero", lambda rows, old: (rows == 0).all()), ("mean", lambda rows, old: torch.allclose(rows[0], old.mean(0)))]
)
def test_other_starts_of_new_ids(policy, check):
    old, new = small.encoder(items=range(100, 130)), small.encoder(items=range(100, 140))
    source, target = build(old), build(new, 1)
    the_plan, _ = transfer(old, source, new, target, new_ids=policy)
    assert not the_plan.exact
    table = target.state_dict()["embedding.item.weight"]
    assert check(table[-10:], table[2:32])


def test_reserved_rows_keep_their_meaning():
    old, new = small.encoder(), reordered(small.encoder(), add=[5000], drop=range(100, 110))
    source, target = build(old), build(new, 1)
    the_plan, _ = transfer(old, source, new, target)
    table = target.state_dict()["embedding.item.weight"]
    assert (table[0] == 0).all() and torch.equal(table[1], source.state_dict()["embedding.item.weight"][1])
    assert not the_plan.exact  # ten ids lost their row
    move = next(m for f in the_plan.fates for m in f.moves if m.axis == "vocab:item")
    assert (move.new, move.dropped) == (1, 10)
    assert move.coverage == pytest.approx(1 - np.arange(1, 11).sum() / np.arange(1, 41).sum())


GROWTH = [{"layers": 4}, {"ffn_dim": 48}, {"heads": 4}, {"layers": 3, "ffn_dim": 64, "heads": 3}, {"context_layers": 4}]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("growth", GROWTH, ids=str)
def test_growth_is_exact_and_nothing_is_dead(architecture, growth):
    encoder = small.encoder()
    if architecture == "hstu" and "ffn_dim" in growth and len(growth) == 1:
        pytest.skip("hstu has no feed-forward layer")
    source, target = build(encoder, name=architecture), build(encoder, 1, name=architecture, **growth)
    expected = outputs(encoder, source)
    the_plan, sides = transfer(encoder, source.float(), encoder, target)
    assert the_plan.exact
    assert torch.allclose(outputs(encoder, target), expected, atol=1e-10, rtol=0)
    single = outputs(encoder, target.float(), double=False)
    assert (single - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    _train_two_steps(encoder, target)
    for fate in the_plan.fates:
        if fate.fate in ("grown", "inserted as identity"):
            before = _started(the_plan, sides, source, encoder, architecture, growth)[fate.target]
            assert (target.state_dict()[fate.target] != before).any(), f"{fate.target} is dead"


def _started(the_plan, sides, source, encoder, architecture, growth):
    fresh = build(encoder, 1, name=architecture, **growth)
    return apply(the_plan, *sides, source.state_dict(), fresh.state_dict())


def _train_two_steps(encoder, ranker):
    examples, tail = small.tables()
    shard = encoder.encode(examples, tail, LATE)
    batch = take(shard, np.arange(shard.units))
    optimizer = torch.optim.Adam(ranker.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        scores = ranker(batch)
        from models.losses import ranker_loss

        ranker_loss(scores, batch, ranker.shape).total.backward()
        optimizer.step()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_features_and_heads_leave_old_outputs(architecture):
    old = small.encoder(numeric=("rate",), categorical=())
    new = small.encoder(actions=("like", "watch", "click"), numeric=("age", "rate"), history=("click", "like"))
    source, target = build(old, name=architecture), build(new, 1, name=architecture)
    expected = outputs(old, source)
    the_plan, _ = transfer(old, source.float(), new, target)
    assert the_plan.exact
    got = outputs(new, target)
    names = target.shape.outputs
    assert torch.allclose(got[:, [names.index("click"), names.index("like")]], expected, atol=1e-10, rtol=0)


def test_a_removed_feature_is_reported_as_inexact():
    old, new = small.encoder(numeric=("rate", "age")), small.encoder(numeric=("rate",))
    the_plan, _ = transfer(old, build(old), new, build(new, 1))
    assert not the_plan.exact
    move = next(m for f in the_plan.fates for m in f.moves if m.axis == "numeric")
    assert (move.kept, move.new, move.dropped) == (1, 0, 1)


@pytest.mark.parametrize("change", [{"dim": 24}, {"dim": 8}, {"head_dim": 16}, {"ffn_dim": 16}, {"context_dim": 24}], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_cannot_be_exact_is_refused_by_name(change, architecture):
    if architecture == "hstu" and "ffn_dim" in change:
        pytest.skip("hstu has no feed-forward layer")
    encoder = small.encoder()
    source, target = build(encoder, name=architecture), build(encoder, 1, name=architecture, **change)
    with pytest.raises(CheckpointError, match="keep the function"):
        transfer(encoder, source, encoder, target)


def test_another_architecture_keeps_what_means_the_same_and_says_that_it_is_not_exact():
    encoder = small.encoder()
    source, target = build(encoder), build(encoder, 1, name="hstu")
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    the_plan, _ = transfer(encoder, source, encoder, target)
    assert not the_plan.exact
    weights = target.state_dict()
    assert torch.equal(weights["embedding.item.weight"], source.state_dict()["embedding.item.weight"])
    assert torch.equal(weights["context.output"], source.state_dict()["context.output"])
    assert all(torch.equal(weights[name], fresh[name]) for name in weights if name.startswith("blocks."))


def test_planning_is_pure_and_deterministic():
    encoder = small.encoder()
    new = reordered(encoder, add=[7777])
    first = plan(Side.of(build(encoder), encoder.vocabularies), Side.of(build(new, 1), new.vocabularies))
    second = plan(Side.of(build(encoder, 9), encoder.vocabularies), Side.of(build(new, 8), new.vocabularies))
    assert sha256_json(as_plain(first)) == sha256_json(as_plain(second))
    json.dumps(as_plain(first))


def test_moments_move_by_name_and_row_and_new_rows_start_safely():
    old = small.encoder()
    new = reordered(old, add=range(900, 910))
    source, target = build(old), build(new, 1, layers=3)
    sides = Side.of(source, old.vocabularies), Side.of(target, new.vocabularies)
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for name, parameter in source.named_parameters():
        moments[f"{name}/exp_avg"] = torch.randn(parameter.shape, generator=generator)
        moments[f"{name}/exp_avg_sq"] = torch.rand(parameter.shape, generator=generator)
        moments[f"{name}/step"] = torch.tensor(5000.0)
    carried = carry_moments(plan(*sides), *sides, moments)
    assert not any(name.startswith("blocks.2.") for name in carried)
    table = carried["embedding.item.weight"]
    rows_old, rows_new = (side.vocabularies["item"].lookup(pa.array([120, 131, 105])) for side in sides)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(table[key][rows_new], moments[f"embedding.item.weight/{key}"][rows_old])
    fresh = sides[1].vocabularies["item"].lookup(pa.array(list(range(900, 910))))
    assert (table["exp_avg"][fresh] == 0).all()
    assert torch.allclose(table["exp_avg_sq"][fresh], moments["embedding.item.weight/exp_avg_sq"].mean())


def test_verify_refuses_a_transfer_that_lies():
    encoder = small.encoder()
    source, target = build(encoder), build(encoder, 1)
    transfer(encoder, source, encoder, target)
    examples, tail = small.tables()
    batch = take(encoder.encode(examples, tail, LATE), np.arange(10))
    assert verify(source, target, [(batch, batch)], exact=True).max_difference == 0
    with torch.no_grad():
        target.context.bias += 0.01
    with pytest.raises(CheckpointError, match="does not reproduce"):
        verify(source, target, [(batch, batch)], exact=True)
    assert verify(source, target, [(batch, batch)], exact=False).max_difference == pytest.approx(0.01, rel=1e-3)


def test_duplicate_ids_are_refused():
    encoder = small.encoder()
    with pytest.raises(CheckpointError, match="duplicate"):
        dataclasses.replace(encoder.vocabularies["item"], keys=pa.array([1] * 40))
