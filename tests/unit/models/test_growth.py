"""The shapes must allow exact growth: every widening, deepening and addition has weights that leave the function alone.

`grown` is the shortest statement of the rules (reference: Gesmundo & Maile 2023, arXiv 2308.06103), with free entries random.
"""

import dataclasses
import math

import pytest
import torch

import models
from models.ranker import ActionShape

both = pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
SIZES = {"dim": "dim", "vector": "dim", "ffn": "ffn_dim", "context": "context_dim", "context_ffn": "context_dim", "heads": "heads"}


def size_of(axis, shape):
    if axis.startswith("vocab:"):
        return shape.vocabularies[axis.removeprefix("vocab:")]
    special = {
        "head": shape.heads * shape.head_dim,
        "rotary": shape.head_dim // 2,
        "numeric": len(shape.numeric),
        "output": len(shape.outputs),
        "history_action": len(shape.history_actions),
    }
    return special[axis] if axis in special else getattr(shape, SIZES[axis])


def kept(axis, old, new):
    """Places of the old entries in the new dimension: heads widen in themselves, everything else is appended to."""
    if axis != "head":
        return torch.arange(size_of(axis, old))
    return torch.arange(new.heads * new.head_dim).view(new.heads, new.head_dim)[: old.heads, : old.head_dim].flatten()


def must_be_zero(name, axes, axis, old, new):
    """Whether new entries of `axis` in this tensor have to be zero."""
    if name.endswith("gain"):
        return False
    residual, is_matrix = axis in ("dim", "vector", "context"), len(axes) == 2
    keyed = axes[0].startswith("vocab:") or axes[0] in ("fixed", "numeric", "history_action")
    writes_residual = residual and is_matrix and (axis == axes[0] or keyed)
    inner = is_matrix and axis == axes[-1] and axis in ("ffn", "head", "context_ffn")
    narrow = axis == "head" and axes[0] == "head" and new.head_dim > old.head_dim and (".key." in name or ".value." in name)
    return writes_residual or inner or narrow or axes == ("dim",) or axis in ("numeric", "history_action")


def gain_scale(name, axis, old, new):
    if not name.endswith("gain"):
        return 1.0
    before, after = (shape.head_dim if axis == "head" else size_of(axis, shape) for shape in (old, new))
    return math.sqrt(before / after)


def grown(kit, source, changes, seed=5):
    """A ranker of the changed shape that computes the same function as `source`."""
    old = source.shape
    new = dataclasses.replace(old, **changes, norm_eps=old.norm_eps * old.dim / changes.get("dim", old.dim))
    target = kit.model(new, seed=seed, dtype=torch.float64)
    axes, state, before = target.axes(), target.state_dict(), source.state_dict()
    for name, value in state.items():
        if name not in before:
            if "blocks" in name or "layers" in name:
                value.mul_(0 if ".out." in name or ".down." in name else 1)
            continue
        places = []
        for dimension, axis in enumerate(axes[name]):
            place = torch.arange(value.shape[dimension]) if axis == "fixed" else kept(axis, old, new)
            fresh = torch.ones(value.shape[dimension], dtype=torch.bool)
            fresh[place] = False
            if axis != "fixed" and must_be_zero(name, axes[name], axis, old, new):
                value.movedim(dimension, 0)[fresh] = 0
            places.append(place)
        scale = gain_scale(name, axes[name][0], old, new) if axes[name] else 1.0
        value[torch.meshgrid(*places, indexing="ij")] = before[name] * scale
    target.load_state_dict(state)
    return target


GROWTHS = {
    "ffn": {"ffn_dim": 40},
    "heads": {"heads": 3},
    "head_dim": {"head_dim": 12},
    "dim": {"dim": 24},
    "context": {"context_dim": 20},
    "layers": {"layers": 4},
    "context_layers": {"context_layers": 3},
    "all": {"ffn_dim": 40, "heads": 3, "dim": 24, "context_dim": 20, "layers": 3, "context_layers": 3},
    "numeric": {"numeric": ("ctr_7d", "age", "fresh")},
    "history_action": {"history_actions": ("click", "watch", "like")},
    "vocabularies": {"vocabularies": {"item": 44, "author": 9, "surface": 6, "user": 12, "country": 4}},
}


def widened(batch, shape):
    """The batch with columns for appended numeric features and history actions."""
    count, tokens = batch.targets, batch.tokens
    numeric, history = len(shape.numeric) - batch.numeric_NF.shape[1], len(shape.history_actions) - batch.token_action_TH.shape[1]
    return dataclasses.replace(
        batch,
        numeric_NF=torch.cat([batch.numeric_NF, torch.full((count, numeric), 1.5)], 1),
        present_NF=torch.cat([batch.present_NF, torch.ones(count, numeric, dtype=torch.bool)], 1),
        token_action_TH=torch.cat([batch.token_action_TH, torch.ones(tokens, history)], 1),
        token_action_known_TH=torch.cat([batch.token_action_known_TH, torch.ones(tokens, history, dtype=torch.bool)], 1),
    )


