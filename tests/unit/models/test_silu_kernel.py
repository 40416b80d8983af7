"""The Triton kernel against the dense twin: on the CPU in Triton's interpreter, and (marked `gpu`) compiled."""

import dataclasses

import pytest
import torch

from models.arrange import run_layout
from models.attention import BIAS_ROWS, dense_pointwise_attention
from models.hstu import seen
from models.packing import pack

pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be run, not even interpreted")

ODD = [
    ([0], [[]]), ([0], [[0]]), ([1], [[1, 1, 0]]), ([0, 0, 3], [[0], [], [3, 0, 2]]),
    ([63, 64, 65, 15], [[63], [], [3] * 20, [0, 15, 7]]), ([130], [[130, 64, 0] + [129] * 64]),
]  # fmt: skip


@pytest.fixture
def kernel(interpreted):
    """In the kernel's place, the same module loaded so that its functions are interpreted."""
    return interpreted("silu_kernel")


def case(kit, lengths, targets, width=8, heads=2, seed=0):
    """Inputs as an hstu block gives them, and all that their arrangement follows from."""
    batch = kit.batch(kit.bare("hstu"), lengths, targets, seed)
    packing = pack(batch)
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths) + len(lengths) + sum(map(len, targets))
    q, k, v = (torch.randn(count, heads, width, generator=generator, requires_grad=True) for _ in range(3))
    bias = torch.randn(BIAS_ROWS, heads, generator=generator, requires_grad=True)
    return packing, seen(batch, packing), (q, k, v, bias)


@pytest.mark.parametrize(("lengths", "targets"), ODD)
def test_the_interpreted_kernel_equals_its_dense_twin(kit, kernel, lengths, targets):
    packing, known, inputs = case(kit, lengths, targets)
    fast, dense = run_layout(packing, known).attend(*inputs), dense_pointwise_attention(*inputs, packing, known)
    torch.testing.assert_close(fast, dense, rtol=1e-5, atol=1e-5 * float(dense.detach().abs().max()))
    direction = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    for mine, twin in zip(torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(dense, inputs, direction), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-4, atol=1e-4 * max(float(twin.abs().max()), 1e-3))


def test_a_head_that_fills_no_tile_and_one_that_fills_two(kit, kernel):
    for width in (5, 32):
        packing, known, inputs = case(kit, [3, 20], [[1], [20, 20]], width=width)
        fast = run_layout(packing, known).attend(*inputs)
        torch.testing.assert_close(fast, dense_pointwise_attention(*inputs, packing, known), rtol=1e-5, atol=1e-4)


def test_bias_rows_equal_the_buckets_at_every_edge(kit, kernel):
    """Targets as far behind the rows as every power of two of tokens and of seconds, and one short of it; some without a clock."""
    count = 60
    packing, known, (q, k, v, bias) = case(kit, [63], [[63] * count])
    power_N = 2 ** (torch.arange(count) // 2)
    position_N = 63 + power_N.clamp(max=2**20) - torch.arange(count) % 2
    time_N = torch.where(torch.arange(count) == 7, -1, 5000 + 1000 * power_N - torch.arange(count) % 2)
    time_R = torch.where(torch.arange(64) % 9 == 4, -1, 5000 - torch.arange(64) // 32)
    known = dataclasses.replace(known, position_Q=torch.cat([known.position_Q[:64], position_N]), time_Q=torch.cat([time_R, time_N]))
    fast = run_layout(packing, known).attend(q, k, v, bias)
    torch.testing.assert_close(fast, dense_pointwise_attention(q, k, v, bias, packing, known), rtol=1e-5, atol=1e-4)


def moved(value):
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("lengths", "targets"), ODD)
@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 0.02, 0.03)])
def test_the_compiled_kernel_equals_its_dense_twin(kit, lengths, targets, dtype, forward, backward):
    packing, known, inputs = case(kit, lengths, targets, width=32)
    layout = run_layout(*(type(x)(**{f.name: moved(getattr(x, f.name)) for f in dataclasses.fields(x)}) for x in (packing, known)))
    there = [x.detach().cuda().to(dtype if place < 3 else torch.float32).requires_grad_() for place, x in enumerate(inputs)]
    here = [x.detach().cpu().float().requires_grad_() for x in there]  # the twin starts from the rounded inputs
    fast, dense = layout.attend(*there), dense_pointwise_attention(*here, packing, known)
    assert (fast.float().cpu() - dense).abs().max() <= forward * dense.abs().max()
    direction = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs = torch.autograd.grad(dense, here, direction.float())
    for mine, twin in zip(torch.autograd.grad(fast, there, direction.cuda()), theirs, strict=True):
        assert (mine.float().cpu() - twin).abs().max() <= backward * max(float(twin.abs().max()), 1e-3)
