"""Where everything lies in a packed batch. Computed once a batch from its offsets; nothing here reads a value of a token.

Rows: every sequence gets a BOS row in front of its tokens, so the R = T + S rows of sequence s are
``offsets[s] + s`` (BOS) to ``offsets[s + 1] + s`` (its last token), and the state after p tokens is row ``offsets[s] + s + p``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.batch import Batch, Lengths

NO_CLOCK = -1

_TOKEN_FIELDS = (
    "token_item_T", "token_item_features_TI", "token_features_TK", "token_action_TH", "token_action_known_TH", "token_time_T",
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """The rows of a batch.

    Attributes:
        start_S: int64, BOS row of each sequence.
        length_S: int64, rows of each sequence, BOS included; at least 1.
        source_R: int64, 0 for a BOS row, 1 + t for token t.
        sequence_R: int64, sequence of each row.
        position_R: int64, position in the sequence; BOS has 0.
        state_N: int64, row whose state each target may read.
        target_length_S: int64, targets of each sequence.
        lengths: The batch's (`models.batch.Lengths`); None where the device has to be asked.
    """

    start_S: Tensor
    length_S: Tensor
    source_R: Tensor
    sequence_R: Tensor
    position_R: Tensor
    state_N: Tensor
    target_length_S: Tensor
    lengths: Lengths | None = None

    @property
    def here(self) -> tuple[Tensor, Tensor]:
        """int64 on the CPU: rows and targets of each sequence."""
        if self.lengths is None:
            return self.length_S.cpu(), self.target_length_S.cpu()
        return self.lengths.tokens_S + 1, self.lengths.targets_S

    @property
    def from_end_R(self) -> Tensor:
        """int64, tokens of the sequence behind each row."""
        return self.length_S[self.sequence_R] - 1 - self.position_R

    def without_targets(self) -> Packing:
        """Returns the same rows with no targets."""
        lengths = self.lengths and replace(self.lengths, targets_S=torch.zeros_like(self.lengths.targets_S))
        return replace(self, state_N=self.state_N[:0], target_length_S=torch.zeros_like(self.target_length_S), lengths=lengths)


def pack(batch: Batch) -> Packing:
    """Computes the rows of a batch.

    Raises:
        ValueError: If the offsets do not cover the tokens, a target points behind the end of its sequence, or targets are not
            grouped by sequence (checked on CPU; on an accelerator it would stall the device).
    """
    offsets_S1 = batch.offsets_S1
    device = offsets_S1.device
    sequences = torch.arange(batch.sequences, device=device)
    start_S = offsets_S1[:-1] + sequences
    length_S = offsets_S1.diff() + 1
    if device.type == "cpu":
        _check(batch, length_S)
    sequence_R = sequences.repeat_interleave(length_S, output_size=batch.tokens + batch.sequences)
    position_R = torch.arange(len(sequence_R), device=device) - start_S[sequence_R]
    return Packing(
        start_S=start_S,
        length_S=length_S,
        source_R=torch.where(position_R == 0, 0, torch.arange(len(sequence_R), device=device) - sequence_R),
        sequence_R=sequence_R,
        position_R=position_R,
        state_N=start_S[batch.target_sequence_N] + batch.target_position_N,
        # Not bincount: on an accelerator it waits for the largest number.
        target_length_S=torch.zeros_like(length_S).index_add_(0, batch.target_sequence_N, torch.ones_like(batch.target_sequence_N)),
        lengths=batch.lengths,
    )


def _check(batch: Batch, length_S: Tensor) -> None:
    first, last = int(batch.offsets_S1[0]), int(batch.offsets_S1[-1])
    if (first, last) != (0, batch.tokens) or (length_S < 1).any():
        raise ValueError(f"offsets run from {first} to {last}; they must rise from 0 to the number of tokens, {batch.tokens}")
    position_N, sequence_N = batch.target_position_N, batch.target_sequence_N
    wrong_N = (position_N < 0) | (position_N >= length_S[sequence_N])
    if wrong_N.any():
        first = int(wrong_N.nonzero()[0])
        raise ValueError(
            f"target {first} reads {int(position_N[first])} tokens, but its sequence {int(sequence_N[first])} has "
            f"{int(length_S[sequence_N[first]]) - 1}"
        )
    if (sequence_N.diff() < 0).any():
        raise ValueError("targets must be grouped by sequence, ascending")


def unrolled(batch: Batch, longest: int = 0) -> Batch:
    """Gives every target a sequence of its own that ends where the target reads, for trunks that count from a sequence's end.

    Args:
        batch: The batch.
        longest: Tokens that a target reads at most, the latest ones; 0 for all.

    Returns:
        The same targets in the same order, one a sequence.
    """
    position_N, sequence_N = batch.target_position_N, batch.target_sequence_N
    length_N = position_N.clamp(max=longest) if longest else position_N
    offsets_N1 = torch.cat([length_N.new_zeros(1), length_N.cumsum(0)])
    first_N = batch.offsets_S1[sequence_N] + position_N - length_N
    token_T = torch.arange(int(offsets_N1[-1]), device=first_N.device) + (first_N - offsets_N1[:-1]).repeat_interleave(length_N)
    tokens = {name: getattr(batch, name).index_select(0, token_T) for name in _TOKEN_FIELDS}
    sequence_N = torch.arange(len(length_N), device=first_N.device)
    return replace(batch, offsets_S1=offsets_N1, target_sequence_N=sequence_N, target_position_N=length_N, lengths=None, **tokens)


def row_times(batch: Batch, packing: Packing) -> Tensor:
    """Returns int64 [R]: event time of each row (ms), `NO_CLOCK` for BOS."""
    return torch.cat([batch.token_time_T.new_full((1,), NO_CLOCK), batch.token_time_T])[packing.source_R]


def next_item_rows(batch: Batch) -> Tensor:
    """Returns int64 [T]: the row whose state predicts token t, which is the row just before it.

    A next-item objective is ``full_softmax(ranker.states(batch)[next_item_rows(batch)], items, batch.token_item_T)``.
    """
    token_T = torch.arange(batch.tokens, device=batch.offsets_S1.device)
    return token_T + torch.searchsorted(batch.offsets_S1[1:], token_T, right=True)


GAP_BUCKETS = 29
LONGEST_GAP = GAP_BUCKETS - 2  # 2^26 seconds, two years


def gap_bucket(later: Tensor, earlier: Tensor) -> Tensor:
    """Buckets a time difference by powers of two.

    Args:
        later: int64 instants (ms), `NO_CLOCK` where unknown.
        earlier: Same, broadcastable.

    Returns:
        int64 below `GAP_BUCKETS`: 0 where a clock is missing, 1 below a second (also for negative gaps: tokens are ordered by
        availability, not by event time), then one bucket for each doubling.
    """
    if torch.compiler.is_exporting():  # no clip, no division: onnxruntime 1.31 returned 0 for a gap of a month
        doublings = 1000 * 2 ** torch.arange(LONGEST_GAP, device=later.device)
        bucket = torch.bucketize(later - earlier, doublings, right=True) + 1
        return bucket.masked_fill((later == NO_CLOCK) | (earlier == NO_CLOCK), 0)
    # The exponent of the seconds as a double: 0.001 is rounded up, so the first millisecond of a doubling is not below it, and the one
    # before is a thousandth of a second away.
    bucket = _exponent((later - earlier).double().mul_(0.001)).clamp_(0, LONGEST_GAP) + 1
    return bucket.masked_fill_((later == NO_CLOCK) | (earlier == NO_CLOCK), 0)


POSITION_BUCKETS = 34
EXACT_POSITIONS = 16


def position_bucket(distance: Tensor) -> Tensor:
    """Buckets a distance in tokens: exact below 16, then two buckets an octave.

    Args:
        distance: int64; negative distances (never attended to) share bucket 0.

    Returns:
        int64 below `POSITION_BUCKETS`.
    """
    distance = distance.clamp(min=0)
    octave = _bit_length(distance)
    upper_half = distance >= 3 * 2 ** (octave - 2).clamp_(min=0)
    coarse = EXACT_POSITIONS + 2 * (octave - 5) + upper_half
    return torch.where(distance < EXACT_POSITIONS, distance, coarse.clamp_(max=POSITION_BUCKETS - 1))


def _bit_length(value: Tensor) -> Tensor:
    """int64 bits of non-negative integers below 2^53, exact at every power of two (a logarithm is not)."""
    if torch.compiler.is_exporting():  # other runtimes have no frexp; no bucket tells more than `LONGEST_GAP` bits apart
        powers = 2 ** torch.arange(LONGEST_GAP, device=value.device)
        return torch.bucketize(value, powers, right=True)
    return _exponent(value.double()).clamp_(min=0)


def _exponent(value: Tensor) -> Tensor:
    """int64 e of ``m 2^e`` with m from 1/2 to 1, read from the bits of doubles, in fewer passes than `torch.frexp` makes; negative,
    and of no meaning, for zeros and for negative numbers.
    """
    return value.view(torch.int64).bitwise_right_shift(52).sub_(1022)
