"""Attention over packed sequences. Fast paths pad inside a batch, but only among sequences of nearly equal length.

`causal_attention` (softmax, sasrec) and `pointwise_attention` (SiLU, hstu) each have a dense twin that looks at the whole batch
at once through one mask; tests hold them equal. Additional shape suffixes:

    R  rows of all sequences (BOS and tokens)        H  heads        E  width of a head        P  relative-bias buckets
    Q  rows that ask: the R rows, then N targets     B  sequences of one bucket        L, M  padded queries, keys of a bucket
    X  padded positions of all buckets
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.packing import GAP_BUCKETS, NO_CLOCK, POSITION_BUCKETS, Packing, gap_bucket, position_bucket


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) over neighbouring pairs, so that a wider head appends pairs.

    The frequencies are part of the state: a widened head keeps the old ones whatever formula the new ones follow.

    Args:
        head_dim: Width of a head, even.
        base: Longest wavelength over 2 pi.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.dimensions = {"frequency": ("rotary",)}
        self.frequency: Tensor
        self.register_buffer("frequency", base ** (-torch.arange(0, head_dim, 2) / head_dim))

    def forward(self, position_R: Tensor) -> Tensor:
        """Returns the rotation at each position: complex [R, 1, E/2]; off the CPU and in exported graphs its parts, [R, 1, E/2, 2]."""
        if torch.compiler.is_exporting() or position_R.device.type != "cpu":  # other runtimes, and compilers, know no complex numbers
            angle_RE = position_R[:, None, None] * self.frequency
            return torch.stack([angle_RE.cos(), angle_RE.sin()], -1)
        first, last = position_R.aminmax()  # many rows share a position
        angle_PE = torch.arange(int(first), int(last) + 1)[:, None, None] * self.frequency
        return torch.polar(torch.ones_like(angle_PE), angle_PE).index_select(0, position_R - first)

    def rotate(self, qkv_R3HE: Tensor, rotation_R1E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotates queries and keys, in the precision of the frequencies also under autocast.

        Args:
            qkv_R3HE: Queries, keys and values of each row.
            rotation_R1E: What `forward` returned.

        Returns:
            The three, [R, H, E] each.
        """
        if rotation_R1E.is_complex():
            q_RHE, k_RHE, v_RHE = _Rotated.apply(qkv_R3HE.to(self.frequency.dtype), rotation_R1E)
            return q_RHE, k_RHE, v_RHE
        qk_R2HE, v_R1HE = qkv_R3HE.split((2, 1), 1)
        pairs_R2HE2 = qk_R2HE.to(self.frequency.dtype).unflatten(-1, (-1, 2))
        (first, second), (cos, sin) = pairs_R2HE2.unbind(-1), rotation_R1E[:, None].unbind(-1)
        turned_R2HE = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
        q_RHE, k_RHE = turned_R2HE.to(qkv_R3HE.dtype).unbind(1)  # attention would round them anyhow, in a pass of its own
        return q_RHE, k_RHE, v_R1HE.squeeze(1)


