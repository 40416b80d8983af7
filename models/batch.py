"""The packed batch: every tensor that a ranker reads.

Shape suffixes used in this package:
    T  history tokens of all sequences, one after the other      S  sequences (user-days)
    N  targets of all sequences                                  D  model width
    A  actions as labels           H  actions that tokens carry  O  outputs (a duration has two)
    I  item features               K  token features             C  context features (categorical)   F  numeric features
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lengths:
    """Lengths of a batch's sequences on the CPU, whatever device the batch is on: who arranges it need not wait for the device.

    Attributes:
        tokens_S: int64, tokens of each sequence.
        targets_S: int64, targets of each sequence.
    """

    tokens_S: Tensor
    targets_S: Tensor


@dataclass
class Batch:
    """Flat tokens with offsets, and flat targets that point into them.

    Tokens of a sequence are ordered by availability; target j may read the first ``target_position_N[j]`` tokens of its
    sequence and nothing else. Position 0 is the empty history.

    Attributes:
        offsets_S1: int64 [S+1], tokens of sequence s are ``offsets[s]:offsets[s+1]``.
        token_item_T: int64, row of the item vocabulary.
        token_item_features_TI: int64 rows, features of the item.
        token_features_TK: int64 rows, features of the event (say the surface on which it happened).
        token_action_TH: float32, value of each history action squashed to [0, 1]; 0 where unknown.
        token_action_known_TH: bool, whether the value is known.
        token_time_T: int64 event time (ms); -1 for events without a clock.
        target_sequence_N: int64, sequence of the target. Targets are grouped by sequence, ascending.
        target_position_N: int64, number of tokens available to the target.
        target_time_N: int64, request time (ms).
        target_item_N: int64 row.
        target_item_features_NI: int64 rows.
        target_token_features_NK: int64 rows, the target's own event features (known at request time).
        categorical_NC: int64 rows of the context features.
        numeric_NF: float32, standardised; 0 where missing.
        present_NF: bool, false where missing.
        label_NA: float32, 0 where unknown.
        known_NA: bool, whether the label is ripe and known.
        weight_N: float32, example weights.
        row_N: int64, row of the target in its shard, to match predictions with examples.
        teacher_NA: float32, a teacher's score of each action (probability, expected count or seconds); NaN where it gave
            none. None without distillation.
        lengths: Kept by `to` when the batch leaves the CPU; None on it.
    """

    offsets_S1: Tensor
    token_item_T: Tensor
    token_item_features_TI: Tensor
    token_features_TK: Tensor
    token_action_TH: Tensor
    token_action_known_TH: Tensor
    token_time_T: Tensor
    target_sequence_N: Tensor
    target_position_N: Tensor
    target_time_N: Tensor
    target_item_N: Tensor
    target_item_features_NI: Tensor
    target_token_features_NK: Tensor
    categorical_NC: Tensor
    numeric_NF: Tensor
    present_NF: Tensor
    label_NA: Tensor
    known_NA: Tensor
    weight_N: Tensor
    row_N: Tensor
    teacher_NA: Tensor | None = None
    lengths: Lengths | None = None

    @property
    def sequences(self) -> int:
        return len(self.offsets_S1) - 1

    @property
    def tokens(self) -> int:
        return len(self.token_item_T)

    @property
    def targets(self) -> int:
        return len(self.target_item_N)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the batch on `device`."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors()}
        leaves = self.offsets_S1.device.type == "cpu" and moved["offsets_S1"].device.type != "cpu"
        return replace(self, lengths=self._lengths() if leaves else self.lengths, **moved)  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors()})  # type: ignore[arg-type]

    def _lengths(self) -> Lengths:
        targets_S = torch.bincount(self.target_sequence_N, minlength=self.sequences)
        return Lengths(self.offsets_S1.diff(), targets_S)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [(name, value) for name, value in values if isinstance(value, Tensor)]
