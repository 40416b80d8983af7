"""The teacher's head: it shapes the trunk, and no served output is fitted to the teacher."""

import math

import numpy as np
import pytest
import torch

import models
from models.heads import TeacherHead
from models.losses import teacher_loss
from models.ranker import ActionShape
from tests import small
from trainer.data import take
from trainer.fit.train import shape_of

ACTIONS = (
    ActionShape(name="click", kind="binary", base_rate=0.3),
    ActionShape(name="shares", kind="count", base_rate=0.1),
    ActionShape(name="watch", kind="duration", base_rate=2.0),
)


def scored(teacher):
    """A batch as far as the loss reads it."""

    class Scored:
        teacher_NA = torch.tensor(teacher)
        weight_N = torch.ones(len(teacher))

    return Scored()


def ranker_and_batch(name):
    encoder = small.encoder()
    torch.manual_seed(0)
    ranker = models.build(shape_of(small.model_config(name=name), encoder.inputs, encoder.vocabularies))
    shard = encoder.encode(*small.tables(), 100 * small.HOUR)
    batch = take(shard, np.arange(shard.units))
    batch.teacher_NA = torch.rand(batch.targets, 2)
    return ranker, batch


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_teacher_reaches_the_trunk_and_no_served_head(name):
    ranker, batch = ranker_and_batch(name)
    head = TeacherHead(ranker)
    with torch.no_grad():
        head.weight.normal_()
    teacher_loss(head(ranker(batch).shared_NC), batch, ranker.shape.actions).backward()
    served = {"context.output", "context.bias", "context.wide", "bilinear.scale", "auxiliary.scale", "auxiliary.bias"}
    moved = {key for key, p in ranker.named_parameters() if p.grad is not None and p.grad.any()}
    assert not moved & served
    assert {"embedding.item.weight", "context.norm.gain"} <= moved and any(key.startswith("blocks.") for key in moved)


def test_stop_gradient_only_listens():
    ranker, batch = ranker_and_batch("sasrec")
    head = TeacherHead(ranker, stop_gradient=True)
    with torch.no_grad():
        head.weight.normal_()
    teacher_loss(head(ranker(batch).shared_NC), batch, ranker.shape.actions).backward()
    assert all(p.grad is None for p in ranker.parameters()) and head.weight.grad.any()


def test_the_head_starts_at_the_base_rates():
    ranker, batch = ranker_and_batch("sasrec")
    read = TeacherHead(ranker)(ranker(batch).shared_NC)
    assert torch.allclose(torch.sigmoid(read), torch.full_like(read, 0.3))


def test_each_kind_is_least_at_the_teachers_own_score():
    batch = scored([[0.2, 0.05, 30.0], [0.7, 3.0, 0.0]])
    right = torch.tensor([[math.log(0.2 / 0.8), math.log(0.05), math.log1p(30.0)], [math.log(0.7 / 0.3), math.log(3.0), 0.0]])
    read = right.clone().requires_grad_(True)
    best = teacher_loss(read, batch, ACTIONS)
    best.backward()
    assert torch.allclose(read.grad, torch.zeros_like(read), atol=1e-6)
    entropy = np.mean([-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.2, 0.7)])
    assert float(best.detach()) == pytest.approx(entropy, abs=1e-6), "soft cross-entropy; the squared terms are zero"
    assert float(teacher_loss(right + 0.1, batch, ACTIONS)) > float(best.detach())


def test_rows_without_a_score_take_no_part_and_weights_count():
    full, holes = scored([[0.2, 1.0, 5.0]] * 2), scored([[0.2, 1.0, 5.0], [math.nan] * 3])
    read = torch.tensor([[0.3, 0.1, 0.2], [9.0, 9.0, 9.0]])
    assert torch.equal(teacher_loss(read, holes, ACTIONS), teacher_loss(read[[0, 0]], full, ACTIONS))
    assert float(teacher_loss(read, scored([[math.nan] * 3] * 2), ACTIONS)) == 0
    weights = {"click": 2.0, "shares": 0.0, "watch": 0.0}
    only = teacher_loss(read[:1], scored([[0.2, math.nan, math.nan]]), ACTIONS)
    assert float(teacher_loss(read, holes, ACTIONS, weights)) == pytest.approx(2 * float(only))


def test_a_shard_without_scores_is_refused():
    ranker, batch = ranker_and_batch("sasrec")
    batch.teacher_NA = None
    with pytest.raises(ValueError, match="no teacher's scores"):
        teacher_loss(TeacherHead(ranker)(ranker(batch).shared_NC), batch, ranker.shape.actions)
