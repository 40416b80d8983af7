"""Operations counted from shapes, against torch's own counter and against pairs counted one by one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from models.batch import Batch
from models.flops import forward_flops, training_flops, work_of
from models.ranker import ActionShape, RankerShape


def shape_of(architecture, **changes):
    values = {
        "architecture": architecture,
        "actions": (ActionShape(name="click", kind="binary", base_rate=0.2), ActionShape(name="watch", kind="duration", base_rate=2.0)),
        "history_actions": ("click", "watch"), "vocabularies": {"item": 40, "author": 9, "tab": 5}, "item_vocabulary": "item",
        "item_features": {"author": "author"}, "token_features": {"tab": "tab"}, "categorical": {"tab": "tab"}, "numeric": ("age", "rate"),
        "dim": 16, "layers": 3, "heads": 2, "head_dim": 8, "ffn_dim": 24, "context_dim": 12, "context_layers": 2, "dropout": 0.0,
    }  # fmt: skip
    return RankerShape(**{**values, **changes})


def batch_of(lengths, positions):
    """A batch with the given tokens a sequence and target positions a sequence."""
    tokens, count = sum(lengths), sum(map(len, positions))
    one = torch.ones
    return Batch(
        offsets_S1=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        token_item_T=one(tokens, dtype=torch.int64), token_item_features_TI=one(tokens, 1, dtype=torch.int64),
        token_features_TK=one(tokens, 1, dtype=torch.int64), token_action_TH=one(tokens, 2),
        token_action_known_TH=one(tokens, 2, dtype=torch.bool), token_time_T=torch.arange(tokens),
        target_sequence_N=torch.tensor([s for s, group in enumerate(positions) for _ in group]),
        target_position_N=torch.tensor([p for group in positions for p in group]), target_time_N=torch.full((count,), 10**6),
        target_item_N=one(count, dtype=torch.int64), target_item_features_NI=one(count, 1, dtype=torch.int64),
        target_token_features_NK=one(count, 1, dtype=torch.int64), categorical_NC=one(count, 1, dtype=torch.int64),
        numeric_NF=one(count, 2), present_NF=one(count, 2, dtype=torch.bool), label_NA=one(count, 2),
        known_NA=one(count, 2, dtype=torch.bool), weight_N=one(count), row_N=torch.arange(count),
    )  # fmt: skip


LENGTHS, POSITIONS = [15, 3, 7], [[0, 4, 15], [3], [1, 1, 7, 2]]


def visible_pairs(architecture):
    """Pairs (asking row, row it may read), counted one by one."""
    pairs = sum(row + 1 for length in LENGTHS for row in range(length + 1))
    if architecture == "hstu":
        pairs += sum(position + 2 for group in POSITIONS for position in group)  # its tokens, BOS and itself
    return pairs


def uncounted(shape, batch):
    """Outputs are read one at a time (an added action leaves the others bit-equal): matrix times vector, which torch does not count."""
    return 2 * batch.targets * len(shape.outputs) * (shape.context_dim + len(shape.numeric))


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
@pytest.mark.parametrize("layers", [1, 3])
def test_products_are_those_that_torch_counts(architecture, layers):
    shape = shape_of(architecture, layers=layers)
    ranker, batch = models.build(shape).eval(), batch_of(LENGTHS, POSITIONS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ranker(batch)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 4 * layers * shape.heads * shape.head_dim * visible_pairs(architecture)
    assert forward_flops(ranker, batch) == products + attention + uncounted(shape, batch)


def test_backward_costs_twice_the_forward_pass():
    """With fixed inputs and every weight trained, torch counts two products for each one of the forward pass."""
    shape = shape_of("sasrec")
    ranker, batch = models.build(shape), batch_of(LENGTHS, POSITIONS)
    with FlopCounterMode(display=False) as counter:
        ranker(batch).output_NO.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 3 * 4 * shape.layers * shape.heads * shape.head_dim * visible_pairs("sasrec")
    unneeded = 2 * 2 * batch.tokens * 2 * shape.dim  # actions come with the batch and need no gradient themselves
    assert training_flops(ranker, batch) == products + attention + 3 * uncounted(shape, batch) + unneeded


def test_a_wider_and_deeper_ranker_costs_more_and_padding_nothing():
    batch = batch_of(LENGTHS, POSITIONS)
    small, large = (models.build(shape_of("sasrec", **changes)) for changes in ({}, {"layers": 4, "ffn_dim": 48}))
    assert forward_flops(large, batch) > forward_flops(small, batch)
    first, second = batch_of([15], [[3]]), batch_of([3], [[3]])
    both = batch_of([15, 3], [[3], [3]])
    assert forward_flops(small, both) == forward_flops(small, first) + forward_flops(small, second)


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_a_next_item_step_counts_the_catalogue(architecture):
    bare = {"item_features": {}, "token_features": {}, "categorical": {}, "numeric": (), "history_actions": ()}
    shape = shape_of(architecture, actions=(), **bare)
    ranker, batch = models.build(shape), batch_of(LENGTHS, POSITIONS)
    batch.token_item_features_TI, batch.token_features_TK = batch.token_item_features_TI[:, :0], batch.token_features_TK[:, :0]
    batch.token_action_TH, batch.token_action_known_TH = batch.token_action_TH[:, :0], batch.token_action_known_TH[:, :0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ranker.user_vectors(batch) @ ranker.item_vectors(torch.arange(2, 40), torch.zeros(38, 0, dtype=torch.int64)).T
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 4 * shape.layers * shape.heads * shape.head_dim * visible_pairs("sasrec")
    assert forward_flops(ranker, batch, candidates=38) == products + attention
    assert training_flops(ranker, work_of(batch) + work_of(batch), 38, steps=2) == 2 * training_flops(ranker, batch, 38)
