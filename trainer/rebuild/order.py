"""The data structures of the kernels: entries sorted by (group, time), counted up to instants that are asked in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ROOM = 1 << 62

Ties = Callable[[np.ndarray], list[np.ndarray]]
"""Given entries (positions in the input), returns the columns that order those which tie, the first one first."""


class GroupedTimes:
    """Entries in order of (group, time).

    Group and time are packed into one int64, so that a search over all groups is one `searchsorted`. Where they do not fit,
    times are replaced by their ranks.

    Attributes:
        order_N: Input position of each sorted entry.
    """

    def __init__(self, group_N: np.ndarray, time_N: np.ndarray, ties: Ties | None = None) -> None:
        """Sorts.

        Args:
            group_N: int64, 0 or more.
            time_N: int64 milliseconds.
            ties: Breaks ties, the input order the last ones. Default: they may come in any order, as counts up to an instant allow.
        """
        groups = int(group_N.max(initial=0)) + 1
        self._origin = int(time_N.min()) if len(time_N) else 0
        self._span = (int(time_N.max()) - self._origin if len(time_N) else 0) + 3
        self._ticks_T = np.unique(time_N) if groups * self._span >= _ROOM else None
        if self._ticks_T is not None:
            self._span = len(self._ticks_T) + 2
        packed_N = self._pack(group_N, time_N)
        self.order_N = np.argsort(packed_N)  # a stable sort takes three times as long, and few entries tie
        self._packed_N = packed_N[self.order_N]
        if ties is not None:
            _break_ties(self.order_N, self._packed_N, ties)
        self._groups = groups

    def up_to(self, group_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """Returns how many entries of all groups sort at or before (group, time): int64 [Q]; 0 for group -1."""
        return np.searchsorted(self._packed_N, self._pack(group_Q, time_Q), side="right")

    def before_group(self, group_Q: np.ndarray) -> np.ndarray:
        """Returns how many entries sort before the group; 0 for group -1."""
        return np.where(group_Q >= 0, self._begin_G[np.minimum(group_Q, len(self._begin_G) - 1)], 0)

    @cached_property
    def _begin_G(self) -> np.ndarray:
        return np.searchsorted(self._packed_N, np.arange(self._groups + 1) * self._span)

    def _pack(self, group_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
        if self._ticks_T is not None:
            offset_N = np.searchsorted(self._ticks_T, time_N, side="right")
        else:
            offset_N = np.clip(time_N - (self._origin - 1), 0, self._span - 1)
        return group_N * self._span + offset_N


class Queries:
    """The distinct (group, time) that are asked, ascending: neighbours share cache lines, and what many rows ask is searched once.

    Attributes:
        group_U: Group of each distinct query; -1 for an unknown key.
        time_U: Its instant.
    """

    def __init__(self, group_Q: np.ndarray, time_Q: np.ndarray) -> None:
        """Sorts.

        Args:
            group_Q: int64, -1 or more.
            time_Q: int64 milliseconds.
        """
        packed_Q = _packed(group_Q, time_Q)
        order_Q = np.argsort(packed_Q)
        sorted_Q = packed_Q[order_Q]
        first_Q = np.r_[True, sorted_Q[1:] != sorted_Q[:-1]] if len(sorted_Q) else np.zeros(0, bool)
        self._place_Q = np.empty(len(order_Q), np.int64)
        self._place_Q[order_Q] = np.cumsum(first_Q) - 1
        asked_U = order_Q[first_Q]
        self.group_U, self.time_U = group_Q[asked_U], time_Q[asked_U]

    def expand(self, value_U: np.ndarray) -> np.ndarray:
        """Returns the value of each distinct query at every row that asked it: [Q]."""
        return value_U[self._place_Q]


def ranks(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the rank of each id in the order of the ids themselves: int64 [N]."""
    values = pc.unique(column.combine_chunks())
    values = values.take(pc.sort_indices(values))
    return np.asarray(pc.index_in(column, value_set=values), np.int64)


def _break_ties(order_N: np.ndarray, sorted_N: np.ndarray, ties: Ties) -> None:
    """Puts entries of equal value in order, in place."""
    same_N = np.r_[False, sorted_N[1:] == sorted_N[:-1], False]
    tied_M = np.flatnonzero(same_N[1:] | same_N[:-1])
    if len(tied_M):
        entry_M = order_N[tied_M]
        order_N[tied_M] = entry_M[np.lexsort((entry_M, *reversed(ties(entry_M)), sorted_N[tied_M]))]


def _packed(group_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """Returns one int64 that sorts like (group, time)."""
    if not len(time_N):
        return group_N
    offset_N = time_N - int(time_N.min())
    if (int(group_N.max()) + 2) * (int(offset_N.max()) + 1) >= _ROOM:
        offset_N = np.unique(time_N, return_inverse=True)[1]
    return group_N * (int(offset_N.max()) + 1) + offset_N


def running_max(group_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """Returns the running maximum within each group; groups are ascending, values int64 and not negative."""
    span = int(value_N.max(initial=0)) + 1
    if int(group_N.max(initial=0) + 1) * span < _ROOM:
        return np.maximum.accumulate(group_N * span + value_N) % span
    ranks_V, rank_N = np.unique(value_N, return_inverse=True)
    return ranks_V[np.maximum.accumulate(group_N * len(ranks_V) + rank_N) % len(ranks_V)]
