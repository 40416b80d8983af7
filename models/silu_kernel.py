"""A Triton kernel of packed pointwise (SiLU) attention, forward and backward: no padding, no score ever reaches memory.

The twin of `models.attention.pointwise_attention` without the targets' own term. Queries are the rows of each sequence and, as runs
of their own, its targets; keys are the rows. A program owns one block of a run and one head. Which block lies where follows from the
lengths alone, on the device (`blocks_of`), so nothing waits for the host. Bias rows are computed from positions and times where they
are needed. Imported only where a kernel is launched: triton is no dependency of a machine without CUDA.

Additional shape suffixes:
    R  rows of all sequences        Q  asking rows: rows, then targets        H  heads        E  width of a head
    P  bias rows                    G  runs of queries: S of rows, S of targets, and an empty one        B  blocks
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

from models.packing import EXACT_POSITIONS, GAP_BUCKETS, LONGEST_GAP, POSITION_BUCKETS

_BLOCK = 64  # queries or keys a program owns
_COPIES = 32  # of the bias gradient: programs add to different ones, so that they seldom wait for each other
_BUCKETS = {"GAPS": GAP_BUCKETS, "LONGEST": LONGEST_GAP, "PLACES": POSITION_BUCKETS, "EXACT": EXACT_POSITIONS}


@dataclass(frozen=True)
class Blocks:
    """Blocks of runs, as many as the shapes allow for; those that no run needs belong to the empty last run.

    Attributes:
        run_B: int32, run of each block.
        offset_B: int32, place of its first row within the run.
    """

    run_B: Tensor
    offset_B: Tensor


@dataclass(frozen=True)
class Runs:
    """Where queries and keys of each run lie. All tensors are on the device, int32 but for the times.

    Attributes:
        query_G: First query.
        count_G: Queries.
        key_G: First key.
        keys_G: Keys.
        position_Q: Position of each asking row.
        time_Q: int64 (ms), -1 without a clock.
        visible_Q: Keys, from the first on, that each asking row may read.
        queries: Blocks of the G runs.
        keys: Blocks of the first S runs' keys.
    """

    query_G: Tensor
    count_G: Tensor
    key_G: Tensor
    keys_G: Tensor
    position_Q: Tensor
    time_Q: Tensor
    visible_Q: Tensor
    queries: Blocks
    keys: Blocks

    def pointers(self) -> tuple[Tensor, ...]:
        """Returns what every kernel reads, in the order of its arguments."""
        return self.query_G, self.count_G, self.key_G, self.keys_G, self.position_Q, self.time_Q, self.visible_Q


def blocks_of(count_G: Tensor, rows: int, block: int = _BLOCK) -> Blocks:
    """Cuts runs into blocks without asking the device how many there are.

    Args:
        count_G: Rows of each run.
        rows: Rows of all runs.
        block: Rows a block.

    Returns:
        ``ceil(rows / block) + G`` blocks: never fewer than the runs need.
    """
    end_G = ((count_G + block - 1) // block).cumsum(0)
    place_B = torch.arange((rows + block - 1) // block + len(count_G), device=count_G.device)
    run_B = torch.searchsorted(end_G, place_B, right=True)
    begin_G1 = torch.cat([end_G.new_zeros(1), end_G])
    offset_B = (place_B - begin_G1[run_B]) * block
    return Blocks(run_B.int(), offset_B.int())


def runs_of(start_S: Tensor, length_S: Tensor, targets_S: Tensor, position_Q: Tensor, time_Q: Tensor, visible_Q: Tensor, rows: int) -> Runs:
    """Describes the runs of a batch.

    Args:
        start_S: int64, first row of each sequence.
        length_S: int64, its rows.
        targets_S: int64, its targets; targets of all sequences lie behind all rows, in the order of the sequences.
        position_Q: Position of each asking row.
        time_Q: int64 (ms), -1 without a clock.
        visible_Q: Rows of the own sequence that each asking row may read.
        rows: R.
    """
    none = start_S.new_zeros(1)
    count_G = torch.cat([length_S, targets_S, none])
    first_target_S = rows + targets_S.cumsum(0) - targets_S
    return Runs(
        query_G=torch.cat([start_S, first_target_S, none]).int(),
        count_G=count_G.int(),
        key_G=torch.cat([start_S, start_S, none]).int(),
        keys_G=torch.cat([length_S, length_S, none]).int(),
        position_Q=position_Q.int().contiguous(),
        time_Q=time_Q.contiguous(),
        visible_Q=visible_Q.int().contiguous(),
        queries=blocks_of(count_G[:-1], len(position_Q)),
        keys=_key_blocks(length_S, rows),
    )


def _key_blocks(length_S: Tensor, rows: int) -> Blocks:
    blocks = blocks_of(length_S, rows)
    sequences = len(length_S)
    empty = torch.full_like(blocks.run_B, 2 * sequences)
    return Blocks(torch.where(blocks.run_B == sequences, empty, blocks.run_B), blocks.offset_B)


def silu_attention(q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor, runs: Runs) -> Tensor:
    """Sums ``silu(q k + bias) v`` over the rows that each asking row may read.

    Args:
        q_QHE: Queries, already multiplied by the scale.
        k_QHE: Keys; only those of rows are read.
        v_QHE: Values, likewise.
        bias_PH: Bias of each (position bucket, gap bucket) pair.
        runs: Where everything lies.

    Returns:
        [Q, H, E] in the type of the values; sums are fp32. The gradient of the bias is summed in no fixed order.
    """
    dtype = v_QHE.dtype
    return _SiluAttention.apply(q_QHE.to(dtype), k_QHE.to(dtype), v_QHE, bias_PH.float(), runs)


class _SiluAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor, runs: Runs) -> Tensor:
        q_QHE, k_QHE, v_QHE, bias_PH = (x.contiguous() for x in (q_QHE, k_QHE, v_QHE, bias_PH))
        out_QHE = torch.zeros_like(v_QHE)
        heads, width = q_QHE.shape[1:]
        _forward[(len(runs.queries.run_B), heads)](
            q_QHE, k_QHE, v_QHE, bias_PH, out_QHE, runs.queries.run_B, runs.queries.offset_B, *runs.pointers(),
            **_constants(runs, heads, width),
        )  # fmt: skip
        ctx.save_for_backward(q_QHE, k_QHE, v_QHE, bias_PH)
        ctx.runs = runs
        return out_QHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QHE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q_QHE, k_QHE, v_QHE, bias_PH = ctx.saved_tensors
        runs, grad_QHE = ctx.runs, grad_QHE.contiguous()
        heads, width = q_QHE.shape[1:]
        inputs, constants = (q_QHE, k_QHE, v_QHE, bias_PH, grad_QHE), _constants(runs, heads, width)
        dq_QHE, dk_QHE, dv_QHE = (torch.zeros_like(x) for x in (q_QHE, k_QHE, v_QHE))
        dbias_CPH = bias_PH.new_zeros(_COPIES, *bias_PH.shape)
        _backward_queries[(len(runs.queries.run_B), heads)](
            *inputs, dq_QHE, dbias_CPH, runs.queries.run_B, runs.queries.offset_B, *runs.pointers(), P=len(bias_PH), COPIES=_COPIES,
            **constants,
        )  # fmt: skip
        _backward_keys[(len(runs.keys.run_B), heads)](
            *inputs, dk_QHE, dv_QHE, runs.keys.run_B, runs.keys.offset_B, *runs.pointers(), **constants
        )  # fmt: skip
        return dq_QHE, dk_QHE, dv_QHE, dbias_CPH.sum(0), None


def _constants(runs: Runs, heads: int, width: int) -> dict[str, int]:
    padded = max(16, 1 << (width - 1).bit_length())  # a product of tiles needs a power of two, 16 at least
    sequences = (len(runs.count_G) - 1) // 2
    return {"S": sequences, "H": heads, "E": width, "WIDTH": padded, "BLOCK": _BLOCK, **_BUCKETS}


# The number of sequences differs from batch to batch: as a constant, or specialised by its value, it would compile a kernel for each.
_compiled_once = triton.jit(do_not_specialize=["S"])


@triton.jit
def _bias_rows(
    q_position, q_time, k_position, k_time, GAPS: tl.constexpr, LONGEST: tl.constexpr, PLACES: tl.constexpr, EXACT: tl.constexpr
):
    """`models.packing.position_bucket` and `gap_bucket` of every pair, as one row of the table."""
    distance = tl.maximum(q_position[:, None] - k_position[None, :], 0)
    bits = (distance.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126  # exact: no sequence is 2^24 rows long
    upper = (distance >= (3 << tl.maximum(bits - 2, 0))).to(tl.int32)
    place = tl.where(distance < EXACT, distance, tl.minimum(EXACT + 2 * (bits - 5) + upper, PLACES - 1))
    passed = tl.minimum(tl.maximum(q_time[:, None] - k_time[None, :], 0), 1000 << LONGEST)
    # Rounded seconds never fall below a power of two that the milliseconds reach, but may reach one that those do not.
    doublings = tl.maximum(((passed.to(tl.float32) * 0.001).to(tl.int32, bitcast=True) >> 23) - 126, 0)
    thousand = tl.full(passed.shape, 1000, tl.int64)
    too_many = (doublings > 0) & ((thousand << tl.maximum(doublings - 1, 0).to(tl.int64)) > passed)
    gap = tl.minimum(doublings - too_many.to(tl.int32), LONGEST) + 1
    clockless = (q_time[:, None] == -1) | (k_time[None, :] == -1)
    return place * GAPS + tl.where(clockless, 0, gap)


@triton.jit
def _places(row, exists, head, H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr):
    """Where the values of some rows lie in one head, and which of these places exist."""
    column = tl.arange(0, WIDTH)
    return (row.to(tl.int64)[:, None] * H + head) * E + column[None, :], exists[:, None] & (column < E)[None, :]


@triton.jit
def _asking(query, asks, position, time, visible):
    """Positions, times and limits of the rows that ask."""
    q_position, q_time = tl.load(position + query, mask=asks, other=0), tl.load(time + query, mask=asks, other=-1)
    return q_position, q_time, tl.load(visible + query, mask=asks, other=0)


@triton.jit
def _keys(
    k_ptr, v_ptr, time, first, start, keys, head, H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A tile of the rows that are read: positions, times, keys and values."""
    k_position = start + tl.arange(0, BLOCK)
    exists = k_position < keys
    there, within = _places(first + k_position, exists, head, H, E, WIDTH)
    k, v = tl.load(k_ptr + there, mask=within, other=0.0), tl.load(v_ptr + there, mask=within, other=0.0)
    return k_position, tl.load(time + first + k_position, mask=exists, other=-1), k, v