class _Rotated(torch.autograd.Function):
    """Takes queries, keys and values apart and rotates the first two; what comes back is written where the product before it reads."""

    @staticmethod
    def forward(ctx: Any, qkv_R3HE: Tensor, rotation_R1E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(rotation_R1E)
        pairs_R3HE = _as_complex(qkv_R3HE)
        q_RHE, k_RHE = (torch.view_as_real(pairs_R3HE[:, side] * rotation_R1E).flatten(-2) for side in (0, 1))
        return q_RHE, k_RHE, qkv_R3HE[:, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q_RHE: Tensor, grad_k_RHE: Tensor, grad_v_RHE: Tensor) -> tuple[Tensor, None]:
        back_R1E = ctx.saved_tensors[0].conj().resolve_conj()
        grad_R3HE = torch.stack([grad_q_RHE, grad_k_RHE, grad_v_RHE], 1)
        _as_complex(grad_R3HE)[:, :2].mul_(back_R1E[:, None])
        return grad_R3HE, None


def _as_complex(x: Tensor) -> Tensor:
    """Views neighbouring pairs as complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


@dataclass(frozen=True)
class Padded:
    """Runs of rows, padded to the longest of each bucket. Rows of all buckets are gathered at once: a gather a bucket would cost
    a gradient of the full size a bucket.

    Attributes:
        index_X: int64, row of every padded position, bucket after bucket; padding repeats the last row of its run.
        shapes: (B, L) of each bucket.
    """

    index_X: Tensor
    shapes: tuple[tuple[int, int], ...]

    def gather(self, x_QHE: Tensor, inverse_Q: Tensor | None = None) -> list[Tensor]:
        """Returns [B, H, L, E] for each bucket.

        Args:
            x_QHE: Rows.
            inverse_Q: int64, place of each row among the padded positions, if no result depends on padding: the gradient is then
                gathered too, where otherwise zeros would be filled and all positions added up.
        """
        x_XHE = x_QHE.index_select(0, self.index_X) if inverse_Q is None else _Gather.apply(x_QHE, self.index_X, inverse_Q)
        parts = x_XHE.split([count * length for count, length in self.shapes]) if len(self.shapes) > 1 else [x_XHE]
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, self.shapes, strict=True)]

    def to(self, device: torch.device) -> Padded:
        """Returns the same runs with the index on `device`."""
        return Padded(sent(self.index_X, device), self.shapes)

    def indices(self) -> list[Tensor]:
        """Returns int64 [B, L] for each bucket."""
        parts = self.index_X.split([count * length for count, length in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class _Gather(torch.autograd.Function):
    """``x.index_select(0, index)``, whose gradient is not zero at the places of `inverse` only."""

    @staticmethod
    def forward(ctx: Any, x_QHE: Tensor, index_X: Tensor, inverse_Q: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_Q)
        return x_QHE.index_select(0, index_X)

    @staticmethod
    def backward(ctx: Any, grad_XHE: Tensor) -> tuple[Tensor, None, None]:
        (inverse_Q,) = ctx.saved_tensors
        return grad_XHE.index_select(0, inverse_Q), None, None


def sent(index: Tensor, device: torch.device) -> Tensor:
    """Moves an index made on the CPU; from page-locked memory, so that the copy waits for nothing that the device is doing."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


class CausalAttention(Protocol):
    """How rows are arranged for softmax attention to earlier rows: in packed groups, or padded (`models.dense`)."""

    def attend(self, q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor) -> Tensor:
        """Attends from every row to its own sequence up to itself, [R, H, E] each; queries come scaled and rotated."""
        ...


class PointwiseAttention(Protocol):
    """How rows and targets are arranged for pointwise attention: in packed groups, or padded (`models.dense`)."""

    def attend(self, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor) -> Tensor:
        """Attends as `pointwise_attention` does, [Q, H, E] each; queries come scaled."""
        ...


@dataclass(frozen=True)
class CausalLayout:
    """Rows of a batch, arranged for causal self-attention.

    Attributes:
        padded: The rows of each sequence, grouped by length.
        inverse_R: int64, place of each row among the padded positions.
        bias: float32 [B, 1, L, L] a group, added to the scores where the front row stands for padding; else None a group.
    """

    padded: Padded
    inverse_R: Tensor
    bias: tuple[Tensor | None, ...]

    @torch.compiler.disable  # shapes of every batch would be compiled anew
    def attend(self, q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor) -> Tensor:
        """Attends as `causal_attention`."""
        return causal_attention(q_RHE, k_RHE, v_RHE, self)


def causal_layout(packing: Packing, padding: int | None = None) -> CausalLayout:
    """Groups sequences by length. All indices are made on the CPU, from lengths that are known there, and sent.

    Args:
        packing: Rows of the batch.
        padding: Length of the window whose padding the front rows stand for (`models.ranker.RankerShape.padding`).
    """
    (length_S, _), device = packing.here, packing.length_S.device
    groups, start_S = _groups(_rounded(length_S)), length_S.cumsum(0) - length_S
    lengths = [length_S[group_B] for group_B in groups]
    padded = _pad([(start_S[group_B], length_B) for group_B, length_B in zip(groups, lengths, strict=True)])
    bias = tuple(
        None if padding is None else _padding_bias(length_B, longest, padding).to(device)
        for length_B, (_, longest) in zip(lengths, padded.shapes, strict=True)
    )
    inverse_R = _inverse(padded, lengths, len(packing.sequence_R))
    return CausalLayout(padded.to(device), sent(inverse_R, device), bias)


def padding_weight(length: Tensor, padding: int) -> Tensor:
    """Returns the logarithm of the padding beside a sequence: adding it to one score counts that key so many times.

    Args:
        length: int64, rows of each sequence, the front row included.
        padding: Length of the window.

    Returns:
        float32; -inf where there is no padding.
    """
    return (padding + 1 - length).clamp(min=0).float().log()


def _padding_bias(length_B: Tensor, longest: int, padding: int) -> Tensor:
    earlier_LL = torch.ones(longest, longest, dtype=torch.bool, device=length_B.device).tril()
    bias_LL = torch.zeros(longest, longest, device=length_B.device).masked_fill_(~earlier_LL, -torch.inf)
    bias_BLL = bias_LL.repeat(len(length_B), 1, 1)
    bias_BLL[:, 1:, 0] = padding_weight(length_B, padding)[:, None]  # the front row sees itself, however little padding there is
    return bias_BLL[:, None]


def causal_attention(q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor, layout: CausalLayout) -> Tensor:
    """Softmax attention of every row to its own sequence up to itself. Queries come scaled.

    This is the one place that knows how: another kernel changes this function and `CausalLayout`, and nothing else.

    Args:
        q_RHE: Queries, already multiplied by the scale and rotated.
        k_RHE: Keys, rotated.
        v_RHE: Values.
        layout: Arrangement of the rows (`causal_layout`).

    Returns:
        [R, H, E].
    """
    outputs = []  # padding stands behind its sequence, so nothing that is read back has seen it
    parts = (layout.padded.gather(x_RHE, layout.inverse_R) for x_RHE in (q_RHE, k_RHE, v_RHE))
    for q_BHLE, k_BHLE, v_BHLE, bias in zip(*parts, layout.bias, strict=True):
        mask = None if bias is None else bias.to(q_BHLE.dtype)
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, attn_mask=mask, is_causal=mask is None, scale=1.0)
        outputs.append(out_BHLE.transpose(1, 2).flatten(0, 1))
    out_XHE = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out_XHE.index_select(0, layout.inverse_R)


