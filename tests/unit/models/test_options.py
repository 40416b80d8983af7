"""Options of sasrec's trunk: LayerNorm, biases, learned positions, visible padding, the normalised stream."""

import dataclasses
import itertools

import pytest
import torch

import models
from models.attention import causal_attention, causal_layout, dense_causal_attention
from models.packing import pack, unrolled

CLASSIC = {"norm": "layer", "activation": "relu", "biases": True, "rotary": False, "positions": 6, "padding": 6, "normed_layers": 2}


def classic(kit, **changes):
    return kit.shape(**{**CLASSIC, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "batch"}, "known: rms, layer"),
        ({"activation": "selu"}, "known: gelu, relu"),
        ({"positions": -1}, "positions is -1"),
        ({"padding": -2}, "padding is -2"),
        ({"normed_layers": 3}, "only 2 layers"),
        ({"final_norm_eps": 0.0, "norm": "layer"}, "final_norm_eps is 0.0"),
        ({"final_norm_eps": 1e-8}, "norm must be layer"),
        ({"architecture": "hstu", "biases": True}, "only sasrec"),
    ],
)
def test_impossible_options_are_refused(kit, changes, words):
    with pytest.raises(ValueError, match=words):
        models.build(kit.shape(**changes))


def test_an_odd_head_is_fine_without_rotation(kit):
    shape = classic(kit, head_dim=7)
    kit.model(shape)(kit.batch(shape, [3], [[2]]))


@pytest.mark.parametrize("changes", [{"norm": "layer"}, {"biases": True}, {"positions": 6}, {"padding": 6}, CLASSIC])
def test_every_parameter_of_an_option_says_what_it_means(kit, changes):
    model = kit.model(kit.shape(**changes))
    assert set(model.axes()) == set(model.state_dict())
    assert all(len(model.axes()[name]) == tensor.ndim for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("changes", [CLASSIC, {**CLASSIC, "padding": None}, {**CLASSIC, "padding": 0}, {**CLASSIC, "positions": 0}])
def test_later_tokens_and_other_targets_change_nothing(kit, changes):
    """Counting from the end must not tell a target how much comes after it."""
    shape = kit.shape(**changes)
    model, batch = kit.model(shape, dtype=torch.float64), kit.batch(shape, [9, 4], [[0, 3, 9], [2]])
    batch = dataclasses.replace(batch, numeric_NF=batch.numeric_NF.double())
    full = model(batch).output_NO
    for target in range(4):
        alone = kit.pick(batch, torch.tensor([target]))
        torch.testing.assert_close(model(alone).output_NO[0], full[target], rtol=0, atol=1e-10)
    cut = kit.one_sequence(batch, 0)
    short = dataclasses.replace(
        kit.pick(cut, torch.tensor([1])),
        offsets_S1=torch.tensor([0, 3]),
        **{f.name: getattr(cut, f.name)[:3] for f in dataclasses.fields(cut) if f.name.startswith("token_")},
    )
    torch.testing.assert_close(model(short).output_NO[0], full[1], rtol=0, atol=1e-10)


def test_unrolled_targets_read_their_latest_tokens(kit):
    shape = kit.shape()
    batch = kit.batch(shape, [5, 3], [[0, 4, 5], [2]])
    each = unrolled(batch, 3)
    assert each.offsets_S1.tolist() == [0, 0, 3, 6, 8]
    item = batch.token_item_T
    assert each.token_item_T.tolist() == torch.cat([item[1:4], item[2:5], item[5:7]]).tolist()
    assert each.target_position_N.tolist() == [0, 3, 3, 2] and each.target_sequence_N.tolist() == [0, 1, 2, 3]
    assert torch.equal(each.row_N, batch.row_N)


@pytest.mark.parametrize("padding", [0, 4, 50])
def test_attention_with_padding_equals_its_dense_twin_and_repeated_keys(kit, padding):
    packing = pack(kit.batch(kit.bare(), [7, 1, 0, 21], [[], [], [], []]))
    rows = len(packing.sequence_R)
    q, k, v = torch.randn(3, rows, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = causal_attention(q, k, v, causal_layout(packing, padding))
    torch.testing.assert_close(fast, dense_causal_attention(q, k, v, packing, padding), rtol=0, atol=1e-6)  # fp32 weights of padding
    for start, length in zip(packing.start_S.tolist(), packing.length_S.tolist(), strict=True):
        front = max(padding - (length - 1), 0)
        for place in range(1, length):
            keys = torch.cat([k[start : start + 1].expand(front, -1, -1), k[start + 1 : start + place + 1]])
            values = torch.cat([v[start : start + 1].expand(front, -1, -1), v[start + 1 : start + place + 1]])
            weight = torch.einsum("he,mhe->hm", q[start + place], keys).softmax(-1)
            torch.testing.assert_close(fast[start + place], torch.einsum("hm,mhe->he", weight, values), rtol=0, atol=1e-6)


def test_the_empty_history_of_a_padded_trunk_is_finite(kit):
    shape = classic(kit, padding=0)
    model, batch = kit.model(shape), kit.batch(shape, [0, 6, 9], [[0], [6], [9]])
    model(batch).output_NO.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("norm", "normed"), list(itertools.product(("rms", "layer"), (0, 1))))
def test_a_pre_norm_block_with_nothing_to_say_is_the_identity(kit, norm, normed):
    """Why `normed_layers` is a number: blocks put behind the normed ones can be inserted exactly, a normed one cannot."""
    shape = classic(kit, norm=norm, normed_layers=normed, layers=1)
    model, wider = kit.model(shape), kit.model(dataclasses.replace(shape, layers=2))
    state = {**wider.state_dict(), **model.state_dict()}
    for name in ("out.weight", "out.bias", "down.weight", "down.bias"):
        state[f"blocks.1.{name}"] = torch.zeros_like(state[f"blocks.1.{name}"])
    wider.load_state_dict(state)
    batch = kit.batch(shape, [9, 4], [[0, 3, 9], [2]])
    torch.testing.assert_close(wider(batch).output_NO, model(batch).output_NO, rtol=0, atol=1e-6)
    state["blocks.1.attention_norm.gain"] = torch.linspace(0.5, 2.0, shape.dim)
    normed_model = kit.model(dataclasses.replace(shape, layers=2, normed_layers=2))
    normed_model.load_state_dict(state)
    assert (normed_model(batch).output_NO - model(batch).output_NO).abs().max() > 1e-3


def test_longer_histories_append_positions(kit):
    shape = classic(kit)
    model, longer = kit.model(shape), kit.model(dataclasses.replace(shape, positions=10))
    state = {**longer.state_dict(), **{k: v for k, v in model.state_dict().items() if k != "embedding.position"}}
    state["embedding.position"] = torch.cat([model.state_dict()["embedding.position"], torch.full((4, shape.dim), 9.0)])
    longer.load_state_dict(state)
    batch = kit.batch(shape, [6, 4], [[0, 3, 6], [2]])
    assert torch.equal(longer(batch).output_NO, model(batch).output_NO)
