"""The Triton kernel of the softmax against cross-entropy over all logits: on the CPU in Triton's interpreter, and (`gpu`) compiled."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from models.negatives import SharedNegatives
from models.softmax import full_softmax, sampled_softmax

pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be run, not even interpreted")

on_a_device = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def kernel(interpreted, monkeypatch):
    """The interpreted module, with tiles so short that few columns fill several."""
    module = interpreted("softmax_kernel")
    monkeypatch.setattr(module, "_WHOLE", 64)
    monkeypatch.setattr(module, "_BLOCK", 32)
    return module


def sides(rows, columns, width=5, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, table = torch.randn(rows, width, generator=generator), torch.randn(columns, width, generator=generator) * scale
    target = torch.randint(0, columns, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.8)
    return hidden.requires_grad_(), table.requires_grad_(), target, weight / weight.sum().clamp(min=1e-30)


def dense(hidden, table, target, share, negatives=None):
    """The dense twin, in float64: all logits at once."""
    logits = hidden.double() @ table.double().T
    if negatives is None:
        return (F.cross_entropy(logits, target, reduction="none") * share).sum()
    logits = (logits - negatives.log_q_V).masked_fill(target[:, None] == negatives.item_V, -torch.inf)
    own_N = negatives.own_N.double()
    return ((torch.cat([own_N[:, None], logits], 1).logsumexp(1) - own_N) * share).sum()


def sampled_case(kernel, rows, columns, **options):
    """Columns of which some are a row's own target."""
    hidden, table, target, share = sides(rows, columns, **options)
    generator = torch.Generator().manual_seed(1)
    item = torch.randint(0, 9, (columns,), generator=generator)
    own, log_q = torch.randn(rows, generator=generator).requires_grad_(), torch.rand(columns, generator=generator) * 3
    return hidden, table, target % 9, share, kernel.Negatives(own, item, log_q)


def hold(fast, plain, inputs, forward=1e-5, backward=1e-4):
    """Holds value and gradients against the twin's."""
    torch.testing.assert_close(fast.double().cpu(), plain.cpu(), rtol=forward, atol=1e-6 * forward)
    found = zip(torch.autograd.grad(3 * fast, inputs[0]), torch.autograd.grad(3 * plain, inputs[1]), strict=True)
    for mine, twin in found:
        assert (mine.cpu() - twin.cpu()).norm() <= backward * twin.norm().clamp(min=1e-6).cpu()


SIZES = [(1, 1), (1, 7), (3, 64), (9, 65), (5, 96), (4, 129), (7, 33), (130, 17)]


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_the_interpreted_kernel_equals_cross_entropy(kernel, rows, columns, chunk):
    inputs = sides(rows, columns, seed=rows)
    fast = kernel.fused_softmax(*inputs, torch.float32, chunk_rows=chunk)
    hold(fast, dense(*inputs), (inputs[:2], inputs[:2]))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_the_interpreted_kernel_equals_sampled_cross_entropy(kernel, rows, columns):
    *inputs, negatives = sampled_case(kernel, rows, columns, seed=columns)
    learned = [*inputs[:2], negatives.own_N]
    hold(kernel.fused_softmax(*inputs, torch.float32, negatives, chunk_rows=4), dense(*inputs, negatives), (learned, learned))


@pytest.mark.parametrize("columns", [40, 200])
def test_logits_beyond_what_an_exponential_holds(kernel, columns):
    inputs = sides(6, columns, scale=300.0)
    assert (inputs[0] @ inputs[1].T).max() > 200
    hold(kernel.fused_softmax(*inputs, torch.float32), dense(*inputs), (inputs[:2], inputs[:2]))


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN):RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("columns", [40, 200])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_number_that_is_none_is_seen_in_the_loss(kernel, columns, bad, share):
    hidden, table, target, _ = sides(3, columns, width=1)
    with torch.no_grad():
        hidden.abs_().add_(0.1)
        table.abs_().add_(0.1)
        hidden[1] = bad
    loss = kernel.fused_softmax(hidden, table, target, torch.tensor([0.5, share, 0.5]), torch.float32)
    assert not loss.isfinite()
    with torch.no_grad():
        hidden[1] = 1.0
        table[columns - 1] = abs(bad)
    assert not kernel.fused_softmax(hidden, table, target, torch.full((3,), 1 / 3), torch.float32).isfinite()


