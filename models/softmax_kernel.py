"""The softmax of CUDA: chunks of logits by matrix products, and one Triton kernel that turns a chunk into losses and gradients.

The twin of `models.softmax` for CUDA. Of each chunk of rows the logits are one product (bf16 factors, fp32 sums and results: a logit
in bf16 would be off by some per cent after its exponential). The kernel reads a row once, or twice where it is longer than a tile, and
writes what the row's loss has for gradient, share and label included; two products carry it to both sides. Nothing is added up in
changing order, and nothing waits for the host. After the chunks of Liger's kernel (Hsu et al. 2024, arXiv 2410.10989). Logits that
never reach memory (Wijmans et al. 2024, arXiv 2411.09009) would have to be computed a second time: a gain at narrow widths only, which
needs a device to be seen.

``torch.nn.functional.linear_cross_entropy`` (torch 2.13, so not in all that is supported) makes chunks too, but by six passes over
them, adds labels by atomics in changing order, and weighs classes, not examples. Imported only where a kernel is launched: triton is
no dependency of a machine without CUDA.

Additional shape suffixes:
    V  columns of the softmax: all items, or the negatives        D  width        R  rows of a chunk
"""

# mypy: allow-untyped-defs
# ruff: noqa: ANN001, ANN202 (triton reads the annotations of a kernel itself)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.softmax import product

MOST_LOGITS = 2**28  # held at a time: 1 GiB in fp32, and half of it in bf16; 256 rows of a million items
MOST_ROWS = 2**14  # fills any device
_WHOLE_ROWS = 128  # chunks are a multiple of it, as the tiles of products are
_ALIGNED = 16  # a row of a chunk begins at a multiple of it, so that vectors of four numbers are read whatever V is
_WHOLE = 8192  # columns that a program holds at once
_BLOCK = 4096  # columns a tile of longer rows


@dataclass(frozen=True)
class Negatives:
    """What makes a softmax over shared negatives out of one over a catalogue.

    Attributes:
        own_N: float32 logit of each row's target, which is no column. Gradients flow into it.
        item_V: int64, item of each column; where it is a row's target, the column does not count for the row.
        log_q_V: float32, subtracted from all logits of the column.
    """

    own_N: Tensor
    item_V: Tensor
    log_q_V: Tensor


