import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.losses import (
    MAX_LOG_RATE,
    MAX_LOG_SECONDS,
    MOST_LOGITS,
    MOST_ROWS,
    _FullSoftmax,
    bounded_log_sigma,
    expectations,
    full_softmax,
    multi_action_loss,
    ranker_loss,
    rows_a_chunk,
    sampled_softmax,
)
from models.packing import next_item_rows
from models.ranker import ActionShape, Scores

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


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), items=st.integers(1, 30), chunk=st.sampled_from([1, 7, 256]), seed=st.integers(0, 99))
def test_chunked_full_softmax_equals_cross_entropy_with_gradients(rows, items, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(items, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(-1, items, (rows,), generator=generator)
    weight = torch.rand(rows, dtype=torch.float64, generator=generator) + 0.1
    fast = 3 * full_softmax(hidden, table, target, weight, chunk)
    part = weight * (target >= 0)
    plain = 3 * (F.cross_entropy(hidden @ table.T, target.clamp(min=0), reduction="none") * part).sum() / part.sum().clamp(min=1e-300)
    torch.testing.assert_close(fast, plain)
    for a, b in zip(torch.autograd.grad(fast, [hidden, table]), torch.autograd.grad(plain, [hidden, table]), strict=True):
        torch.testing.assert_close(a, b)


def test_full_softmax_survives_large_logits_and_frozen_sides():
    hidden, table = torch.randn(9, 4) * 1e3, torch.randn(6, 4, requires_grad=True)
    loss = full_softmax(hidden, table, torch.arange(9) % 6)
    loss.backward()
    assert loss.isfinite()
    assert table.grad.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(full_softmax(hidden, table, torch.arange(9) % 6), loss.detach())
    assert full_softmax(hidden[:0], table, torch.arange(0)).item() == 0


def test_full_softmax_never_holds_rows_times_items():
    hidden, table = torch.randn(4096, 8, requires_grad=True), torch.randn(2000, 8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        full_softmax(hidden, table, torch.randint(0, 2000, (4096,)), chunk_rows=64).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 4096 * 2000 * 4 / 4


@pytest.mark.parametrize("items", [1, 3416, 262_144, 262_145, 1_000_000, 10**9])
def test_logits_held_at_a_time_stay_within_the_budget(items):
    rows = rows_a_chunk(items)
    assert 1 <= rows <= MOST_ROWS and rows * items <= max(MOST_LOGITS, items)
    assert (rows + 1) * items > MOST_LOGITS or rows == MOST_ROWS


def test_full_softmax_takes_its_rows_from_the_size_of_the_catalogue(monkeypatch):
    asked = []
    monkeypatch.setattr("models.losses.rows_a_chunk", lambda items: asked.append(items) or 2)
    hidden, table = torch.randn(5, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64)
    torch.testing.assert_close(full_softmax(hidden, table, torch.arange(5)), F.cross_entropy(hidden @ table.T, torch.arange(5)))
    assert asked == [11]


def test_rounded_factors_change_the_full_softmax_at_rounding_level_only():
    """What autocast to bf16 does on CUDA: factors of eight bits, sums of 24."""
    torch.manual_seed(0)
    hidden, table = torch.randn(600, 32, requires_grad=True), (torch.randn(500, 32) * 0.3).requires_grad_()
    target, share = torch.randint(0, 500, (600,)), torch.full((600,), 1 / 600)
    losses = [_FullSoftmax.apply(hidden, table, target, share, 256, factors) for factors in (torch.bfloat16, torch.float32)]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    for mine, twin in zip(*(torch.autograd.grad(loss, [hidden, table]) for loss in losses), strict=True):
        assert 0 < (mine - twin).norm() <= 0.01 * twin.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_full_softmax_in_bf16_on_cuda_equals_fp32_on_the_cpu_at_rounding_level():
    torch.manual_seed(0)
    here = [torch.randn(600, 32, requires_grad=True), (torch.randn(5000, 32) * 0.3).requires_grad_()]
    there, target = [x.detach().cuda().requires_grad_() for x in here], torch.randint(0, 5000, (600,))
    with torch.autocast("cuda", torch.bfloat16):
        fast = full_softmax(*there, target.cuda())
    plain = full_softmax(*here, target)
    torch.testing.assert_close(fast.cpu(), plain, rtol=1e-3, atol=0)
    for mine, twin in zip(torch.autograd.grad(fast, there), torch.autograd.grad(plain, here), strict=True):
        assert (mine.cpu() - twin).norm() <= 0.01 * twin.norm()


def test_sampled_softmax_over_every_item_is_the_full_softmax():
    torch.manual_seed(0)
    hidden, table = torch.randn(12, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    target, zeros = torch.randint(0, 8, (12,)), torch.zeros(12, dtype=torch.float64)
    sampled = sampled_softmax(hidden, table[target], table, target, torch.arange(8), zeros, zeros[:8])
    torch.testing.assert_close(sampled, F.cross_entropy(hidden @ table.T, target))


def test_log_q_makes_the_sampled_partition_function_unbiased():
    """Negatives drawn with q, each logit lowered by log(draws x q): the expected sum of exponentials is that of all items."""
    torch.manual_seed(0)
    draws, logits = 200_000, torch.randn(1, 6, dtype=torch.float64)
    q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
    negative = torch.multinomial(q, draws, replacement=True)
    log_q = torch.log(draws * q)
    hidden, table = logits, torch.eye(6, dtype=torch.float64)
    loss = sampled_softmax(hidden, table[:1], table[negative], torch.tensor([0]), negative, torch.zeros(1), log_q[negative])
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0])), rtol=0.01, atol=0)


def test_false_negatives_are_masked_and_get_no_gradient():
    torch.manual_seed(0)
    hidden, negative = torch.randn(2, 4), torch.randn(3, 4, requires_grad=True)
    rows = torch.tensor([5, 6, 5])
    loss = sampled_softmax(hidden[:1], torch.randn(1, 4), negative, rows[:1], rows, torch.zeros(1), torch.zeros(3))
    loss.backward()
    assert negative.grad.any(1).tolist() == [False, True, False]


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