@pytest.mark.parametrize("columns", [40, 200])
def test_items_that_are_ruled_out_count_for_nothing(kernel, columns):
    """Logits of -inf, whole tiles of them: all but a few of the last columns."""
    hidden, table, target, share = sides(3, columns, width=2)
    with torch.no_grad():
        hidden.copy_(torch.tensor([[1.0, 1.0]]))
        table[: columns - 5, 0] = -torch.inf
        table[:, 1] = torch.linspace(0, 1, columns)
    target = columns - 1 - target % 5
    fast = kernel.fused_softmax(hidden, table, target, share, torch.float32)
    torch.testing.assert_close(fast.double(), dense(hidden, table, target, share))


def test_what_lies_behind_the_columns_is_not_read(kernel, monkeypatch):
    """Buffers are longer than rows; the memory they are made of may hold anything."""
    made = torch.Tensor.new_empty

    def littered(self, *size, **options):
        found = made(self, *size, **options)
        return found.fill_(torch.nan) if found.is_floating_point() else found

    monkeypatch.setattr(torch.Tensor, "new_empty", littered)
    inputs = sides(5, 33)
    hold(kernel.fused_softmax(*inputs, torch.float32), dense(*inputs), (inputs[:2], inputs[:2]))


def test_rounded_factors_stay_at_rounding_level(kernel):
    inputs = sides(64, 200, width=32, scale=0.3)
    *others, negatives = sampled_case(kernel, 64, 200, width=32, scale=0.3)
    for given, extra in ((inputs, None), (others, negatives)):
        learned = [*given[:2], *([] if extra is None else [extra.own_N])]
        hold(kernel.fused_softmax(*given, torch.bfloat16, extra), dense(*given, extra), (learned, learned), 1e-3, 0.01)


def test_frozen_sides_cost_no_product_and_no_rows_are_no_loss(kernel, monkeypatch):
    hidden, table, target, share = sides(5, 20)
    products = []
    monkeypatch.setattr(kernel, "product", lambda *a, original=kernel.product, **k: products.append(a) or original(*a, **k))
    loss = kernel.fused_softmax(hidden.detach(), table, target, share, torch.float32)
    (grad,) = torch.autograd.grad(loss, [table])
    assert len(products) == 2
    torch.testing.assert_close(grad, torch.autograd.grad(dense(hidden, table, target, share), [table])[0])
    empty = kernel.fused_softmax(hidden[:0], table, target[:0], share[:0], torch.float32)
    assert empty.item() == 0 and torch.autograd.grad(empty, [table])[0].eq(0).all()


@pytest.mark.parametrize(("columns", "rows"), [(1, 2**14), (3416, 2**14), (43_136, 6_144), (10**6, 256), (3 * 10**6, 89), (10**9, 1)])
def test_rows_of_a_chunk_fill_a_device_and_no_more(kernel, columns, rows):
    assert kernel.rows_on_device(columns) == rows
    assert rows == 1 or rows * columns <= kernel.MOST_LOGITS


@pytest.fixture
def as_on_cuda(kernel, monkeypatch):
    """Sends the losses through the kernel; returns the types of factors that it was asked for."""
    asked, original = [], kernel.fused_softmax

    def fused(hidden, column, target, share, factors, *rest):
        asked.append(factors)
        return original(hidden, column, target, share, factors, *rest)

    monkeypatch.setattr(kernel, "fused_softmax", fused)
    monkeypatch.setattr("models.softmax._is_fused", lambda device, dtype: dtype == torch.float32)
    return asked


def test_the_full_softmax_of_cuda_is_that_of_the_cpu(as_on_cuda, monkeypatch):
    hidden, table, target, weight = sides(30, 70)
    target = torch.where(torch.arange(30) % 7 == 0, -1, target)
    fast = full_softmax(hidden, table, target, weight)
    assert as_on_cuda == [torch.float32]
    monkeypatch.setattr("models.softmax._is_fused", lambda device, dtype: False)
    hold(fast, full_softmax(hidden, table, target, weight).double(), ([hidden, table], [hidden, table]))
    assert len(as_on_cuda) == 1
    nobody = torch.full_like(target, -1)
    assert full_softmax(hidden, table, nobody).item() == 0


