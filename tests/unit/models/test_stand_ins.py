"""A missing number is stood in for by a value of its own and a linear function of those that are there."""

import dataclasses

import pytest
import torch

import models

NUMERIC = ("a", "b", "c")


@pytest.fixture
def ranker(kit):
    return kit.model(kit.shape(numeric=NUMERIC, stand_ins=True))


@pytest.fixture
def batch(kit, ranker):
    found = kit.batch(ranker.shape, [5, 3], [[0, 2, 5], [1, 3]])
    present_NF = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    return dataclasses.replace(found, present_NF=present_NF, numeric_NF=torch.randn(5, 3) * present_NF)


def test_what_stands_in_is_what_is_said(ranker, batch):
    context = ranker.context
    _, got_NF = context._inputs(batch)
    for row in range(5):
        for feature in range(3):
            expected = batch.numeric_NF[row, feature]
            if not batch.present_NF[row, feature]:
                others = [f for f in range(3) if batch.present_NF[row, f]]
                expected = context.missing[feature] + sum(batch.numeric_NF[row, f] * context.stand_in[f, feature] for f in others)
            torch.testing.assert_close(got_NF[row, feature], expected, rtol=1e-5, atol=1e-6)


def test_a_number_behind_a_missing_mark_is_never_read(ranker, batch):
    poisoned = dataclasses.replace(batch, numeric_NF=torch.where(batch.present_NF, batch.numeric_NF, torch.nan))
    assert torch.equal(ranker(batch).output_NO, ranker(poisoned).output_NO)


def test_a_fresh_ranker_starts_with_none(kit, batch):
    """Before anything is learned, every missing number is its feature's mean, with the option and without."""
    outputs = []
    for stand_ins in (True, False):
        torch.manual_seed(0)
        outputs.append(models.build(kit.shape(numeric=NUMERIC, stand_ins=stand_ins)).eval()(batch).output_NO)
    assert torch.equal(*outputs)


def test_a_dropped_feature_is_stood_in_for_as_a_missing_one(kit, batch):
    ranker = kit.model(kit.shape(numeric=NUMERIC, stand_ins=True, feature_dropout=0.999999))
    ranker.train()
    _, got_NF = ranker.context._inputs(batch)
    torch.testing.assert_close(got_NF, ranker.context.missing.expand(5, 3))
