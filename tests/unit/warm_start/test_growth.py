"""Growth is exact in any composition, and nothing new is dead (reference/warm-start.md, A3 to A8, A16)."""

import itertools

import pytest
import torch

from models.losses import ranker_loss
from tests import small, warm
from trainer.errors import CheckpointError, ConfigError
from trainer.warm_start import Rules, apply, carry_moments, plan

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
STEPS = {
    "layers": {"layers": 4},
    "ffn": {"ffn_dim": 48},
    "heads": {"heads": 3},
    "head_dim": {"head_dim": 12},
    "dim": {"dim": 24},
    "context": {"context_dim": 20},
    "context_layers": {"context_layers": 3},
}
PAIRS = [*((name,) for name in STEPS), *itertools.combinations(STEPS, 2), tuple(STEPS)]


def grow(architecture, names, dtype, order=5):
    """Grows in one step to a reordered catalogue with new items; returns everything a test may want."""
    old = small.encoder()
    new = warm.reordered(old, add=range(900, 910)) if order else old
    settings = {key: value for name in names for key, value in STEPS[name].items()}
    source = warm.build(old, name=architecture).to(dtype)
    target = warm.fresh(new, name=architecture, like=source, **settings).to(dtype)
    expected = warm.outputs(old, source)
    the_plan, sides = warm.transfer(old, source, new, target)
    return old, new, source, target, expected, the_plan, sides


@both
def test_identity_is_bit_equal_in_weights_optimizer_and_first_loss(architecture):
    encoder = small.encoder()
    source, target = warm.build(encoder, name=architecture), warm.fresh(encoder, name=architecture)
    the_plan, sides = warm.transfer(encoder, source, encoder, target)
    assert the_plan.exact and {fate.fate for fate in the_plan.fates} == {"copied"}
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())
    moments = warm.random_moments(source)
    carried = carry_moments(the_plan, *sides, moments)
    assert {f"{name}/{key}" for name, state in carried.items() for key in state} == set(moments)
    assert all(torch.equal(carried[name.rpartition("/")[0]][name.rpartition("/")[2]], tensor) for name, tensor in moments.items())
    assert torch.equal(warm.outputs(encoder, target), warm.outputs(encoder, source))
    batch = warm.batch_of(encoder)
    first, second = (ranker_loss(ranker.eval()(batch), batch, ranker.shape).total.item() for ranker in (source, target))
    assert first == second


@both
@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_growth_is_exact_and_nothing_is_dead(architecture, names):
    if architecture == "hstu" and names == ("ffn",):
        pytest.skip("hstu has no feed-forward layer")
    _, new, _, target, expected, the_plan, _ = grow(architecture, names, torch.float64)
    assert the_plan.exact, the_plan.inexact
    assert (warm.outputs(new, target) - expected).abs().max() <= 1e-10
    _, new, _source, target, expected, the_plan, _ = grow(architecture, names, torch.float32)
    assert (warm.outputs(new, target) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    warm.train_steps(new, target)
    for fate in the_plan.fates:
        if fate.fate in ("grown", "inserted as identity") and fate.target in dict(target.named_parameters()):
            still = target.state_dict()[fate.target] == before[fate.target]
            if target.axes()[fate.target][0].startswith(("vocab:", "fixed")):  # rows that the batch does not hold stay
                still = still.all(0)
            assert not still.any(), f"{int(still.sum())} of {still.numel()} entries of {fate.target} are dead"


@both
def test_growth_in_two_runs_equals_growth_in_one(architecture):
    encoder = small.encoder()
    source = warm.build(encoder, name=architecture).double()
    expected = warm.outputs(encoder, source)
    for order in itertools.permutations(["layers", "dim", "head_dim"]):
        settings, ranker = {}, source
        for name in order:
            settings |= STEPS[name]
            larger = warm.fresh(encoder, name=architecture, like=ranker, **settings).double()
            the_plan, _ = warm.transfer(encoder, ranker, encoder, larger)
            assert the_plan.exact
            ranker = larger
        assert (warm.outputs(encoder, ranker) - expected).abs().max() <= 1e-10, order


@both
def test_added_layers_are_bit_equal_wherever_they_stand(architecture):
    encoder = small.encoder()
    source = warm.build(encoder, name=architecture)
    expected = warm.outputs(encoder, source)
    for places in ([2, 3], [0, 1], [0, 3], [1, 2]):
        target = warm.fresh(encoder, name=architecture, layers=4, context_layers=3)
        the_plan, _ = warm.transfer(encoder, source, encoder, target, insert_at={"blocks": places, "context.layers": [0]})
        assert torch.equal(warm.outputs(encoder, target), expected), places
        inserted = {fate.target.split(".")[1] for fate in the_plan.fates if fate.fate == "inserted as identity" and "blocks" in fate.target}
        assert inserted == set(map(str, places))


@pytest.mark.parametrize("places", [[4], [1], [1, 1], [1, 2, 3], [1, 1, 2]], ids=str)
def test_impossible_places_of_layers_are_refused(places):
    encoder = small.encoder()
    with pytest.raises(ConfigError, match="2 different places from 0 to 3"):
        plan(*warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder, layers=4)), Rules(insert_at={"blocks": places}))
    with pytest.raises(ConfigError, match="no such stack"):
        plan(*warm.sides(encoder, warm.build(encoder), encoder, warm.fresh(encoder)), Rules(insert_at={"block": [0]}))


