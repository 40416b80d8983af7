"""Attention over packed sequences. Fast paths pad inside a batch, but only among sequences of nearly equal length.

`causal_attention` (softmax, sasrec) and `pointwise_attention` (SiLU, hstu) each have a dense twin that looks at the whole batch
at once through one mask; tests hold them equal. Additional shape suffixes:

    R  rows of all sequences (BOS and tokens)        H  heads        E  width of a head        P  relative-bias buckets
    Q  rows that ask: the R rows, then N targets     B  sequences of one bucket        L, M  padded queries, keys of a bucket
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.packing import GAP_BUCKETS, POSITION_BUCKETS, Packing, gap_bucket, position_bucket


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
        """Returns complex [R, 1, E/2]: the rotation at each position."""
        angle_RE = position_R[:, None, None] * self.frequency
        return torch.polar(torch.ones_like(angle_RE), angle_RE)

    def rotate(self, x_RHE: Tensor, rotation_R1E: Tensor) -> Tensor:
        """Rotates [R, H, E] in the precision of the frequencies, also under autocast."""
        pairs = x_RHE.to(self.frequency.dtype).unflatten(-1, (-1, 2))
        return torch.view_as_real(torch.view_as_complex(pairs) * rotation_R1E).flatten(-2)


@dataclass(frozen=True)
class CausalLayout:
    """Rows of a batch, arranged for causal self-attention.

    Attributes:
        packing: The batch's rows.
        buckets: int64 [B, L] each: row of every padded position; padding repeats the last row of its sequence.
        inverse_R: int64, place of each row among the padded positions of all buckets.
    """

    packing: Packing
    buckets: tuple[Tensor, ...]
    inverse_R: Tensor


def causal_layout(packing: Packing) -> CausalLayout:
    """Groups sequences by length."""
    groups = _groups(_rounded(packing.length_S))
    buckets = tuple(_padded(packing.start_S[group_B], packing.length_S[group_B]) for group_B in groups)
    inverse_R = _inverse(buckets, [packing.length_S[group_B] for group_B in groups], len(packing.sequence_R))
    return CausalLayout(packing, buckets, inverse_R)


def causal_attention(q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor, layout: CausalLayout) -> Tensor:
    """Softmax attention of every row to its own sequence up to itself. Queries come scaled.

    This is the one place where the kernel is chosen. All of them need the same facts, which the layout's packing holds.

    Args:
        q_RHE: Queries, already multiplied by the scale and rotated.
        k_RHE: Keys, rotated.
        v_RHE: Values.
        layout: Arrangement of the rows (`causal_layout`).

    Returns:
        [R, H, E].
    """
    outputs = []
    for rows_BL in layout.buckets:
        q, k, v = (x.index_select(0, rows_BL.flatten()).unflatten(0, rows_BL.shape).transpose(1, 2) for x in (q_RHE, k_RHE, v_RHE))
        out_BHLE = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        outputs.append(out_BHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.inverse_R)


def dense_causal_attention(q_RHE: Tensor, k_RHE: Tensor, v_RHE: Tensor, packing: Packing) -> Tensor:
    """The twin of `causal_attention`: one R x R mask over the whole batch. For tests and for tracing to other runtimes."""
    same = packing.sequence_R[:, None] == packing.sequence_R[None, :]
    earlier = packing.position_R[:, None] >= packing.position_R[None, :]
    score_HRR = torch.einsum("qhe,khe->hqk", q_RHE, k_RHE).masked_fill(~(same & earlier), -torch.inf)
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


BIAS_ROWS = POSITION_BUCKETS * GAP_BUCKETS
HIDDEN = BIAS_ROWS  # bias row of a pair that must not be seen
_HIDDEN_BIAS = -1e9  # silu(score - 1e9) and its derivative are exactly 0 in fp32 and fp64


@dataclass(frozen=True)
class PairBucket:
    """Sequences of similar size with all their (asking row, key row) pairs.

    Attributes:
        query_BL: int64 asking row of every padded position.
        key_BM: int64 key row of every padded position.
        bias_BLM: int32, bias row of the pair: position bucket x gap bucket, or `HIDDEN`.
    """

    query_BL: Tensor
    key_BM: Tensor
    bias_BLM: Tensor


@dataclass(frozen=True)
class PairLayout:
    """Rows and targets of a batch, arranged for pointwise attention.

    Attributes:
        buckets: Pairs by sequence, grouped by size.
        inverse_Q: int64, place of each asking row among the padded positions of all buckets.
        self_bias_N: int32, bias row of a target with itself.
        targets: N; the last N asking rows are targets.
    """

    buckets: tuple[PairBucket, ...]
    inverse_Q: Tensor
    self_bias_N: Tensor
    targets: int


def pair_layout(packing: Packing, seen: Seen) -> PairLayout:
    """Groups sequences by their number of rows and of rows plus targets, and looks up every pair's bias row once a batch."""
    rows, targets = len(packing.sequence_R), len(packing.state_N)
    asking_S = packing.length_S + packing.target_length_S
    first_target_S = rows + packing.target_length_S.cumsum(0) - packing.target_length_S
    groups = _groups(_rounded(packing.length_S) * 2**32 + _rounded(asking_S, octaves=2))
    buckets = []
    for group_B in groups:
        start_B, length_B = packing.start_S[group_B], packing.length_S[group_B]
        key_BM = _padded(start_B, length_B)
        place_BL = _padded(torch.zeros_like(start_B), asking_S[group_B])
        target_BL = place_BL - length_B[:, None] + first_target_S[group_B, None]
        query_BL = torch.where(place_BL < length_B[:, None], start_B[:, None] + place_BL, target_BL)
        buckets.append(PairBucket(query_BL, key_BM, _pair_bias(seen, query_BL, key_BM)))
    inverse_Q = _inverse(tuple(bucket.query_BL for bucket in buckets), [asking_S[group_B] for group_B in groups], rows + targets)
    time_N = seen.time_Q[rows:]
    return PairLayout(tuple(buckets), inverse_Q, _bias_row(torch.zeros_like(time_N), gap_bucket(time_N, time_N)), targets)


