"""Rows move by id; new ids start as asked (reference/warm-start.md, A10, A11)."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.data import Encoder
from trainer.errors import CheckpointError, ConfigError
from trainer.warm_start import Rules, Side, apply, plan
from trainer.warm_start.measure import measure_new_items

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
TABLE = "embedding.item.weight"


@both
def test_ids_move_by_key_never_by_position(architecture):
    old = small.encoder()
    new = warm.reordered(old, add=range(900, 1000))
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact
    assert (warm.outputs(new, target) - warm.outputs(old, source)).abs().max() <= 1e-10
    rows = [encoder.vocabularies["item"].lookup(pa.array(range(100, 140))) for encoder in (old, new)]
    assert torch.equal(target.state_dict()[TABLE][rows[1]], source.state_dict()[TABLE][rows[0]])


def test_a_copy_by_position_would_be_noticed():
    old = small.encoder()
    new = warm.reordered(old)
    source, target = warm.build(old), warm.fresh(new)
    target.load_state_dict(source.state_dict())
    assert (warm.outputs(new, target) - warm.outputs(old, source)).abs().max() > 1e-3


@both
def test_new_ids_start_as_what_production_did_with_them(architecture):
    old = small.encoder(items=range(100, 130))  # the examples use 100 to 142: production serves 130 and above as OOV
    new = small.encoder(items=range(100, 143))
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact
    assert (warm.outputs(new, target) - warm.outputs(old, source)).abs().max() <= 1e-10


@pytest.mark.parametrize("policy", ["zero", "mean"])
def test_other_starts_of_new_ids(policy):
    old, new = small.encoder(items=range(100, 130)), small.encoder(items=range(100, 140))
    source, target = warm.build(old), warm.fresh(new)
    the_plan, _ = warm.transfer(old, source, new, target, new_ids=policy)
    assert not the_plan.exact and any(policy in reason for reason in the_plan.inexact)
    rows, trained = target.state_dict()[TABLE][-10:], source.state_dict()[TABLE][2:]
    assert (rows == 0).all() if policy == "zero" else torch.allclose(rows, trained.mean(0).expand(10, -1), atol=1e-7)


def test_a_vocabulary_may_have_a_start_of_its_own():
    old = small.encoder()
    new = warm.reordered(old, add=[900])
    authors = [*new.vocabularies["author"].keys.to_pylist(), 9]
    new = Encoder(new.inputs, {**new.vocabularies, "author": small.vocabulary("author", authors)})
    source, target = warm.build(old), warm.fresh(new)
    the_plan, _ = warm.transfer(old, source, new, target, new_ids_by={"author": "zero"})
    author, item = (next(name for name, axes in source.axes().items() if axes[0] == f"vocab:{key}") for key in ("author", "item"))
    assert (target.state_dict()[author][-1] == 0).all() and (source.state_dict()[author][1] != 0).any()
    assert torch.equal(target.state_dict()[item][new.vocabularies["item"].lookup(pa.array([900]))[0]], source.state_dict()[item][1])
    assert not the_plan.exact and any("new ids of author start as zero" in reason for reason in the_plan.inexact)


@pytest.mark.parametrize(
    ("by", "told"),
    [({"auhtor": "zero"}, "no such vocabulary"), ({"author": "neighbours"}, "only items have features"), ({"author": "random"}, "oov")],
)
def test_a_start_that_is_nobodys_is_refused(by, told):
    encoder = small.encoder()
    with pytest.raises(ConfigError, match=told) as error:
        plan(*warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder)), Rules(new_ids_by=by))
    assert str(error.value.where).startswith("warm_start.new_ids_by")


def items_of(encoder, features):
    return pa.table({"item": encoder.vocabularies["item"].keys, **{f"feature_{name}": values for name, values in features.items()}})


def test_neighbours_share_features_and_count_by_traffic():
    old, new = small.encoder(items=range(100, 130)), small.encoder(items=range(100, 134))
    source, target = warm.build(old), warm.fresh(new)
    author = [key % 5 for key in range(100, 130)] + [3, 9, None, 3]  # 9 and null: nobody known has them
    genre = [key % 2 for key in range(100, 130)] + [None, None, None, 1]
    tables = {"author": pa.array(author), "genre": pa.array(genre)}
    old_side = Side.of(source, old.vocabularies, items=items_of(old, {name: values[:30] for name, values in tables.items()}))
    new_side = Side.of(target, new.vocabularies, items=items_of(new, tables))
    the_plan = plan(old_side, new_side, Rules(new_ids="neighbours"))
    table = apply(the_plan, old_side, new_side, source.state_dict(), target.state_dict())[TABLE]
    trained, count = source.state_dict()[TABLE][2:].double(), np.arange(1, 31.0)

    def mean(chosen):
        weight = torch.from_numpy(count * chosen)[:, None]
        return ((trained * weight).sum(0) / weight.sum()).float()

    by_author, by_genre = mean(np.array(author[:30]) == 3), mean(np.array(genre[:30]) == 1)
    assert torch.allclose(table[32], by_author, atol=1e-6)
    assert torch.equal(table[33], table[1]) and torch.equal(table[34], table[1])  # as OOV
    assert torch.allclose(table[35], (by_author + by_genre) / 2, atol=1e-6)


@pytest.mark.parametrize("policy", ["oov", "mean"])
def test_noise_breaks_ties_and_stays_below_what_training_gave(policy):
    old, new = small.encoder(items=range(100, 140)), small.encoder(items=range(100, 540))
    source, target = warm.build(old), warm.fresh(new)
    the_plan, sides = warm.transfer(old, source, new, target, new_ids=policy, noise=1.0)
    rows = target.state_dict()[TABLE][-400:]
    trained = source.state_dict()[TABLE][2:]
    deviation = float((trained - trained.mean(0)).square().mean().sqrt())
    centre = trained.mean(0) if policy == "mean" else source.state_dict()[TABLE][1]
    assert float((rows - centre).std()) == pytest.approx(deviation, rel=0.05)
    assert len(rows.unique(dim=0)) == 400 and not the_plan.exact
    again = apply(the_plan, *sides, source.state_dict(), target.state_dict(), seed=1)[TABLE]
    assert not torch.equal(again[-400:], rows)


def test_reserved_rows_keep_their_meaning():
    old, new = small.encoder(), warm.reordered(small.encoder(), add=[5000], drop=range(100, 104))
    source, target = warm.build(old), warm.fresh(new)
    with torch.no_grad():
        target.state_dict()[TABLE][0] = 7.0  # even if the challenger's own pad row were not zero
    the_plan, _ = warm.transfer(old, source, new, target)
    table = target.state_dict()[TABLE]
    assert (table[0] == 0).all() and torch.equal(table[1], source.state_dict()[TABLE][1])
    assert not the_plan.exact and any("4 ids of item lose their row" in reason for reason in the_plan.inexact)


def test_duplicate_ids_are_refused():
    with pytest.raises(CheckpointError, match="duplicate"):
        dataclasses.replace(small.encoder().vocabularies["item"], keys=pa.array([1] * 40))


def test_a_table_that_does_not_fit_its_ids_is_refused():
    encoder = small.encoder()
    side = Side.of(warm.build(encoder), encoder.vocabularies)
    lie = dataclasses.replace(side, shapes={**side.shapes, TABLE: (43, 16)})
    with pytest.raises(CheckpointError, match="does not fit its keys") as error:
        plan(lie, side)
    assert error.value.where == TABLE


@pytest.mark.parametrize(("policy", "noise"), [("oov", 0.0), ("mean", 0.0), ("zero", 0.0)])
def test_old_items_lose_little_room_to_new_ones(policy, noise):
    old, new = small.encoder(items=range(100, 1100)), small.encoder(items=range(100, 1200))
    source, target = warm.build(old), warm.fresh(new)
    with torch.no_grad():  # logits up to about 10, as after training
        for name, axes in source.axes().items():
            if axes[0] == "vocab:item":
                source.state_dict()[name][2:] *= 8
        source.state_dict()[TABLE][1] = 0
    _, sides = warm.transfer(old, source, new, target, new_ids=policy, noise=noise)
    items = torch.arange(2, 1102)
    measured = measure_new_items(target, [warm.batch_of(new)], *sides, items, torch.full((1100, 1), 2))
    assert measured["count"] == 100
    assert 0 < measured["softmax_nats"] <= 0.05 and measured["top_share"] <= 0.02
    with torch.no_grad():
        target.state_dict()[TABLE][-100:] *= 0
        target.state_dict()[TABLE][-100:] += 3 * source.state_dict()[TABLE][2:].std() * torch.randn(100, 16)
    assert measure_new_items(target, [warm.batch_of(new)], *sides, items, torch.full((1100, 1), 2))["softmax_nats"] > 0.05


@both
def test_ids_that_became_text_keep_their_rows(architecture):
    old = small.encoder()
    keys = old.vocabularies["item"].keys.to_pylist()
    text = small.vocabulary("item", [str(key) for key in keys[::-1]] + ["new"])
    new = Encoder(old.inputs, {**old.vocabularies, "item": text})
    source, target = warm.build(old, name=architecture), warm.fresh(new, name=architecture)
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact
    assert torch.equal(target.state_dict()[TABLE][2:42], source.state_dict()[TABLE][2:].flip(0))
    assert torch.equal(target.state_dict()[TABLE][42], source.state_dict()[TABLE][1])


@pytest.mark.parametrize("features", [{}, {"genre": pa.array(range(30))}], ids=["no items", "another feature"])
def test_neighbours_of_items_without_a_common_feature_are_refused(features):
    encoder = small.encoder(items=range(100, 130))
    source, target = warm.build(encoder), warm.fresh(encoder)
    old = Side.of(source, encoder.vocabularies, items=items_of(encoder, {"author": pa.array(range(30))}))
    new = Side.of(target, encoder.vocabularies, items=items_of(encoder, features) if features else None)
    with pytest.raises(ConfigError, match="no feature of items is known to both") as error:
        plan(old, new, Rules(new_ids="neighbours"))
    assert error.value.where == "warm_start.new_ids" and "feature_author" in error.value.got