@both
@pytest.mark.parametrize("broken", ["gain", "eps", "scale", "position", "identity"])
def test_each_rule_is_needed(architecture, broken):
    """The outputs are watched by a rule each: leaving one out moves them by more than any bound."""
    names = {"gain": ("dim",), "eps": ("dim",), "scale": ("head_dim",), "position": ("heads",), "identity": ("layers",)}[broken]
    _old, new, source, target, expected, _, _ = grow(architecture, names, torch.float64)
    state = target.state_dict()
    if broken == "gain":
        state["norm.gain"] *= (24 / 16) ** 0.5
    elif broken == "eps":
        for module in target.modules():
            if hasattr(module, "eps"):
                module.eps = 1e-4
    elif broken == "scale":
        state["blocks.0.scale"] *= (8 / 12) ** 0.5
    elif broken == "position":
        state["embedding.item.weight"][2:42] = source.state_dict()["embedding.item.weight"][2:42]
    else:
        state["blocks.3.out.weight"] += 0.01
    assert (warm.outputs(new, target) - expected).abs().max() > 1e-6


def test_an_eps_that_does_not_follow_the_width_is_refused_by_tensor():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder, dim=24)
    with pytest.raises(CheckpointError, match="eps of this norm") as error:
        warm.transfer(encoder, source, encoder, target)
    assert "gain" in str(error.value.where)


LAYER = {"norm": "layer", "biases": True, "activation": "relu"}


@pytest.mark.parametrize("options", [LAYER, {**LAYER, "rotary": False, "positions": 8}, {**LAYER, "norm": "rms"}], ids=str)
@pytest.mark.parametrize("changes", [{"layers": 3}, {"heads": 4, "ffn_dim": 48}, {"head_dim": 12}], ids=str)
def test_other_trunks_grow_exactly_too(options, changes):
    encoder = small.encoder()
    source = warm.build(encoder, options=options).double()
    target = warm.fresh(encoder, like=source, options=options, **changes).double()
    expected = warm.outputs(encoder, source)
    the_plan, _ = warm.transfer(encoder, source, encoder, target)
    assert the_plan.exact, the_plan.inexact
    assert (warm.outputs(encoder, target) - expected).abs().max() <= 1e-10


def next_item(encoder, seed, dim, layers=2, like=None, **options):
    """A ranker without actions: its outputs are products of user and item vectors."""
    import dataclasses

    import models

    torch.manual_seed(seed)
    shape = warm.fresh(encoder, dim=dim, layers=layers, like=like, options=options).shape
    ranker = models.build(dataclasses.replace(shape, actions=(), numeric=(), categorical={})).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return ranker


@pytest.mark.parametrize("factor", [2, 3])
def test_under_layer_norm_a_stream_grows_by_repetition_and_shares_differ(factor):
    encoder = small.encoder()
    source = next_item(encoder, 0, 16, **LAYER).double()
    target = next_item(encoder, 1, 16 * factor, layers=3, like=source, **LAYER).double()
    the_plan, _ = warm.transfer(encoder, source, encoder, target)
    assert the_plan.exact, the_plan.inexact
    batch = warm.batch_of(encoder)
    vectors = [
        (ranker.user_vectors(batch) * ranker.item_vectors(batch.target_item_N, batch.target_item_features_NI)).sum(-1)
        for ranker in (source, target)
    ]
    assert (vectors[0] - vectors[1]).abs().max() <= 1e-10
    weight = target.state_dict()["blocks.0.query.weight"]
    copies = weight.unflatten(1, (factor, 16))
    assert all(not torch.equal(copies[:, i], copies[:, j]) for i, j in itertools.combinations(range(factor), 2))
    assert torch.allclose(copies.sum(1), source.state_dict()["blocks.0.query.weight"])


def test_under_layer_norm_any_other_width_is_refused_by_tensor():
    encoder = small.encoder()
    source = next_item(encoder, 0, 16, **LAYER)
    with pytest.raises(CheckpointError, match="whole multiples of 16 only, not to 24") as error:
        warm.transfer(encoder, source, encoder, next_item(encoder, 1, 24, like=source, **LAYER))
    assert str(error.value.where).startswith("embedding.")


