"""The next item by full or sampled softmax.

Additional shape suffixes:
    V  items of the softmax        M  shared negatives        D  width        R  rows of a chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.arrange import has_triton
from models.streams import in_streams

MOST_LOGITS = 2**26  # held at a time: 256 MiB in fp32, 64 rows of a million items
MOST_ROWS = 256  # more rows a product make it no faster
_LEAST_ROWS = 64  # fewer make it slower
_STREAM_ITEMS = 2**16  # more of them fill all threads with each product, and a gradient a stream would be memory
_SMALL = 50.0  # logits up to here need no shift: exp(50) times a million items, and its inverse, are far from fp32's ends


def full_softmax(
    hidden_ND: Tensor, item_VD: Tensor, target_N: Tensor, weight_N: Tensor | None = None, chunk_rows: int | None = None
) -> Tensor:
    """Mean cross-entropy of the next item over the whole catalogue, without ever holding N x V numbers.

    Both gradients are computed in the forward pass, some rows at a time in one reused buffer: fresh logits cost more in page
    faults than in arithmetic (measured: 1190 ms flat, 499 ms in chunks of 256, equal gradients). What is left beside the three
    products is one pass for the exponentials: a row of ones beside the items adds them up, the share of a row is multiplied into the
    narrow factors, its label is subtracted from the results, and where the norms of both factors bound the logits nothing is shifted. On
    the CPU chunks run in one stream a thread; on CUDA a kernel takes the place of all passes (`models.softmax_kernel`). Under autocast
    to bf16 on CUDA the three products take bf16 factors and sum in fp32; logits, their exponentials and the loss are fp32 everywhere.

    Args:
        hidden_ND: States that predict.
        item_VD: Vectors of the candidates. Leave out the reserved rows: nobody can be served padding.
        target_N: int64 row of `item_VD`; a negative target takes no part.
        weight_N: Example weights; None weighs alike.
        chunk_rows: Rows a chunk; None takes `rows_a_chunk`, or what suits the kernel.

    Returns:
        Scalar; 0 if no row takes part.
    """
    dtype = torch.promote_types(torch.promote_types(hidden_ND.dtype, item_VD.dtype), torch.float32)
    weight_N = torch.ones_like(target_N, dtype=dtype) if weight_N is None else weight_N.to(dtype)
    weight_N = weight_N * (target_N >= 0)
    share_N = weight_N / weight_N.sum().clamp(min=torch.finfo(dtype).tiny)
    device, factors = hidden_ND.device, _factors(hidden_ND.device.type, dtype)
    sides = hidden_ND.to(dtype), item_VD.to(dtype), target_N.clamp(min=0), share_N
    with torch.autocast(device.type, enabled=False):
        if _is_fused(device, dtype):
            from models.softmax_kernel import fused_softmax

            return fused_softmax(*sides, factors, None, chunk_rows)
        loss: Tensor = _FullSoftmax.apply(*sides, rows_a_chunk(len(item_VD)) if chunk_rows is None else chunk_rows, factors)
    return loss


def _factors(device: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the type that products take their factors in: bf16 under autocast to it on CUDA, which alone sums them in fp32."""
    halved = device == "cuda" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if halved else dtype