def dense_causal_attention(q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor, packing: Packing, padding: int | None = None) -> Tensor:
    """The twin of `causal_attention`: one R x R mask over the whole batch. For tests and for tracing to other runtimes."""
    same = packing.sequence_R[:, None] == packing.sequence_R[None, :]
    earlier = packing.position_R[:, None] >= packing.position_R[None, :]
    score_HRR = torch.einsum("qhe,khe->hqk", q_RHE, k_RHE).masked_fill(~(same & earlier), -torch.inf)
    if padding is not None:
        front_R, weight_R = packing.position_R == 0, padding_weight(packing.length_S, padding)[packing.sequence_R]
        score_HRR = score_HRR + torch.where(~front_R[:, None] & front_R[None, :], weight_R[None, :], 0.0).to(score_HRR.dtype)
    return torch.einsum("hqk,khe->qhe", score_HRR.softmax(-1), v_RHE)


@dataclass(frozen=True)
class Seen:
    """What each asking row knows: its place, its time, and how many rows of its sequence it may read.

    Attributes:
        sequence_Q: int64.
        position_Q: int64 position; a target stands right behind the last token available to it.
        time_Q: int64 (ms), -1 without a clock.
        visible_Q: int64, rows of the own sequence, from BOS on, that may be read.
    """

    sequence_Q: Tensor
    position_Q: Tensor
    time_Q: Tensor
    visible_Q: Tensor

    @cached_property
    def has_clock(self) -> bool:
        """Whether a time may be known; on an accelerator, where the answer would have to be waited for, it always may."""
        return self.time_Q.device.type != "cpu" or bool((self.time_Q != NO_CLOCK).any())