def rows_on_device(columns: int) -> int:
    """Returns how many rows' logits over so many columns are held at a time: at most `MOST_LOGITS` numbers, one row at least."""
    rows = min(MOST_ROWS, MOST_LOGITS // max(columns, 1))
    return max(1, rows // _WHOLE_ROWS * _WHOLE_ROWS or rows)


def fused_softmax(
    hidden_ND: Tensor,
    column_VD: Tensor,
    target_N: Tensor,
    share_N: Tensor,
    factors: torch.dtype,
    negatives: Negatives | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sums the cross-entropies of all rows. Both gradients are computed in the forward pass.

    Beside inputs and gradients it holds 6 bytes a logit of a chunk where `factors` is bf16, 4 where it is fp32, and a rounded copy of
    both sides.

    Args:
        hidden_ND: float32 states.
        column_VD: float32 vectors of the columns.
        target_N: int64: the column that is each row's label; with `negatives` its item.
        share_N: float32, part of each row in the sum.
        factors: Type of the factors of products: bf16, or fp32. Logits, exponentials and sums are fp32.
        negatives: Makes the columns negatives.
        chunk_rows: Rows a chunk; None takes `rows_on_device`.

    Returns:
        float32 scalar; not finite where a logit is not, whatever the row's share.
    """
    rows = rows_on_device(len(column_VD)) if chunk_rows is None else chunk_rows
    extra = (None, None, None) if negatives is None else (negatives.own_N, negatives.item_V, negatives.log_q_V)
    own_N, item_V, log_q_V = (None if part is None else part.contiguous() for part in extra)
    loss: Tensor = _Fused.apply(hidden_ND, column_VD, own_N, target_N.contiguous(), share_N.contiguous(), item_V, log_q_V, rows, factors)
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        column_VD: Tensor,
        own_N: Tensor | None,
        target_N: Tensor,
        share_N: Tensor,
        item_V: Tensor | None,
        log_q_V: Tensor | None,
        chunk_rows: int,
        factors: torch.dtype,
    ) -> Tensor:
        needs_hidden, needs_column = ctx.needs_input_grad[:2]
        (rows, _), columns = hidden_ND.shape, len(column_VD)
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_column = torch.zeros_like(column_VD) if needs_column else None
        grad_own = None if own_N is None else torch.empty_like(own_N)
        loss_N = torch.empty_like(share_N)
        factor_ND, factor_VD = hidden_ND.to(factors), column_VD.to(factors)
        logits = hidden_ND.new_empty(min(chunk_rows, rows), -(-columns // _ALIGNED) * _ALIGNED)
        weights = logits if factors == logits.dtype else torch.empty_like(logits, dtype=factors)
        for first in range(0, rows, chunk_rows):
            chunk = slice(first, first + chunk_rows)
            count = len(target_N[chunk])
            logit_RV, weight_RV = logits[:count, :columns], weights[:count, :columns]
            product(factor_ND[chunk], factor_VD.T, logit_RV)
            own_R, grad_own_R = (None if part is None else part[chunk] for part in (own_N, grad_own))
            _weigh[(count,)](
                logits, weights, loss_N[chunk], target_N[chunk], share_N[chunk], own_R, grad_own_R, item_V, log_q_V, columns,
                logits.shape[1], **_constants(columns, sampled=own_N is not None),
            )  # fmt: skip
            if grad_hidden is not None:
                product(weight_RV, factor_VD, grad_hidden[chunk])
            if grad_column is not None:
                product(weight_RV.T, factor_ND[chunk], grad_column, add=True)
        ctx.save_for_backward(grad_hidden, grad_column, grad_own)
        return loss_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if part is None else part * grad for part in ctx.saved_tensors), *(None,) * 6)


def _constants(columns: int, *, sampled: bool) -> dict[str, Any]:
    """How a kernel is compiled for rows of so many columns. Sixteen numbers a thread leave room for two programs a processor."""
    whole = columns <= _WHOLE
    block = max(_ALIGNED, 1 << (columns - 1).bit_length()) if whole else _BLOCK
    return {"SAMPLED": sampled, "WHOLE": whole, "BLOCK": block, "num_warps": min(16, max(1, block // 512))}


@triton.jit
def _tile(logits, column, columns, stride, target, item_ptr, log_q_ptr, SAMPLED: tl.constexpr):
    """Logits of a row; what is no column of its softmax has -inf."""
    x = tl.load(logits + column, mask=column < stride, other=0.0)  # what lies behind the columns is no number of anybody's
    counts = column < columns
    if SAMPLED:
        x -= tl.load(log_q_ptr + column, mask=counts, other=0.0)
        counts = counts & (tl.load(item_ptr + column, mask=counts, other=0) != target)
    return tl.where(counts, x, -float("inf"))


@triton.jit
def _finite(most):
    """What exponents are lowered by: without any logit above -inf there is nothing to lower, and -inf less -inf is no number."""
    return tl.where(most == -float("inf"), 0.0, most)


@triton.jit
def _gradient(x, base, scale, share, column, target, SAMPLED: tl.constexpr):
    """What a row's part of the loss has for gradient at its logits."""
    weight = tl.exp(x - base) * scale
    if SAMPLED:
        return weight
    return tl.where(column == target, weight - share, weight)


@triton.jit
def _weigh(
    logit_ptr, weight_ptr, loss_ptr, target_ptr, share_ptr, own_ptr, grad_own_ptr, item_ptr, log_q_ptr, columns, stride,
    SAMPLED: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns a row: its loss, and the gradients at its logits, which may overwrite them."""
    row = tl.program_id(0).to(tl.int64)
    logits, weights = logit_ptr + row * stride, weight_ptr + row * stride
    target, share = tl.load(target_ptr + row), tl.load(share_ptr + row)
    column = tl.arange(0, BLOCK)
    if SAMPLED:
        chosen = tl.load(own_ptr + row)
        most, total = chosen, tl.full((), 1.0, tl.float32)
    else:
        chosen = tl.load(logits + target)
        most, total = tl.full((), -float("inf"), tl.float32), tl.full((), 0.0, tl.float32)
    if WHOLE:
        x = _tile(logits, column, columns, stride, target, item_ptr, log_q_ptr, SAMPLED)
        before = most
        most = tl.maximum(most, tl.max(x))
        base = _finite(most)
        total = total * tl.exp(before - base) + tl.sum(tl.exp(x - base))
        weight = _gradient(x, base, share / total, share, column, target, SAMPLED)
        tl.store(weights + column, weight.to(weight_ptr.dtype.element_ty), mask=column < stride)
    else:
        for start in range(0, columns, BLOCK):
            x = _tile(logits, start + column, columns, stride, target, item_ptr, log_q_ptr, SAMPLED)
            before = most
            most = tl.maximum(most, tl.max(x))
            base = _finite(most)
            total = total * tl.exp(before - base) + tl.sum(tl.exp(x - base))
        base = _finite(most)
        for start in range(0, columns, BLOCK):
            x = _tile(logits, start + column, columns, stride, target, item_ptr, log_q_ptr, SAMPLED)
            weight = _gradient(x, base, share / total, share, start + column, target, SAMPLED)
            tl.store(weights + start + column, weight.to(weight_ptr.dtype.element_ty), mask=start + column < stride)
    tl.store(loss_ptr + row, (tl.log(total) + base - chosen) * share)
    if SAMPLED:
        tl.store(grad_own_ptr + row, (tl.exp(chosen - base) / total - 1.0) * share)