def _is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Tells whether chunks of logits go through `models.softmax_kernel`."""
    return device.type == "cuda" and dtype == torch.float32 and has_triton()


def rows_a_chunk(items: int) -> int:
    """Returns how many rows' logits over a catalogue of `items` are held at a time: at most `MOST_LOGITS` numbers, one row at least."""
    return max(1, min(MOST_ROWS, MOST_LOGITS // max(items, 1)))


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, item_VD: Tensor, target_N: Tensor, share_N: Tensor, chunk_rows: int, factors: torch.dtype
    ) -> Tensor:
        needs_hidden, needs_item = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        count, chunk_rows = _streams(hidden_ND, len(item_VD), chunk_rows)
        item_JV, small = _columns(item_VD, factors), _are_small(hidden_ND, item_VD)
        sides = _Sides(hidden_ND, item_VD, item_JV, target_N, share_N, grad_hidden, needs_item, chunk_rows, factors, small)
        losses, grads = zip(*in_streams(lambda number: _stream(sides, number, count), count), strict=True)
        grad_item = None
        if needs_item:
            grad_item, *others = grads
            for other in others:
                grad_item += other
        ctx.save_for_backward(grad_hidden, grad_item)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_item = ctx.saved_tensors
        if grad.device.type != "cpu" or float(grad) != 1.0:  # where the loss itself is differentiated, there is nothing to multiply
            grad_hidden, grad_item = (None if part is None else part * grad for part in (grad_hidden, grad_item))
        return grad_hidden, grad_item, None, None, None, None


@dataclass(frozen=True)
class _Sides:
    """What all streams read, and the gradient of which each writes its own rows.

    Attributes:
        item_JV: The items as columns (`_columns`).
        share_N: Part of each row in the mean.
        factors: Type in which products take their factors.
        small: Whether no logit can overflow as it is.
    """

    hidden_ND: Tensor
    item_VD: Tensor
    item_JV: Tensor
    target_N: Tensor
    share_N: Tensor
    grad_hidden_ND: Tensor | None
    needs_item: bool
    chunk_rows: int
    factors: torch.dtype
    small: bool


def _columns(item_VD: Tensor, factors: torch.dtype) -> Tensor:
    """Returns the items as columns, [D, V], which is how they multiply weights [V, R] fastest.

    On the CPU a row of ones stands below them, [D + 1, V]: the same product then adds up the weights as well, and nothing else has to
    read them. It is left out where factors are rounded (sums are not), where the copy would be large, and on an accelerator, which
    an odd row slows down.
    """
    if factors != item_VD.dtype or item_VD.device.type != "cpu" or len(item_VD) > _STREAM_ITEMS:
        return item_VD.T.to(factors)
    item_JV = item_VD.new_ones(item_VD.shape[1] + 1, len(item_VD))
    item_JV[:-1].copy_(item_VD.T)  # torch transposes by tiles here, but not in `cat`
    return item_JV


def _are_small(hidden_ND: Tensor, item_VD: Tensor) -> bool:
    """Tells whether no logit can overflow; on an accelerator the answer would have to be waited for, so there it is no."""
    if hidden_ND.device.type != "cpu" or 0 in (len(hidden_ND), len(item_VD)):
        return False
    longest, other = (torch.linalg.vector_norm(side, dim=1).max() for side in (hidden_ND, item_VD))
    return float(longest * other) <= _SMALL


def _streams(hidden_ND: Tensor, items: int, chunk_rows: int) -> tuple[int, int]:
    """Returns how many streams there are, and rows a chunk: where there are several, each gets two chunks at least, and all hold
    `MOST_LOGITS` together.
    """
    rows, threads = len(hidden_ND), torch.get_num_threads()
    if hidden_ND.device.type != "cpu" or items > _STREAM_ITEMS or rows < 2 * _LEAST_ROWS:
        return 1, chunk_rows
    in_budget = MOST_LOGITS // max(items, 1)  # rows of all streams together
    chunk_rows = min(chunk_rows, max(_LEAST_ROWS, min(-(-rows // (2 * threads)), in_budget // threads)))
    return max(1, min(threads, -(-rows // chunk_rows), in_budget // chunk_rows)), chunk_rows


@torch.no_grad()
def _stream(sides: _Sides, number: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Works on chunk `number` and every `count`-th after it; returns their part of the loss and of the items' gradient.

    Which chunks these are depends on nothing but the numbers, so equal inputs add up to equal bits.
    """
    item_VD, grad_hidden, rows, width = sides.item_VD, sides.grad_hidden_ND, sides.chunk_rows, sides.item_VD.shape[1]
    buffer = item_VD.new_empty(min(rows, len(sides.hidden_ND)) * len(item_VD))
    grad_item = torch.zeros_like(item_VD) if sides.needs_item else None
    buffer_JR = item_VD.new_empty(len(sides.item_JV), min(rows, len(sides.hidden_ND)))
    loss = item_VD.new_zeros(())
    factor_VD = item_VD.to(sides.factors)
    for first in range(number * rows, len(sides.hidden_ND), count * rows):
        chunk = slice(first, first + rows)
        hidden_RD, target_R, share_R = sides.hidden_ND[chunk], sides.target_N[chunk], sides.share_N[chunk]
        logit_VR = buffer[: len(item_VD) * len(target_R)].view(len(item_VD), len(target_R))
        product(factor_VD, hidden_RD.to(sides.factors).T, logit_VR)
        if not sides.small:
            logit_VR -= logit_VR.amax(0)
        chosen_R = logit_VR.gather(0, target_R[None])[0]
        weight_VR = logit_VR.exp_().to(sides.factors)
        sum_JR = None if grad_hidden is None else product(sides.item_JV, weight_VR, buffer_JR[:, : len(target_R)])
        total_R = logit_VR.sum(0) if sum_JR is None or len(sum_JR) == width else sum_JR[width]
        loss += ((total_R.log() - chosen_R) * share_R).sum()
        scale_R1 = (share_R / total_R)[:, None]
        if grad_hidden is not None and sum_JR is not None:
            grad_RD = torch.mul(sum_JR[:width].T, scale_R1, out=grad_hidden[chunk])
            grad_RD.sub_(item_VD.index_select(0, target_R).mul_(share_R[:, None]))
        if grad_item is not None:
            product(weight_VR, (hidden_RD * scale_R1).to(sides.factors), grad_item, add=True)
            grad_item.index_add_(0, target_R, hidden_RD * share_R[:, None], alpha=-1)
    return loss, grad_item


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Writes (or adds) a b to `out`; factors of a smaller type than `out` are multiplied as they are and summed in `out`'s."""
    if a.dtype != out.dtype and a.device.type != "cuda":  # other devices know no product whose sums are wider than its factors
        a, b = a.to(out.dtype), b.to(out.dtype)
    if a.dtype == out.dtype:
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    return torch.addmm(out, a, b, out_dtype=out.dtype, out=out) if add else torch.mm(a, b, out_dtype=out.dtype, out=out)


def sampled_softmax(
    hidden_ND: Tensor,
    positive_ND: Tensor,
    negative_MD: Tensor,
    target_N: Tensor,
    negative_M: Tensor,
    log_q_positive_N: Tensor,
    log_q_negative_M: Tensor,
    weight_N: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the next item against negatives shared by all rows, corrected for how often they are drawn.

    Each logit is lowered by log q, so that in expectation the popular items that a sampler offers more often are not pushed
    down for it (Bengio & Senecal 2008; Yi et al. 2019; `models.negatives` draws and estimates). A negative that is a row's own target
    is no negative: it is masked.

    Args:
        hidden_ND: States that predict.
        positive_ND: Vectors of the targets.
        negative_MD: Vectors of the negatives.
        target_N: int64 item rows of the targets.
        negative_M: int64 item rows of the negatives.
        log_q_positive_N: Log probability with which the sampler draws each target.
        log_q_negative_M: The same for the negatives; a constant added to both changes nothing.
        weight_N: Example weights; None weighs alike.

    Returns:
        Scalar; 0 if the weights add up to nothing.
    """
    dtype, device = torch.promote_types(hidden_ND.dtype, torch.float32), hidden_ND.device
    factors = _factors(device.type, dtype)
    with torch.autocast(device.type, enabled=False):
        hidden_ND = hidden_ND.to(dtype)
        positive_N1 = ((hidden_ND * positive_ND.to(dtype)).sum(-1) - log_q_positive_N.to(dtype))[:, None]
        if _is_fused(device, dtype):
            from models.softmax_kernel import Negatives, fused_softmax

            weight_N = torch.ones_like(positive_N1[:, 0]) if weight_N is None else weight_N.to(dtype)
            share_N = (weight_N / weight_N.sum().clamp(min=torch.finfo(dtype).tiny)).detach()
            negatives = Negatives(positive_N1[:, 0], negative_M, log_q_negative_M.to(dtype))
            return fused_softmax(hidden_ND, negative_MD.to(dtype), target_N, share_N, factors, negatives)
        negative_NM = hidden_ND @ negative_MD.to(dtype).T - log_q_negative_M.to(dtype)
        negative_NM = negative_NM.masked_fill(target_N[:, None] == negative_M[None, :], -torch.inf)
        loss_N = torch.logsumexp(torch.cat([positive_N1, negative_NM], 1), 1) - positive_N1[:, 0]
    weight_N = torch.ones_like(loss_N) if weight_N is None else weight_N.to(dtype)
    return (loss_N * weight_N).sum() / weight_N.sum().clamp(min=torch.finfo(dtype).tiny)