@triton.jit
def _scores(q, k, bias, rows, seen, head, H: tl.constexpr):
    """Scores of a tile and their logistic function."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") + tl.load(bias + rows * H + head, mask=seen, other=0.0)
    return score, 1.0 / (1.0 + tl.exp(-score))


@_compiled_once
def _forward(
    q_ptr, k_ptr, v_ptr, bias, out_ptr, block_run, block_offset, query_ptr, count_ptr, key_ptr, keys_ptr, position, time, visible, S,
    H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    GAPS: tl.constexpr, LONGEST: tl.constexpr, PLACES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    run, head = tl.load(block_run + tl.program_id(0)), tl.program_id(1)
    place = tl.load(block_offset + tl.program_id(0)) + tl.arange(0, BLOCK)
    asks = place < tl.load(count_ptr + run)
    query = tl.load(query_ptr + run) + place
    here, inside = _places(query, asks, head, H, E, WIDTH)
    q = tl.load(q_ptr + here, mask=inside, other=0.0)
    q_position, q_time, limit = _asking(query, asks, position, time, visible)
    first, keys = tl.load(key_ptr + run), tl.load(keys_ptr + run)
    last = tl.where(run < S, tl.minimum(tl.load(block_offset + tl.program_id(0)) + BLOCK, keys), keys)  # rows read no later row
    total = tl.full((BLOCK, WIDTH), 0.0, tl.float32)
    for start in range(0, last, BLOCK):
        k_position, k_time, k, v = _keys(k_ptr, v_ptr, time, first, start, keys, head, H, E, WIDTH, BLOCK)
        seen = k_position[None, :] < limit[:, None]
        rows = _bias_rows(q_position, q_time, k_position, k_time, GAPS, LONGEST, PLACES, EXACT)
        score, sigmoid = _scores(q, k, bias, rows, seen, head, H)
        weight = tl.where(seen, score * sigmoid, 0.0)
        total += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    tl.store(out_ptr + here, total.to(out_ptr.dtype.element_ty), mask=inside)


@_compiled_once
def _backward_queries(
    q_ptr, k_ptr, v_ptr, bias, grad_ptr, dq_ptr, dbias, block_run, block_offset,
    query_ptr, count_ptr, key_ptr, keys_ptr, position, time, visible, S,
    P: tl.constexpr, COPIES: tl.constexpr, H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    GAPS: tl.constexpr, LONGEST: tl.constexpr, PLACES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    run, head = tl.load(block_run + tl.program_id(0)), tl.program_id(1)
    place = tl.load(block_offset + tl.program_id(0)) + tl.arange(0, BLOCK)
    asks = place < tl.load(count_ptr + run)
    query = tl.load(query_ptr + run) + place
    here, inside = _places(query, asks, head, H, E, WIDTH)
    q, grad = tl.load(q_ptr + here, mask=inside, other=0.0), tl.load(grad_ptr + here, mask=inside, other=0.0)
    q_position, q_time, limit = _asking(query, asks, position, time, visible)
    first, keys = tl.load(key_ptr + run), tl.load(keys_ptr + run)
    last = tl.where(run < S, tl.minimum(tl.load(block_offset + tl.program_id(0)) + BLOCK, keys), keys)
    copy = dbias + (tl.program_id(0) % COPIES) * P * H + head
    dq = tl.full((BLOCK, WIDTH), 0.0, tl.float32)
    for start in range(0, last, BLOCK):
        k_position, k_time, k, v = _keys(k_ptr, v_ptr, time, first, start, keys, head, H, E, WIDTH, BLOCK)
        seen = k_position[None, :] < limit[:, None]
        rows = _bias_rows(q_position, q_time, k_position, k_time, GAPS, LONGEST, PLACES, EXACT)
        score, sigmoid = _scores(q, k, bias, rows, seen, head, H)
        dweight = tl.dot(grad, tl.trans(v), input_precision="ieee")
        dscore = tl.where(seen, dweight * sigmoid * (1.0 + score * (1.0 - sigmoid)), 0.0)
        dq += tl.dot(dscore.to(k.dtype), k, input_precision="ieee")
        tl.atomic_add(copy + rows * H, dscore, mask=seen)
    tl.store(dq_ptr + here, dq.to(dq_ptr.dtype.element_ty), mask=inside)


@_compiled_once
def _backward_keys(
    q_ptr, k_ptr, v_ptr, bias, grad_ptr, dk_ptr, dv_ptr, block_run, block_offset,
    query_ptr, count_ptr, key_ptr, keys_ptr, position, time, visible, S,
    H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    GAPS: tl.constexpr, LONGEST: tl.constexpr, PLACES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    run, head = tl.load(block_run + tl.program_id(0)), tl.program_id(1)
    first, keys, begin = tl.load(key_ptr + run), tl.load(keys_ptr + run), tl.load(block_offset + tl.program_id(0))
    k_position, k_time, k, v = _keys(k_ptr, v_ptr, time, first, begin, keys, head, H, E, WIDTH, BLOCK)
    dk, dv = tl.full((BLOCK, WIDTH), 0.0, tl.float32), tl.full((BLOCK, WIDTH), 0.0, tl.float32)
    for asking in range(2):  # the rows of the sequence from here on, then its targets
        group = tl.minimum(run + asking * S, 2 * S)
        count, query_first = tl.load(count_ptr + group), tl.load(query_ptr + group)
        for start in range((1 - asking) * begin, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            asks, query = place < count, query_first + place
            there, within = _places(query, asks, head, H, E, WIDTH)
            q, grad = tl.load(q_ptr + there, mask=within, other=0.0), tl.load(grad_ptr + there, mask=within, other=0.0)
            q_position, q_time, limit = _asking(query, asks, position, time, visible)
            seen = k_position[None, :] < limit[:, None]
            rows = _bias_rows(q_position, q_time, k_position, k_time, GAPS, LONGEST, PLACES, EXACT)
            score, sigmoid = _scores(q, k, bias, rows, seen, head, H)
            weight = tl.where(seen, score * sigmoid, 0.0)
            dweight = tl.dot(grad, tl.trans(v), input_precision="ieee")
            dscore = tl.where(seen, dweight * sigmoid * (1.0 + score * (1.0 - sigmoid)), 0.0)
            dk += tl.dot(tl.trans(dscore).to(q.dtype), q, input_precision="ieee")
            dv += tl.dot(tl.trans(weight).to(grad.dtype), grad, input_precision="ieee")
    here, inside = _places(first + k_position, k_position < keys, head, H, E, WIDTH)
    tl.store(dk_ptr + here, dk.to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + here, dv.to(dv_ptr.dtype.element_ty), mask=inside)
