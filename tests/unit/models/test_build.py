import dataclasses

import pytest
import torch

import models
from models.batch import Batch


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gru"}, "known: sasrec, hstu"),
        ({"dim": 0}, "dim is 0"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"categorical": {"tab": "tabs"}}, "'tabs' with no rows"),
        ({"vocabularies": {"item": 1, "author": 9, "surface": 5, "user": 11, "country": 4}}, "reserved rows"),
        ({"numeric": ("age", "age")}, "repeated names: age, age"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_field_and_the_value(kit, changes, words):
    with pytest.raises(ValueError, match=words):
        models.build(kit.shape(**changes))


def test_an_unknown_kind_of_action_is_refused(kit):
    shape = kit.shape()
    wrong = dataclasses.replace(shape.actions[0], kind="ordinal")
    with pytest.raises(ValueError, match="ordinal"):
        models.build(dataclasses.replace(shape, actions=(wrong,)))


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
@pytest.mark.parametrize("field", ["categorical_NC", "numeric_NF", "target_item_features_NI", "token_features_TK"])
def test_a_batch_with_other_columns_is_refused(kit, architecture, field):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [4, 2], [[1], [2]])
    short = {field: getattr(batch, field)[:, :-1]}
    if field == "numeric_NF":
        short["present_NF"] = batch.present_NF[:, :-1]
    with pytest.raises(ValueError, match="expected"):
        kit.model(shape)(dataclasses.replace(batch, **short))


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
def test_a_target_behind_its_sequence_is_refused_not_read_from_the_next_one(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [4, 9], [[1], [2]])
    beyond = dataclasses.replace(batch, target_position_N=torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="target 0 reads 5 tokens, but its sequence 0 has 4"):
        kit.model(shape)(beyond)


@pytest.mark.parametrize("offsets", [[0, 4, 12], [1, 4, 13], [0, 14, 13]])
def test_offsets_must_cover_the_tokens(kit, offsets):
    batch = kit.batch(kit.shape(), [4, 9], [[1], [2]])
    with pytest.raises(ValueError, match="number of tokens, 13"):
        kit.model(kit.shape())(dataclasses.replace(batch, offsets_S1=torch.tensor(offsets)))


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
def test_targets_out_of_order_are_refused(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [4, 9], [[1], [2]])
    with pytest.raises(ValueError, match="grouped by sequence"):
        kit.model(shape)(kit.pick(batch, torch.tensor([1, 0])))


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
def test_a_ranker_without_actions_is_a_next_item_model(kit, architecture):
    shape = kit.bare(architecture, actions=())
    batch = kit.batch(shape, [4, 0, 9], [[], [], []])
    model = kit.model(shape)
    assert model.states(batch).shape == (16, shape.dim)
    with pytest.raises(ValueError, match="no actions"):
        model(batch)
    model.states(batch).sum().backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unreached <= {"items.project.weight", "embedding.action_value", "embedding.action_known"}


def test_batch_moves_as_a_whole(kit):
    batch = kit.batch(kit.shape(), [4], [[1]])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    present = [f.name for f in dataclasses.fields(Batch) if getattr(batch, f.name) is not None]
    assert "teacher_NA" not in present and moved.teacher_NA is None
    assert all(getattr(moved, name).device.type == "meta" for name in present)
