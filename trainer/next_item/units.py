"""Units of training and questions of the judgement, as shards: so the loaders, batches and resume of `trainer.data` serve both.

A target at position p of a unit reads the unit's first p tokens, and is the event behind them.
"""

from __future__ import annotations

import numpy as np

from trainer.data import Shard
from trainer.data.encode import NO_CLOCK
from trainer.next_item.sequences import HELD_OUT, Sequences
from trainer.schema.vocabulary import RESERVED_ROWS

VALIDATION, TEST = 2, 1  # events from the end of a sequence


def training_units(sequences: Sequences, max_history: int) -> Shard:
    """Cuts the training events into units of at most `max_history` tokens; every training event is a target exactly once.

    Units are cut from the end of a sequence, so that its latest ones are full, as they are when it is judged. The first event
    of a user is predicted from the empty history; a unit in the middle of a sequence has no empty history to learn from.

    Args:
        sequences: All events.
        max_history: L.
    """
    begin_U, end_U = sequences.offsets_U1[:-1], sequences.training_end_U
    tokens_U = end_U - begin_U - 1  # the last training event is a target only
    units_U = np.maximum(-(-tokens_U // max_history), 1)
    user_N = np.repeat(np.arange(sequences.users), units_U)
    from_end_N = np.cumsum(units_U)[user_N] - 1 - np.arange(len(user_N))
    stop_N = end_U[user_N] - 1 - from_end_N * max_history
    first_N = np.maximum(stop_N - max_history, begin_U[user_N])
    return cut_units(sequences, user_N, first_N, stop_N, np.where(first_N == begin_U[user_N], 0, 1))


def questions(sequences: Sequences, which: int, max_history: int) -> Shard:
    """Asks each judged user for one held-out event, given the last `max_history` events before it.

    The event before the test item is the validation item: it belongs to the history of the test question.

    Args:
        sequences: All events.
        which: `VALIDATION` or `TEST`.
        max_history: L.
    """
    if which not in (VALIDATION, TEST):
        raise ValueError(f"held out are the last {HELD_OUT} events; {which} from the end is none of them")
    user_N = np.flatnonzero(sequences.judged_U)
    stop_N = sequences.offsets_U1[1:][user_N] - which
    first_N = np.maximum(stop_N - max_history, sequences.offsets_U1[:-1][user_N])
    return cut_units(sequences, user_N, first_N, stop_N, stop_N - first_N)


def seen_before(sequences: Sequences, user_N: np.ndarray, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists what each user has seen before a held-out event: the whole history, not only what a ranker reads.

    Returns:
        (place in `user_N`, item) of every such event, int64 each.
    """
    begin_N = sequences.offsets_U1[user_N]
    length_N = sequences.offsets_U1[user_N + 1] - which - begin_N
    return np.repeat(np.arange(len(user_N)), length_N), sequences.item_E[_ranges(begin_N, length_N)]


def cut_units(sequences: Sequences, user_N: np.ndarray, first_N: np.ndarray, stop_N: np.ndarray, position_N: np.ndarray) -> Shard:
    """Builds units with the tokens ``[first, stop)`` and the targets from `position_N` up to the one behind the last token."""
    row_E = sequences.item_E + RESERVED_ROWS
    tokens_N = stop_N - first_N
    targets_N = tokens_N - position_N + 1
    target_E = _ranges(first_N + position_N, targets_N)
    tokens, targets = int(tokens_N.sum()), len(target_E)

    def zeros(rows: int, kind: type = np.int64) -> np.ndarray:
        return np.zeros((rows, 0), kind)

    return Shard(
        token_offsets_U1=_offsets(tokens_N),
        target_offsets_U1=_offsets(targets_N),
        token_item_T=row_E[_ranges(first_N, tokens_N)],
        token_item_features_TI=zeros(tokens),
        token_features_TK=zeros(tokens),
        token_action_TH=zeros(tokens, np.float32),
        token_action_known_TH=zeros(tokens, np.bool_),
        token_time_T=np.full(tokens, NO_CLOCK, np.int64),
        target_position_N=target_E - np.repeat(first_N, targets_N),
        target_time_N=np.full(targets, NO_CLOCK, np.int64),
        target_item_N=row_E[target_E],
        target_item_features_NI=zeros(targets),
        target_token_features_NK=zeros(targets),
        categorical_NC=zeros(targets),
        numeric_NF=zeros(targets, np.float32),
        present_NF=zeros(targets, np.bool_),
        label_NA=zeros(targets, np.float32),
        known_NA=zeros(targets, np.bool_),
        weight_N=np.ones(targets, np.float32),
        row_N=np.repeat(user_N, targets_N),
    )


def _offsets(length_N: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64)


def _ranges(first_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """Concatenates ``[first, first + length)``."""
    return np.arange(int(length_N.sum())) + np.repeat(first_N - _offsets(length_N)[:-1], length_N)
