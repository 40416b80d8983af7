import math

import pytest
import torch

import models
from models.losses import (
    MAX_LOG_RATE,
    MAX_LOG_SECONDS,
    bounded_log_sigma,
    expectations,
    multi_action_loss,
    ranker_loss,
)
from models.packing import next_item_rows
from models.ranker import ActionShape, Scores
from models.softmax import full_softmax

ACTIONS = (
    ActionShape(name="click", kind="binary", base_rate=0.2),
    ActionShape(name="watch", kind="duration", base_rate=2.0),
    ActionShape(name="comments", kind="count", base_rate=0.1),
)


@pytest.fixture
def batch(kit):
    return kit.batch(kit.shape(), [5, 3, 0], [[1, 5, 5], [3, 0], [0, 0]], seed=4)


def random_output(batch):
    return torch.randn(batch.targets, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_action_losses_are_negative_log_likelihoods_over_known_rows(batch):
    output = random_output(batch)
    losses = multi_action_loss(output, batch, ACTIONS)
    sigma = torch.exp(bounded_log_sigma(output[:, 2]))
    label = batch.label_NA.double()
    expected = [
        -torch.distributions.Bernoulli(logits=output[:, 0]).log_prob(label[:, 0]),
        -torch.distributions.Normal(output[:, 1], sigma).log_prob(torch.log1p(label[:, 1])) - 0.5 * math.log(2 * math.pi),
        -torch.distributions.Poisson(output[:, 3].exp()).log_prob(label[:, 2]) - torch.lgamma(label[:, 2] + 1),
    ]
    for action, row_loss in enumerate(expected):
        weight = batch.weight_N.double() * batch.known_NA[:, action]
        torch.testing.assert_close(losses.action_A[action], (row_loss * weight).sum() / weight.sum())
        torch.testing.assert_close(losses.weight_A[action], weight.sum())
    torch.testing.assert_close(losses.total, losses.action_A.sum())
    weighted = multi_action_loss(output, batch, ACTIONS, {"click": 1.0, "watch": 0.5, "comments": 0.0})
    torch.testing.assert_close(weighted.total, losses.action_A[0] + 0.5 * losses.action_A[1])


def test_unknown_labels_are_never_read_not_even_when_they_are_garbage(batch):
    output = random_output(batch).requires_grad_()
    clean = multi_action_loss(output, batch, ACTIONS)
    batch.label_NA = torch.where(batch.known_NA, batch.label_NA, torch.nan)
    dirty = multi_action_loss(output, batch, ACTIONS)
    assert torch.equal(clean.total, dirty.total)
    (gradient,) = torch.autograd.grad(dirty.total, output)
    assert gradient.isfinite().all()
    assert not gradient[:, 0][~batch.known_NA[:, 0]].any()


def test_an_action_without_known_rows_costs_nothing(batch):
    batch.known_NA = torch.zeros_like(batch.known_NA)
    output = random_output(batch).requires_grad_()
    losses = multi_action_loss(output, batch, ACTIONS)
    assert losses.total.item() == 0
    assert not torch.autograd.grad(losses.total, output)[0].any()


@pytest.mark.parametrize("weights", [{"click": 1.0}, {"click": 1.0, "watch": 1.0, "comments": 1.0, "like": 1.0}])
def test_loss_weights_must_name_the_actions(batch, weights):
    with pytest.raises(ValueError, match="loss weights name"):
        multi_action_loss(random_output(batch), batch, ACTIONS, weights)


def test_the_auxiliary_head_counts_with_its_weight(kit, batch):
    shape = kit.shape(auxiliary_weight=0.25)
    output, auxiliary = random_output(batch), random_output(batch) + 1
    both = ranker_loss(Scores(output, auxiliary), batch, shape)
    alone, other = (multi_action_loss(part, batch, ACTIONS) for part in (output, auxiliary))
    torch.testing.assert_close(both.total, alone.total + 0.25 * other.total)
    assert torch.equal(both.action_A, alone.action_A)


def test_extreme_outputs_keep_finite_losses_that_lead_back(batch):
    batch.known_NA = torch.ones_like(batch.known_NA)
    output = torch.tensor([[50.0, 5.0, -60.0, 80.0]]).repeat(batch.targets, 1).requires_grad_()
    losses = multi_action_loss(output, batch, ACTIONS)
    (gradient,) = torch.autograd.grad(losses.total, output)
    assert losses.total.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 3] > 0).all()  # the count's rate comes down


def test_the_rate_bends_without_a_jump():
    from models.losses import _rate

    at = torch.tensor(MAX_LOG_RATE, dtype=torch.float64, requires_grad=True)
    above = torch.tensor(MAX_LOG_RATE + 1e-6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(_rate(above), _rate(at), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.autograd.grad(_rate(above), above)[0], at.exp(), rtol=1e-5, atol=0)


def test_expectations_are_means_of_their_distributions():
    torch.manual_seed(0)
    output = torch.tensor([[0.3, 1.2, math.log(0.5), 0.7]])
    click, watch, comments = expectations(output, ACTIONS)[0].tolist()
    sigma = math.exp(bounded_log_sigma(output[0, 2]).item())
    draws = torch.expm1(torch.randn(2_000_000, dtype=torch.float64) * sigma + 1.2)
    assert click == pytest.approx(1 / (1 + math.exp(-0.3)))
    assert watch == pytest.approx(draws.mean().item(), rel=2e-3)
    assert comments == pytest.approx(math.exp(0.7))


def test_expectations_stay_sane():
    wild = expectations(torch.tensor([[100.0, 3.0, 50.0, 500.0], [-100.0, -50.0, -50.0, -500.0]]), ACTIONS)
    assert wild[0].tolist() == pytest.approx([1.0, math.expm1(MAX_LOG_SECONDS), math.exp(MAX_LOG_RATE)])
    assert wild[1].tolist() == [pytest.approx(0.0), 0.0, 0.0]


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
def test_a_few_steps_learn_which_items_are_clicked(kit, architecture):
    shape = kit.bare(architecture, actions=ACTIONS[:1])
    batch = kit.batch(shape, [8] * 32, [[8, 4, 2, 0]] * 32)
    batch.label_NA = (batch.target_item_N % 2).float()[:, None]
    batch.known_NA = torch.ones_like(batch.known_NA)
    torch.manual_seed(0)
    model = models.build(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        loss = ranker_loss(model(batch), batch, shape).total
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("architecture", ("sasrec", "hstu"))
def test_a_next_item_model_learns_a_cycle(kit, architecture):
    shape = kit.bare(architecture, actions=(), dim=32, head_dim=16)
    batch = kit.batch(shape, [12] * 16, [[]] * 16)
    steps = torch.arange(12).repeat(16) + torch.arange(16).repeat_interleave(12) * 5
    batch.token_item_T = steps % 38 + 2
    torch.manual_seed(0)
    model = models.build(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    catalogue = torch.arange(2, 40)
    for _ in range(80):
        optimizer.zero_grad()
        items = model.item_vectors(catalogue, torch.zeros(38, 0, dtype=torch.int64))
        loss = full_softmax(model.states(batch)[next_item_rows(batch)], items, batch.token_item_T - 2)
        loss.backward()
        optimizer.step()
    guess = (model.states(batch)[next_item_rows(batch)] @ items.T).argmax(1)
    known = torch.arange(len(guess)) % 12 > 0  # the first item of a sequence cannot be known
    assert (guess == batch.token_item_T - 2)[known].float().mean() > 0.95
