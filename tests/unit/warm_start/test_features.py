"""Features and heads come and go (reference/warm-start.md, A12 to A14)."""

import math

import pytest
import torch

from models.losses import ranker_loss
from tests import small, warm
from trainer.errors import CheckpointError
from trainer.schema.transfer import Rules
from trainer.warm_start import apply, plan, verify
from trainer.warm_start.measure import measure_removed
from trainer.warm_start.rows import mean_row

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
NUMERIC, TAB = "context.numeric", "context.categorical.tables.feature:tab.weight"


@both
def test_new_features_leave_old_outputs_and_learn_from_the_first_step(architecture):
    old = small.encoder(numeric=("rate",), categorical=(), history=("click",))
    new = small.encoder(numeric=("age", "rate"), history=("click", "like"))
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact, the_plan.inexact
    batch = warm.batch_of(new)
    batch.numeric_NF[:, 0] = 5.0  # with any value of the new feature
    batch.present_NF[:, 0] = True
    with torch.inference_mode():
        got, expected = target(batch).output_NO, source(warm.batch_of(old)).output_NO
    assert (got - expected).abs().max() <= 1e-10
    ranker_loss(target(batch), batch, target.shape).total.backward()
    parameters = dict(target.named_parameters())
    assert parameters[NUMERIC].grad[0].abs().max() > 0 and parameters[TAB].grad.abs().max() > 0
    assert parameters["embedding.action_value"].grad[1].abs().max() > 0


@both
def test_a_removed_table_leaves_its_mean_row_behind_and_the_effect_is_measured(architecture):
    old, new = small.encoder(), small.encoder(categorical=())
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    with torch.no_grad():
        source.state_dict()[TAB][1:] += 1.0  # so that its mean matters
    the_plan, sides = warm.transfer(old, source, new, target, coverage={})
    assert not the_plan.exact and any("the feature was removed" in reason for reason in the_plan.inexact)
    measured = measure_removed(source, [warm.batch_of(old)], *sides, the_plan)["tab"]
    before = source.state_dict()[TAB].clone()
    mean = mean_row(before.__getitem__, old.vocabularies["tab"])
    with torch.no_grad():
        source.state_dict()[TAB][1:] = mean
    assert (warm.outputs(new, target) - warm.outputs(old, source)).abs().max() <= 1e-10, "the mean row is folded in"
    with torch.no_grad():
        source.state_dict()[TAB].copy_(before)
    change = (source(warm.batch_of(old)).output_NO - target(warm.batch_of(new)).output_NO).abs()
    assert measured["mean_change"] == pytest.approx(float(change.detach().mean()), rel=1e-6) and measured["mean_change"] > 1e-3
    assert measured["max_change"] == pytest.approx(float(change.detach().max()), rel=1e-6)
    assert measured["mean_goes_to"] == "context.gap"


@pytest.mark.parametrize("kind", ["item_features", "token_features"])
@both
def test_removed_features_of_items_and_tokens_leave_their_mean_row_too(architecture, kind):
    import dataclasses

    from trainer.data import Encoder

    old = small.encoder()
    new = Encoder(dataclasses.replace(old.inputs, **{kind: {}}), old.vocabularies)
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, _ = warm.transfer(old, source, new, target, coverage={})
    name = next(fate.source for fate in the_plan.fates if fate.fate == "dropped")
    with torch.no_grad():
        source.state_dict()[name][1:] = mean_row(source.state_dict()[name].__getitem__, old.vocabularies[source.axes()[name][0][6:]])
        source.state_dict()[name][0] = source.state_dict()[name][1] if kind == "token_features" else 0
    assert (warm.outputs(new, target) - warm.outputs(old, source)).abs().max() <= 1e-10
    assert (target.state_dict()["embedding.item.weight"][0] == 0).all()


@both
def test_stand_ins_of_missing_numbers_come_with_a_new_ranker_and_follow_their_features(architecture):
    fewer, other, more = (small.encoder(numeric=names) for names in (("age",), ("rate", "age"), ("age", "rate")))
    for old, stand_ins in ((fewer, False), (fewer, True), (other, False), (other, True)):
        source, target = warm.build(old, name=architecture, stand_ins=stand_ins).double(), warm.fresh(more, name=architecture).double()
        the_plan, _ = warm.transfer(old, source, more, target)
        assert the_plan.exact, the_plan.inexact
        batch = warm.batch_of(more)
        assert (~batch.present_NF & batch.present_NF[:, [1, 0]]).any(), "one number is missing, the other could stand in"
        with torch.inference_mode():
            got, expected = target(batch).output_NO, source(warm.batch_of(old)).output_NO
        assert (got - expected).abs().max() <= 1e-10
    assert torch.equal(target.context.stand_in, source.context.stand_in[[1, 0]][:, [1, 0]])
    without = warm.fresh(other, name=architecture, stand_ins=False)
    the_plan = plan(*warm.sides(other, source, other, without), Rules())
    assert [fate.source for fate in the_plan.fates if fate.fate == "refused"] == ["context.stand_in"]