def test_layers_that_hand_on_the_normalised_stream_cannot_be_added_but_ours_can_behind_them():
    encoder = small.encoder()
    options = {**LAYER, "normed_layers": 2}
    source = warm.build(encoder, options=options).double()
    expected = warm.outputs(encoder, source)
    with pytest.raises(CheckpointError, match=r"cannot be the identity|normalised stream"):
        warm.transfer(encoder, source, encoder, warm.fresh(encoder, layers=3, options={**LAYER, "normed_layers": 3}))
    target = warm.fresh(encoder, layers=4, like=source, options=options).double()
    the_plan, _ = warm.transfer(encoder, source, encoder, target)
    assert the_plan.exact and (warm.outputs(encoder, target) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("option", [{"norm": "layer"}, {"activation": "relu"}, {"rotary": False}], ids=str)
def test_options_that_no_tensor_shows_must_agree(option):
    encoder = small.encoder()
    with pytest.raises(CheckpointError, match=f"{next(iter(option))} is"):
        warm.transfer(encoder, warm.build(encoder), encoder, warm.fresh(encoder, options=option))


def test_learned_positions_keep_old_ones_bit_equal_and_append():
    encoder = small.encoder(max_history=20)
    source = warm.build(encoder, options={"positions": 16}).double()
    target = warm.fresh(encoder, like=source, options={"positions": 40}).double()
    the_plan, _ = warm.transfer(encoder, source, encoder, target)
    assert the_plan.exact
    assert torch.equal(target.state_dict()["embedding.position"][:16], source.state_dict()["embedding.position"])
    within = warm.batch_of(encoder).target_position_N <= 16
    assert within.any()
    batch = warm.batch_of(encoder)
    with torch.inference_mode():
        difference = (target(batch).output_NO - source(batch).output_NO).abs()
    assert difference[within].max() <= 1e-10


@both
@pytest.mark.parametrize(
    "change",
    [{"dim": 8}, {"head_dim": 4}, {"heads": 1}, {"ffn_dim": 16}, {"context_dim": 8}, {"layers": 1}, {"heads": 4, "head_dim": 4}],
    ids=str,
)
def test_shrinking_is_refused_by_name_unless_asked_for(change, architecture):
    if architecture == "hstu" and "ffn_dim" in change:
        pytest.skip("hstu has no feed-forward layer")
    encoder = small.encoder()
    source = warm.build(encoder, name=architecture)
    target = warm.fresh(encoder, name=architecture, like=source, **change)
    with pytest.raises(CheckpointError, match=r"keep the function|has only") as error:
        warm.transfer(encoder, source, encoder, target)
    assert error.value.where in {*source.state_dict(), *target.state_dict()}
    the_plan, _ = warm.transfer(encoder, source, encoder, target, approximate=True)
    assert not the_plan.exact and the_plan.inexact
    assert torch.isfinite(warm.outputs(encoder, target)).all()


@both
def test_the_case_that_other_tools_lose(architecture):
    """The same items in another order, a hundred added, ten dropped, two layers and a head added: old outputs stay."""
    old = small.encoder(items=range(100, 150))  # the examples use 100 to 142
    new = warm.reordered(old, add=range(900, 1000), drop=range(140, 150), names=("item", "author", "tab"))
    new = type(new)(small.inputs(actions=("click", "like", "watch"), history=("click", "like")), new.vocabularies)
    source = warm.build(old, name=architecture).double()
    target = warm.fresh(new, name=architecture, layers=4, like=source).double()
    the_plan, _ = warm.transfer(old, source, new, target, coverage={"tables": 0.6})  # the ten are the most frequent ones
    batch_old, batch_new = (warm.batch_of(encoder, items=35) for encoder in (old, new))  # items 100 to 137
    with torch.inference_mode():
        before, after = source(batch_old).output_NO, target(batch_new).output_NO
    assert (after[:, :2] - before).abs().max() <= 1e-10
    assert any("lose their row" in reason for reason in the_plan.inexact)
    by_position = source.state_dict()["embedding.item.weight"][2:42]
    assert not torch.equal(target.state_dict()["embedding.item.weight"][2:42], by_position)


def test_planning_and_applying_twice_give_the_same_bits():
    encoder = small.encoder()
    new = warm.reordered(encoder, add=[7777])
    source, target = warm.build(encoder), warm.fresh(new, layers=3)
    both_sides = warm.sides(encoder, source, new, target)
    the_plan = plan(*both_sides, Rules(new_ids="mean", noise=0.5))
    one, two = (apply(the_plan, *both_sides, source.state_dict(), target.state_dict(), seed=3) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