BIAS_ROWS = POSITION_BUCKETS * GAP_BUCKETS
HIDDEN = BIAS_ROWS  # bias row of a pair that must not be seen
_HIDDEN_BIAS = -1e9  # silu(score - 1e9) and its derivative are exactly 0 in fp32 and fp64


@dataclass(frozen=True)
class PairLayout:
    """Rows and targets of a batch, arranged for pointwise attention.

    Attributes:
        queries: Asking rows of each sequence (its rows, then its targets), grouped by size.
        keys: Rows of each sequence, in the same groups.
        bias: int32 [B, L, M] a group: bias row of every pair (position bucket x gap bucket), or `HIDDEN`.
        inverse_Q: int64, place of each asking row among the padded queries.
        inverse_R: int64, place of each row among the padded keys.
        self_bias_N: int32, bias row of a target with itself.
    """

    queries: Padded
    keys: Padded
    bias: tuple[Tensor, ...]
    inverse_Q: Tensor
    inverse_R: Tensor
    self_bias_N: Tensor

    @torch.compiler.disable
    def attend(self, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor) -> Tensor:
        """Attends as `pointwise_attention`."""
        return pointwise_attention(q_QHE, k_QHE, v_QHE, bias_PH, self)


def pair_layout(packing: Packing, seen: Seen) -> PairLayout:
    """Groups sequences by their number of rows and of rows plus targets, and looks up every pair's bias row once a batch."""
    rows, targets, device = len(packing.sequence_R), len(packing.state_N), packing.length_S.device
    length_S, target_length_S = packing.here
    asking_S = length_S + target_length_S
    groups = _groups(_rounded(length_S) * 2**32 + _rounded(asking_S, octaves=2))
    start_S, first_S = length_S.cumsum(0) - length_S, asking_S.cumsum(0) - asking_S  # as if targets stood right behind their rows
    keys = _pad([(start_S[group_B], length_S[group_B]) for group_B in groups])
    inverse_R = sent(_inverse(keys, [length_S[group_B] for group_B in groups], rows), device)
    queries = _pad([(first_S[group_B], asking_S[group_B]) for group_B in groups])
    queries = Padded(_asking_order(length_S, target_length_S)[queries.index_X], queries.shapes)
    inverse_Q = sent(_inverse(queries, [asking_S[group_B] for group_B in groups], rows + targets), device)
    queries, keys = queries.to(device), keys.to(device)
    bias = tuple(_pair_bias(seen, *pair) for pair in zip(queries.indices(), keys.indices(), strict=True))
    return PairLayout(queries, keys, bias, inverse_Q, inverse_R, self_bias(seen.time_Q[rows:]))


def self_bias(time_N: Tensor) -> Tensor:
    """Returns the int32 bias row of each target with itself, from its time (ms)."""
    return bias_row(torch.zeros_like(time_N), gap_bucket(time_N, time_N))


def _asking_order(length_S: Tensor, target_length_S: Tensor) -> Tensor:
    """int64 [Q]: asking rows, sequence by sequence, the targets of a sequence behind its rows."""
    sequence_S = torch.arange(len(length_S))
    return torch.cat([sequence_S.repeat_interleave(length_S), sequence_S.repeat_interleave(target_length_S)]).argsort(stable=True)