def _pair_bias(seen: Seen, query_BL: Tensor, key_BM: Tensor) -> Tensor:
    distance_BLM = seen.position_Q[query_BL][:, :, None] - seen.position_Q[key_BM][:, None, :]
    gap_BLM = gap_bucket(seen.time_Q[query_BL][:, :, None], seen.time_Q[key_BM][:, None, :])
    place_M = torch.arange(key_BM.shape[1], device=key_BM.device)
    return _bias_row(position_bucket(distance_BLM), gap_BLM).masked_fill_(place_M >= seen.visible_Q[query_BL][:, :, None], HIDDEN)


def _bias_row(position: Tensor, gap: Tensor) -> Tensor:
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
    for bucket in layout.buckets:
        q_BHLE = _heads_first(q_QHE, bucket.query_BL)
        k_BHME, v_BHME = _heads_first(k_QHE, bucket.key_BM), _heads_first(v_QHE, bucket.key_BM)
        bias_BLMH = F.embedding(bucket.bias_BLM, table_PH, padding_idx=HIDDEN)
        weight_BHLM = F.silu(q_BHLE @ k_BHME.transpose(-1, -2) + bias_BLMH.movedim(-1, 1))
        outputs.append((weight_BHLM.to(v_BHME.dtype) @ v_BHME).transpose(1, 2).flatten(0, 1))
    out_QHE = torch.cat(outputs).index_select(0, layout.inverse_Q)
    return _add_self(out_QHE, q_QHE, k_QHE, v_QHE, F.embedding(layout.self_bias_N, table_PH))


def _add_self(out_QHE: Tensor, q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_NH: Tensor) -> Tensor:
    rows = len(out_QHE) - len(bias_NH)
    weight_NH = F.silu((q_QHE[rows:] * k_QHE[rows:]).sum(-1) + bias_NH)
    return torch.cat([out_QHE[:rows], out_QHE[rows:] + weight_NH[..., None] * v_QHE[rows:]])


def dense_pointwise_attention(
    q_QHE: Tensor, k_QHE: Tensor, v_QHE: Tensor, bias_PH: Tensor, packing: Packing, seen: Seen
) -> Tensor:
    """The twin of `pointwise_attention`: one Q x Q mask over the whole batch. For tests and for tracing to other runtimes."""
    rows, device = len(packing.sequence_R), q_QHE.device
    index_Q = torch.arange(len(q_QHE), device=device)
    same = seen.sequence_Q[:, None] == seen.sequence_Q[None, :]
    visible = same & (index_Q[None, :] < rows) & (seen.position_Q[None, :] < seen.visible_Q[:, None])
    visible |= index_Q[:, None] == index_Q[None, :]
    position = position_bucket(seen.position_Q[:, None] - seen.position_Q[None, :])
    bias_QQH = bias_PH[_bias_row(position, gap_bucket(seen.time_Q[:, None], seen.time_Q[None, :])).long()]
    weight_HQQ = F.silu(torch.einsum("qhe,khe->hqk", q_QHE, k_QHE) + bias_QQH.movedim(-1, 0)).masked_fill(~visible, 0.0)
    return torch.einsum("hqk,khe->qhe", weight_HQQ, v_QHE)


def _heads_first(x_QHE: Tensor, index_BL: Tensor) -> Tensor:
    return x_QHE.index_select(0, index_BL.flatten()).unflatten(0, index_BL.shape).transpose(1, 2)


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


def _padded(start_B: Tensor, length_B: Tensor) -> Tensor:
    """int64 [B, L]: `length` consecutive numbers from `start` on, the last one repeated up to the longest."""
    place_L = torch.arange(int(length_B.max()), device=start_B.device)
    return start_B[:, None] + torch.minimum(place_L[None, :], length_B[:, None] - 1)


def _inverse(buckets: tuple[Tensor, ...], lengths: list[Tensor], rows: int) -> Tensor:
    """int64 [rows]: place of each row in the concatenation of all flattened buckets; padding is skipped."""
    places, owners, base = [], [], 0
    for rows_BL, length_B in zip(buckets, lengths, strict=True):
        real_BL = torch.arange(rows_BL.shape[1], device=rows_BL.device) < length_B[:, None]
        places.append(base + real_BL.flatten().nonzero().squeeze(1))
        owners.append(rows_BL[real_BL])
        base += rows_BL.numel()
    inverse = torch.empty(rows, dtype=torch.int64, device=buckets[0].device)
    inverse[torch.cat(owners)] = torch.cat(places)
    return inverse
