"""Full and sampled softmax against cross-entropy over all logits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import streams
from models.softmax import MOST_LOGITS, MOST_ROWS, _are_small, _columns, _FullSoftmax, _streams, full_softmax, rows_a_chunk, sampled_softmax


@pytest.fixture
def threads():
    """Lets a test choose how many threads torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("scale", [0.3, 30.0], ids=["bounded", "shifted"])
@pytest.mark.parametrize("streamed", [1, 2, 3])
def test_streams_equal_cross_entropy_in_fp32(threads, scale, streamed):
    """Odd chunks, a last one that is short, rows that take no part; logits that need a shift and logits that need none."""
    torch.manual_seed(0)
    hidden, table = torch.randn(1_001, 24, requires_grad=True), (torch.randn(307, 24) * scale).requires_grad_()
    target, weight = torch.randint(-1, 307, (1_001,)), torch.rand(1_001)
    threads(streamed)
    assert _streams(hidden, 307, 256)[0] == streamed
    share = weight * (target >= 0) / (weight * (target >= 0)).sum()
    assert _are_small(hidden.detach(), table.detach()) == (scale < 1)
    fast = full_softmax(hidden, table, target, weight)
    plain = (F.cross_entropy(hidden.double() @ table.double().T, target.clamp(min=0), reduction="none") * share).sum()
    torch.testing.assert_close(fast.double(), plain, rtol=1e-5, atol=0)
    for mine, twin in zip(torch.autograd.grad(fast, [hidden, table]), torch.autograd.grad(plain, [hidden, table]), strict=True):
        assert (mine - twin).norm() <= 1e-5 * twin.norm()


def test_streams_add_up_to_the_same_bits_every_time(threads):
    torch.manual_seed(0)
    sides, target = [torch.randn(n, 16, requires_grad=True) for n in (700, 90)], torch.randint(0, 90, (700,))
    threads(3)
    first, *others = [torch.autograd.grad(full_softmax(*sides, target), sides) for _ in range(5)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "rows, items, wanted", [(4096, 3416, (4, 256)), (520, 3416, (4, 65)), (100, 3416, (1, 256)), (4096, 10**6, (1, 256))]
)
def test_streams_are_chosen_where_products_are_small(threads, rows, items, wanted):
    threads(4)
    assert _streams(torch.empty(rows, 0), items, 256) == wanted


@pytest.mark.parametrize("items", [1, 3416, 43_136, 65_536])
@pytest.mark.parametrize("count", [2, 16, 64])
def test_streams_hold_no_more_logits_together_than_one(threads, items, count):
    threads(count)
    streams, chunk_rows = _streams(torch.empty(100_000, 0), items, 256)
    assert streams * chunk_rows * items <= MOST_LOGITS and 64 <= chunk_rows <= 256
    assert streams == count or (streams + 1) * 64 * items > MOST_LOGITS, "as many as there is room for"


def test_a_stream_uses_one_thread_and_leaves_the_others_theirs(threads):
    threads(3)
    assert streams.in_streams(lambda number: (number, torch.get_num_threads()), 2) == [(0, 1), (1, 1)]
    assert torch.get_num_threads() == 3
    assert streams.in_streams(lambda number: torch.get_num_threads(), 1) == [3]
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3, "a loader's thread that starts afterwards"


def test_what_a_stream_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        streams.in_streams(lambda number: 1 / number, 2)


def test_full_softmax_survives_large_logits_and_frozen_sides():
    hidden, table = torch.randn(9, 4) * 1e3, torch.randn(6, 4, requires_grad=True)
    loss = full_softmax(hidden, table, torch.arange(9) % 6)
    loss.backward()
    assert loss.isfinite()
    assert table.grad.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(full_softmax(hidden, table, torch.arange(9) % 6), loss.detach())
    assert full_softmax(hidden[:0], table, torch.arange(0)).item() == 0


def test_full_softmax_never_holds_rows_times_items(threads):
    threads(1)  # the profiler sees the allocations of its own thread only
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
    monkeypatch.setattr("models.softmax.rows_a_chunk", lambda items: asked.append(items) or 2)
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


def test_the_sums_of_weights_come_with_the_product_only_where_nothing_is_rounded(monkeypatch):
    """Gradients are equal whether a row of ones adds up the weights or a pass of its own does."""
    item = torch.randn(30, 8, requires_grad=True)
    hidden, target = torch.randn(70, 8, requires_grad=True), torch.randint(0, 30, (70,))
    assert _columns(item.detach(), torch.float32).shape == (9, 30) and _columns(item.detach(), torch.bfloat16).shape == (8, 30)
    with_ones = torch.autograd.grad(full_softmax(hidden, item, target), [hidden, item])
    monkeypatch.setattr("models.softmax._STREAM_ITEMS", 29)
    assert _columns(item.detach(), torch.float32).shape == (8, 30)
    for mine, theirs in zip(with_ones, torch.autograd.grad(full_softmax(hidden, item, target), [hidden, item]), strict=True):
        torch.testing.assert_close(mine, theirs)
