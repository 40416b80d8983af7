"""Which arrangement is chosen, that none waits for the device, and torch's variable-length kernel against the dense twin."""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models import arrange
from models.arrange import RunLayout, VarlenLayout, arrange_causal, arrange_pairs, varlen_layout
from models.attention import CausalLayout, PairLayout, dense_causal_attention
from models.hstu import seen
from models.packing import pack

ODD = [([0], [[]]), ([1], [[1, 1]]), ([0, 0, 5], [[0], [], [2, 5]]), ([15, 16, 17, 64, 65, 200], [[15], [], [3] * 20, [0], [65], [0]])]


def by_loop(q, k, v, begin_q, begin_k, longest_q, longest_k, *, scale, window_size):
    """What `varlen_attn` promises: softmax attention inside each run, up to the own row where the window ends there."""
    assert begin_q.dtype == torch.int32 and longest_q == longest_k == int(begin_q.diff().max()) and window_size == (-1, 0)
    assert torch.equal(begin_q, begin_k) and int(begin_q[-1]) == len(q) and q.shape[-1] % 8 == 0
    outputs = []
    for first, last in zip(begin_q[:-1].tolist(), begin_q[1:].tolist(), strict=True):
        heads = (x[first:last].transpose(0, 1) for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*heads, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize(("lengths", "targets"), ODD)
@pytest.mark.parametrize("width", [8, 6])
def test_the_varlen_arrangement_equals_the_dense_twin(kit, monkeypatch, lengths, targets, width):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_loop)
    packing = pack(kit.batch(kit.bare(), lengths, targets))
    q, k, v = (torch.randn(sum(lengths) + len(lengths), 2, width, requires_grad=True) for _ in range(3))
    fast, dense = varlen_layout(packing, torch.float32).attend(q, k, v), dense_causal_attention(q, k, v, packing)
    torch.testing.assert_close(fast, dense, rtol=1e-5, atol=1e-5)
    for mine, twin in zip(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (fast, dense)), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-4, atol=1e-5)


def test_what_is_exact_decides_what_is_chosen(kit, monkeypatch):
    pytest.importorskip("triton", reason="without triton the kernel is never chosen")
    batch = kit.batch(kit.bare("hstu"), [3, 5], [[1], [2]])
    packing = pack(batch)
    known = seen(batch, packing)
    assert isinstance(arrange_causal(packing), CausalLayout) and isinstance(arrange_pairs(packing, known), PairLayout)
    monkeypatch.setattr(arrange, "half_precision", lambda device: torch.bfloat16)
    assert isinstance(arrange_causal(packing), VarlenLayout) and isinstance(arrange_pairs(packing, known), RunLayout)
    assert isinstance(arrange_causal(packing, 0), CausalLayout), "padding that tokens see is a bias, which the kernel does not know"
    torch.use_deterministic_algorithms(True)
    try:
        assert isinstance(arrange_pairs(packing, known), PairLayout), "the kernel sums in no fixed order"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(arrange, "has_triton", lambda: False)
    assert isinstance(arrange_pairs(packing, known), PairLayout)


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_no_forward_pass_asks_the_device(kit, architecture, monkeypatch):
    """Tensors of the device `meta` have no values: whoever wants to know one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know the device
    shape = kit.shape(architecture)
    ranker, batch = kit.model(shape).train(), kit.batch(shape, [0, 7, 33], [[0], [3, 7], [30]])
    scores = ranker.to("meta")(batch.to("meta"))
    assert scores.output_NO.shape == (4, len(shape.outputs)) and scores.output_NO.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        ranker(dataclasses.replace(batch.to("meta"), lengths=None))


def test_cuda_arrangements_ask_nothing_either(kit):
    batch = kit.batch(kit.bare("hstu"), [0, 7, 33], [[0], [3, 7], [30]]).to("meta")
    packing = pack(batch)
    assert varlen_layout(packing, torch.bfloat16).longest == 34
    pytest.importorskip("triton", reason="the kernel's module needs it")
    layout = arrange.run_layout(packing, seen(batch, packing))
    assert len(layout.runs.queries.run_B) == 1 + 2 * 3


def test_lengths_leave_the_cpu_with_the_batch(kit):
    batch = kit.batch(kit.bare(), [0, 7, 33], [[0, 0], [], [30]])
    assert batch.lengths is None and batch.to("cpu").lengths is None
    lengths = batch.to("meta").lengths
    assert lengths.tokens_S.tolist() == [0, 7, 33] and lengths.targets_S.tolist() == [2, 0, 1]
    assert batch.to("meta").to("meta").lengths is not None
    rows, targets = pack(batch.to("meta")).here
    assert rows.tolist() == [1, 8, 34] and targets.tolist() == [2, 0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("lengths", "targets"), ODD)
@pytest.mark.parametrize("width", [32, 20])
def test_varlen_attention_in_bf16_equals_the_dense_twin(kit, lengths, targets, width):
    batch = kit.batch(kit.bare(), lengths, targets)
    q, k, v = (torch.randn(sum(lengths) + len(lengths), 2, width).bfloat16() for _ in range(3))
    q = q * width**-0.5
    there, here = (
        [x.to(device).to(dtype).requires_grad_() for x in (q, k, v)] for device, dtype in (("cuda", q.dtype), ("cpu", torch.float))
    )
    fast = varlen_layout(pack(batch.to("cuda")), torch.bfloat16).attend(*there)
    dense = dense_causal_attention(*here, pack(batch))
    assert (fast.float().cpu() - dense).abs().max() <= 0.02 * dense.abs().max()
    theirs = torch.autograd.grad(dense.square().sum(), here)
    for mine, twin in zip(torch.autograd.grad(fast.float().square().sum(), there), theirs, strict=True):
        assert (mine.float().cpu() - twin).abs().max() <= 0.03 * twin.abs().max().clamp(min=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_a_step_in_bf16_never_waits_for_the_device(kit, architecture):
    from models.losses import ranker_loss

    shape = kit.shape(architecture, head_dim=16)
    ranker, batch = kit.model(shape).train().cuda(), kit.batch(shape, [0, 7, 33], [[0], [3, 7], [30]]).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        ranker_loss(ranker(batch), batch, shape).total.backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            ranker_loss(ranker(batch), batch, shape).total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