def test_a_removed_number_is_measured_by_its_mean():
    old, new = small.encoder(numeric=("rate", "age")), small.encoder(numeric=("rate",))
    source, target = warm.build(old), warm.fresh(new)
    the_plan, sides = warm.transfer(old, source, new, target, coverage={})
    assert not the_plan.exact and any("removed" in reason for reason in the_plan.inexact)
    measured = measure_removed(source, [warm.batch_of(old)], *sides, the_plan)
    assert set(measured) == {"age"}
    change = (source(warm.batch_of(old)).output_NO - target(warm.batch_of(new)).output_NO).abs()
    assert measured["age"]["mean_change"] == pytest.approx(float(change.detach().mean()), rel=1e-4)
    absent = measure_removed(source, [warm.batch_of(old)], *sides, the_plan, {"age"})
    assert absent["age"]["mean_change"] is None, "what the log no longer has cannot be measured"


@both
def test_a_new_head_leaves_the_old_bit_equal_and_starts_at_its_base_rate(architecture):
    old, new = (
        small.encoder(actions=("click",), history=("click", "like")),
        small.encoder(actions=("like", "watch", "click"), history=("click", "like")),
    )
    source, target = warm.build(old, name=architecture), warm.fresh(new, name=architecture)
    the_plan, _ = warm.transfer(old, source, new, target)
    assert the_plan.exact, the_plan.inexact
    pairs = [(warm.batch_of(old), warm.batch_of(new))]
    with torch.inference_mode():
        before, after = source(pairs[0][0]).output_NO[:, 0], target(pairs[0][1]).output_NO
    assert torch.equal(after[:, target.shape.outputs.index("click")], before)
    prior = 0.3  # small.inputs
    logit = after[:, target.shape.outputs.index("like")].double()
    label = torch.zeros(len(logit)).double()
    label[: round(prior * len(logit))] = 1
    rate = float(label.mean())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    assert rate == prior and float(loss) / entropy == pytest.approx(1, abs=1e-6), "NE of a new head is 1"
    parity = verify(source, target, pairs, the_plan.exact)
    assert set(parity.new_outputs) == {"like", "watch/mu", "watch/log_sigma"} and max(parity.new_outputs.values()) == 0
    warm.train_steps(new, target)
    moved = (target.state_dict()["context.output"][target.shape.outputs.index("like")]).abs().min()
    assert moved > 0, "the new head learns"


def test_verify_notices_a_new_head_that_starts_elsewhere():
    old, new = small.encoder(actions=("click",)), small.encoder(actions=("click", "like"), history=("click",))
    source, target = warm.build(old), warm.fresh(new)
    warm.transfer(old, source, new, target)
    pairs = [(warm.batch_of(old), warm.batch_of(new))]
    with torch.no_grad():
        target.state_dict()["context.output"][1] += 0.1
    with pytest.raises(CheckpointError, match="does not start at its base rate"):
        verify(source, target, pairs, True)


def test_verify_refuses_a_transfer_that_lies():
    encoder = small.encoder()
    source, target = warm.build(encoder), warm.fresh(encoder)
    warm.transfer(encoder, source, encoder, target)
    batch = warm.batch_of(encoder)
    assert verify(source, target, [(batch, batch)], exact=True).max_difference == 0
    with torch.no_grad():
        target.context.bias += 0.01
    with pytest.raises(CheckpointError, match="does not reproduce"):
        verify(source, target, [(batch, batch)], exact=True)
    measured = verify(source, target, [(batch, batch)], exact=False)
    assert measured.max_difference == pytest.approx(0.01, rel=1e-3) and measured.mean_difference == pytest.approx(0.01, rel=1e-3)
    with torch.no_grad():
        target.context.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="does not reproduce"):
        verify(source, target, [(batch, batch)], exact=False)


def test_verify_works_in_double_precision_with_its_bound():
    encoder = small.encoder()
    source = warm.build(encoder).double()
    target = warm.fresh(encoder, dim=24, like=source).double()
    warm.transfer(encoder, source, encoder, target)
    batch = warm.batch_of(encoder)
    parity = verify(source, target, [(batch, batch)], exact=True)
    assert parity.bound <= 1e-10 * max(parity.max_output, 1)
    with torch.no_grad():
        target.context.bias += 1e-8
    with pytest.raises(CheckpointError, match="does not reproduce"):
        verify(source, target, [(batch, batch)], exact=True)


def test_a_dropped_head_leaves_the_others_exact():
    old, new = small.encoder(), small.encoder(actions=("like",), history=("click", "like"))
    source, target = warm.build(old).double(), warm.fresh(new).double()
    both_sides = warm.sides(old, source, new, target)
    the_plan = plan(*both_sides, Rules(coverage={"heads": 0.4}))
    target.load_state_dict(apply(the_plan, *both_sides, source.state_dict(), target.state_dict()))
    assert the_plan.exact
    assert (warm.outputs(new, target)[:, 0] - warm.outputs(old, source)[:, 1]).abs().max() <= 1e-10