def test_the_sampled_softmax_of_cuda_is_that_of_the_cpu(as_on_cuda, monkeypatch):
    hidden, table, target, weight = sides(30, 70)
    generator = torch.Generator().manual_seed(2)
    positive = torch.randn(30, 5, generator=generator).requires_grad_()
    draws = (
        target % 9,
        torch.randint(0, 9, (70,), generator=generator),
        torch.rand(30, generator=generator),
        torch.rand(70, generator=generator),
    )
    fast = sampled_softmax(hidden, positive, table, *draws, weight)
    assert as_on_cuda == [torch.float32]
    monkeypatch.setattr("models.softmax._is_fused", lambda device, dtype: False)
    plain = sampled_softmax(hidden, positive, table, *draws, weight)
    hold(fast, plain.double(), ([hidden, positive, table],) * 2)


def test_neither_softmax_asks_the_device(as_on_cuda, kernel, monkeypatch):
    """Tensors of the device `meta` have no values: whoever wants to know one raises."""
    launched = []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know the device
    monkeypatch.setattr(kernel, "_weigh", {(rows,): lambda *args, rows=rows, **_: launched.append(rows) for rows in (256, 44)})
    monkeypatch.setattr(kernel, "rows_on_device", lambda columns: 256)
    hidden, positive, table = (torch.randn(n, 8, device="meta", requires_grad=True) for n in (300, 300, 99))
    target, weight = torch.empty(300, dtype=torch.int64, device="meta"), torch.empty(300, device="meta")
    full_softmax(hidden, table, target, weight).backward()
    negative, log_q = SharedNegatives(99, 2, 40).to("meta")(target)
    sampled_softmax(hidden, positive, table[negative], target, negative, torch.zeros_like(weight), log_q, weight).backward()
    assert launched == [256, 44] * 2 and positive.grad.shape == (300, 8)
    with pytest.raises(RuntimeError, match="meta"):
        float(hidden.detach().sum())


class TestCompiled:
    """On a device."""

    pytestmark = on_a_device

    @pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 8), (300, 3_416, 64), (257, 8_193, 40), (130, 70_001, 32)])
    @pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-3, 0.01)])
    def test_full_softmax_equals_cross_entropy(self, rows, columns, width, dtype, forward, backward):
        here = sides(rows, columns, width, scale=0.3)
        there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in here]
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            fast = full_softmax(*there)
        hold(fast, dense(*here), (there[:2], here[:2]), forward, backward)

    @pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-3, 0.01)])
    def test_sampled_softmax_equals_that_of_the_cpu(self, dtype, forward, backward):
        hidden, table, target, weight = sides(300, 9_001, 32, scale=0.3)
        positive = torch.randn(300, 32, requires_grad=True)
        here = [hidden, positive, table, target % 99, torch.randint(0, 99, (9_001,)), torch.rand(300), torch.rand(9_001), weight]
        there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in here]
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            fast = sampled_softmax(*there)
        hold(fast, sampled_softmax(*here).double(), (there[:3], here[:3]), forward, backward)

    def test_it_is_the_same_every_time_waits_for_nothing_and_says_what_is_no_number(self):
        there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in sides(5_000, 20_000, 32)]

        def learn():
            with torch.autocast("cuda", torch.bfloat16):
                loss = full_softmax(*there)
            return loss, *torch.autograd.grad(loss, there[:2])

        first = learn()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = learn()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        with torch.no_grad():
            there[0][17] = torch.nan
        assert not learn()[0].isfinite()

    def test_a_million_items_take_the_memory_that_is_promised(self):
        from models.softmax_kernel import MOST_LOGITS

        rows, items, width = 2_048, 10**6 + 1, 64  # rows that are no multiple of what is read at once
        there = [torch.randn(n, width, device="cuda", requires_grad=True) for n in (rows, items)]
        target = torch.randint(0, items, (rows,), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            full_softmax(*there, target).backward()
        taken = torch.cuda.max_memory_allocated() - before
        sides_bytes = (rows + items) * width * (4 + 4 + 2)  # gradients, the same times the loss's own, rounded factors
        workspaces = 2**28  # of cuBLAS, at most
        assert taken <= 6 * MOST_LOGITS + sides_bytes + workspaces < 4 * rows * items, taken