@both
@pytest.mark.parametrize("growth", GROWTHS)
def test_growth_is_exact(kit, architecture, growth):
    source = kit.model(kit.shape(architecture), dtype=torch.float64)
    target = grown(kit, source, GROWTHS[growth])
    batch = kit.batch(source.shape, [9, 0, 30, 4], [[2, 9], [0], [30, 17], []])
    with torch.no_grad():
        before, after = source(batch), target(widened(batch, target.shape))
    torch.testing.assert_close(after.output_NO, before.output_NO, rtol=0, atol=1e-10)
    if before.auxiliary_NO is not None:
        torch.testing.assert_close(after.auxiliary_NO, before.auxiliary_NO, rtol=0, atol=1e-10)


@both
def test_appended_blocks_with_zero_output_projections_are_bit_equal_in_fp32(kit, architecture):
    shape = kit.shape(architecture)
    small, large = kit.model(shape), kit.model(dataclasses.replace(shape, layers=4))
    state = large.state_dict()
    state.update(small.state_dict())
    for name, value in state.items():
        if name.startswith(("blocks.2", "blocks.3")) and (".out." in name or ".down." in name):
            value.zero_()
    large.load_state_dict(state)
    batch = kit.batch(shape, [9, 0, 30], [[2, 9], [0], [30]])
    assert torch.equal(large(batch).output_NO, small(batch).output_NO)


@both
def test_a_new_context_feature_with_a_zero_table_is_bit_equal_in_fp32(kit, architecture):
    shape = kit.shape(architecture)
    wide_shape = dataclasses.replace(shape, categorical={**shape.categorical, "tab": "surface"})
    small, large = kit.model(shape), kit.model(wide_shape)
    state = large.state_dict()
    state.update(small.state_dict())
    added = set(state) - set(small.state_dict())
    assert len(added) == 1
    state[added.pop()].zero_()
    large.load_state_dict(state)
    batch = kit.batch(shape, [9, 0, 30], [[2, 9], [0], [30]])
    more = dataclasses.replace(batch, categorical_NC=torch.cat([batch.categorical_NC, batch.categorical_NC[:, :1] % 5], 1))
    assert torch.equal(large(more).output_NO, small(batch).output_NO)


@both
def test_a_new_action_leaves_the_old_outputs_alone_and_starts_at_its_base_rate(kit, architecture):
    shape = kit.shape(architecture)
    source = kit.model(shape, dtype=torch.float64)
    like = ActionShape(name="like", kind="binary", base_rate=0.03)
    target = kit.model(dataclasses.replace(shape, actions=(*shape.actions, like)), dtype=torch.float64)
    state, fresh = target.state_dict(), models.build(target.shape).state_dict()
    for name, value in source.state_dict().items():
        index = [slice(0, size) for size in value.shape]
        state[name][tuple(index)] = value
        if "output" in target.axes()[name]:
            dimension = target.axes()[name].index("output")
            fill = fresh[name] if name.endswith("bias") else torch.zeros_like(fresh[name])
            state[name].narrow(dimension, value.shape[dimension], 1).copy_(fill.narrow(dimension, value.shape[dimension], 1))
    target.load_state_dict(state)
    batch = kit.batch(shape, [9, 0], [[2, 9], [0]])
    with torch.no_grad():
        after = target(batch).output_NO
    torch.testing.assert_close(after[:, :-1], source(batch).output_NO, rtol=0, atol=1e-10)
    torch.testing.assert_close(after[:, -1].sigmoid(), torch.full((3,), 0.03, dtype=torch.float64))


@both
@pytest.mark.parametrize("bare", [False, True])
def test_every_entry_of_the_state_has_axes_of_its_rank_and_size(kit, architecture, bare):
    shape = kit.bare(architecture) if bare else kit.shape(architecture)
    model = kit.model(shape)
    axes, state = model.axes(), model.state_dict()
    assert set(axes) == set(state)
    for name, meaning in axes.items():
        assert len(meaning) == state[name].dim(), name
        for size, axis in zip(state[name].shape, meaning, strict=True):
            if axis != "fixed":
                assert size == size_of(axis, shape), (name, axis)


@both
def test_gradients_reach_every_parameter(kit, architecture):
    shape = kit.shape(architecture)
    model = models.build(shape)
    from models.losses import ranker_loss

    batch = kit.batch(shape, [9, 0, 30, 4], [[2, 9], [0], [30, 17], [1]])
    for _ in range(2):  # a scale that starts at zero, and what is behind it, move in the second step
        model.zero_grad()
        ranker_loss(model(batch), batch, shape).total.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert still == []


@both
def test_a_fresh_ranker_starts_near_the_base_rates(kit, architecture):
    torch.manual_seed(0)
    shape = kit.shape(architecture, dim=64, heads=2, head_dim=32, context_dim=128, ffn_dim=256)
    scores = models.build(shape).eval()(kit.batch(shape, [9, 0, 30, 4], [[2, 9], [0], [30, 17], [1]]))
    bias_O = torch.tensor([math.log(0.2 / 0.8), 2.0, 0.0, math.log(0.1)])
    assert (scores.output_NO - bias_O).abs().max() < 1.0