def _pair_bias(seen: Seen, query_BL: Tensor, key_BM: Tensor) -> Tensor:
    """int32 [B, L, M]: bias row of every pair of a group; pairs are many, so all that can be is looked up, in int32."""
    place_M = torch.arange(key_BM.shape[1], dtype=torch.int32, device=key_BM.device)
    distance_BLM = seen.position_Q.int()[query_BL][:, :, None] - seen.position_Q.int()[key_BM][:, None, :]
    # No query stands farther behind than all keys of its sequence; what stands before a key is hidden.
    distance_M1 = torch.arange(key_BM.shape[1] + 1, device=key_BM.device)
    row_BLM = _looked_up(bias_row(position_bucket(distance_M1), torch.zeros_like(distance_M1)), distance_BLM.clamp_(min=0))
    if seen.has_clock:
        row_BLM += gap_bucket(seen.time_Q[query_BL][:, :, None], seen.time_Q[key_BM][:, None, :])
    return row_BLM.masked_fill_(place_M >= seen.visible_Q.int()[query_BL][:, :, None], HIDDEN)


def _looked_up(value_P: Tensor, index: Tensor) -> Tensor:
    """Returns ``value_P[index]``: a gather of single numbers, which torch does faster than one of rows of one number."""
    return value_P.index_select(0, index.flatten()).view(index.shape)


def bias_row(position: Tensor, gap: Tensor) -> Tensor:
    """Returns the int32 bias row of each (position bucket, gap bucket)."""
    return (position * GAP_BUCKETS + gap).int()


def pointwise_attention(q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor, layout: PairLayout) -> Tensor:
    """SiLU attention without softmax (Zhai et al. 2024, arXiv 2402.17152, eq. 2) of rows and targets to visible rows.

    Every target sees itself besides; no target is seen by anything else.

    Args:
        q_QHE: Queries, already multiplied by the scale.
        k_QHE: Keys. Those of targets are used for the target itself only.
        v_QHE: Values, likewise.
        bias_PH: Bias of each (position bucket, gap bucket) pair.
        layout: Arrangement of rows and targets (`pair_layout`).

    Returns:
        [Q, H, E], sums over visible rows; not normalised.
    """
    table_PH = torch.cat([bias_PH, bias_PH.new_full((1, bias_PH.shape[1]), _HIDDEN_BIAS)])
    outputs = []
    rows = len(layout.inverse_R)  # padding is hidden from all queries, and what it asks is not read: it has no gradient
    keys, values = (layout.keys.gather(x_QHE[:rows], layout.inverse_R) for x_QHE in (k_QHE, v_QHE))
    parts = zip(layout.queries.gather(q_QHE, layout.inverse_Q), keys, values, layout.bias, strict=True)
    for q_BHLE, k_BHME, v_BHME, bias_BLM in parts:
        weight_BHLM = F.silu(q_BHLE @ k_BHME.transpose(-1, -2) + _PairBias.apply(table_PH, bias_BLM))
        outputs.append((weight_BHLM.to(v_BHME.dtype) @ v_BHME).transpose(1, 2).flatten(0, 1))
    out_QHE = torch.cat(outputs).index_select(0, layout.inverse_Q)
    if rows == len(out_QHE):
        return out_QHE
    return add_self(out_QHE, q_QHE, k_QHE, v_QHE, F.embedding(layout.self_bias_N, table_PH))


class _PairBias(torch.autograd.Function):
    """``table_PH[row_BLM]``, heads first. The gradient of torch's lookup is slow for rows as short as these (scripts/bench/RESULTS.md)."""

    @staticmethod
    def forward(ctx: Any, table_PH: Tensor, row_BLM: Tensor) -> Tensor:
        ctx.save_for_backward(row_BLM)
        ctx.rows = len(table_PH)
        biases = [_looked_up(table_P.contiguous(), row_BLM) for table_P in table_PH.unbind(1)]
        return biases[0][:, None] if len(biases) == 1 else torch.stack(biases).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHLM: Tensor) -> tuple[Tensor, None]:
        row_X = ctx.saved_tensors[0].flatten()
        # Many pairs share a row: added up in fp64. On an accelerator `bincount` would wait, and its order is open.
        grads = [grad_BLM.flatten() for grad_BLM in grad_BHLM.unbind(1)]
        if grad_BHLM.device.type == "cpu":
            sums = [torch.bincount(row_X, grad_X.double(), ctx.rows) for grad_X in grads]
        else:
            sums = [grad_X.new_zeros(ctx.rows).index_add_(0, row_X, grad_X) for grad_X in grads]
        return torch.stack(sums, 1).to(grad_BHLM.dtype), None


