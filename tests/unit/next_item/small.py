"""Sequences by hand, for the tests of this folder."""

import numpy as np
import pyarrow as pa

from trainer.next_item.sequences import Sequences


def sequences(*users, items=None):
    """Sequences of item codes, a list a user."""
    flat = [item for user in users for item in user]
    count = items or max(flat) + 1
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    return Sequences(pa.array(range(len(users))), pa.array(range(count)), offsets, np.array(flat, np.int64))


def unit(shard, number):
    """(history, [(position, target item)]) of a unit, as item codes."""
    tokens = slice(*shard.token_offsets_U1[number : number + 2])
    targets = slice(*shard.target_offsets_U1[number : number + 2])
    asked = zip(shard.target_position_N[targets].tolist(), (shard.target_item_N[targets] - 2).tolist(), strict=True)
    return (shard.token_item_T[tokens] - 2).tolist(), list(asked)