def add_self(out_QHE: Tensor, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_NH: Tensor) -> Tensor:
    """Adds what each target sees of itself to the targets' part of [Q, H, E]; `bias_NH` is the bias of each with itself."""
    rows = len(out_QHE) - len(bias_NH)
    weight_NH = F.silu((q_QHE[rows:] * k_QHE[rows:]).sum(-1) + bias_NH)
    return torch.cat([out_QHE[:rows], out_QHE[rows:] + weight_NH[..., None] * v_QHE[rows:]])


def dense_pointwise_attention(q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor, packing: Packing, seen: Seen) -> Tensor:
    """The twin of `pointwise_attention`: one Q x Q mask over the whole batch. For tests and for tracing to other runtimes."""
    rows, device = len(packing.sequence_R), q_QHE.device
    index_Q = torch.arange(len(q_QHE), device=device)
    same = seen.sequence_Q[:, None] == seen.sequence_Q[None, :]
    visible = same & (index_Q[None, :] < rows) & (seen.position_Q[None, :] < seen.visible_Q[:, None])
    visible |= index_Q[:, None] == index_Q[None, :]
    position = position_bucket(seen.position_Q[:, None] - seen.position_Q[None, :])
    bias_QQH = bias_PH[bias_row(position, gap_bucket(seen.time_Q[:, None], seen.time_Q[None, :])).long()]
    weight_HQQ = F.silu(torch.einsum("qhe,khe->hqk", q_QHE, k_QHE) + bias_QQH.movedim(-1, 0)).masked_fill(~visible, 0.0)
    return torch.einsum("hqk,khe->qhe", weight_HQQ, v_QHE)


def _rounded(length_S: Tensor, octaves: int = 4) -> Tensor:
    """Rounds lengths up to `octaves` steps an octave, to multiples of 16 at least: padding below a quarter, few buckets."""
    octave = torch.frexp(length_S.double()).exponent.long() - 1
    step = (2**octave // octaves).clamp_(min=16)
    return (length_S + step - 1) // step * step


def _groups(key_S: Tensor) -> list[Tensor]:
    """Splits sequence numbers by equal key, ascending; int64 [B] each."""
    order_S = key_S.argsort(stable=True)
    _, counts = key_S[order_S].unique_consecutive(return_counts=True)
    return list(order_S.split(counts.tolist()))


def _pad(runs: list[tuple[Tensor, Tensor]]) -> Padded:
    """Pads runs of consecutive numbers, given as (first, count) of each run in each bucket."""
    parts = []
    for start_B, length_B in runs:
        place_L = torch.arange(int(length_B.max()), device=start_B.device)
        parts.append(start_B[:, None] + torch.minimum(place_L[None, :], length_B[:, None] - 1))
    return Padded(torch.cat([part.flatten() for part in parts]), tuple((part.shape[0], part.shape[1]) for part in parts))


def _inverse(padded: Padded, lengths: list[Tensor], rows: int) -> Tensor:
    """int64 [rows]: place of each row among the padded positions; `lengths` tells which of those are real."""
    real = [
        torch.arange(length, device=length_B.device) < length_B[:, None]
        for (_, length), length_B in zip(padded.shapes, lengths, strict=True)
    ]
    place = torch.cat([part.flatten() for part in real]).nonzero().squeeze(1)
    inverse = torch.empty(rows, dtype=torch.int64, device=place.device)
    inverse[padded.index_X[place]] = place
    return inverse
