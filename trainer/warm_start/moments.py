"""Carries optimizer state by parameter name and row.

torch loads it by position; a vocabulary in another order, or a parameter before the others, then swaps moments without a word.
And it keeps one step count a tensor: rows that are new under a large count have moments of zero that no bias correction
lifts, and move 3 to 6.6 times as far as old ones (reference: measured for Adam with beta2 = .999). So a new row starts with
the second moment of old rows that are met as often, and with no direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.schema.hashed import AnyVocabulary
from trainer.schema.transfer import TransferPlan
from trainer.schema.vocabulary import RESERVED_ROWS
from trainer.warm_start.apply import InMemory, moved
from trainer.warm_start.places import Pair, Place
from trainer.warm_start.plan import pair
from trainer.warm_start.rows import Read, grouped_means
from trainer.warm_start.side import Side

_RATED_IDS = 1 << 20  # ids whose dates are read at once
# State -> the power of the gradient it holds; 0 for counts of steps.
STATES = {"exp_avg": 1, "exp_avg_sq": 2, "sum": 2, "last": 0, "step": 0}
_TOGETHER = {1: "mean", 2: "sum", 0: "last"}  # how states of rows that become one do (`trainer.warm_start.buckets`)


def carry_moments(
    transfer: TransferPlan, source: Side, target: Side, moments: Mapping[str, Tensor], *, new_rows: str = "as_met"
) -> dict[str, dict[str, Tensor]]:
    """Carries optimizer state by parameter name and row.

    First moments move as gradients and second moments as squared gradients: where a weight was multiplied by s, its gradient
    was divided by s. New entries start with a first moment of zero and the second moment of old ones; new rows of tables with
    that of old rows that are met as often (an octave of traffic a day). Layers inserted as identity start likewise, from the
    layer they resemble.

    Args:
        transfer: The plan that moved the weights.
        source: Production's side.
        target: The challenger's side.
        moments: ``<parameter>/<state>``: Adam's exp_avg, exp_avg_sq and step; row-wise Adagrad's sum; last, the step at which a
            row was last touched. Each is asked for once, so a mapping that reads from a file holds one at a time.
        new_rows: ``as_met``: as above. ``none``: new rows of row-wise Adagrad's sum start at zero; Adagrad keeps no count of
            steps, so such a row learns as fast as any row did when it was new, while old rows keep the rate they have earned.

    Returns:
        Parameter -> {state: value}; parameters that production did not have, and nothing resembles, start without state.

    Raises:
        CheckpointError: If production's optimizer kept a state that nobody knows how to move, or one of another shape.
    """
    by_name: dict[str, dict[str, str]] = {}
    for name in moments:
        parameter, _, state = name.rpartition("/")
        if state not in STATES:
            raise CheckpointError(
                "an optimizer state that cannot be moved",
                where=name,
                expected=" or ".join(STATES),
                remedy="start with warm_start.optimizer=reset",
            )
        by_name.setdefault(parameter, {})[state] = name
    carried: dict[str, dict[str, Tensor]] = {}
    for fate in transfer.fates:
        origin = fate.source or fate.copy_of or fate.like or ""
        if fate.target is not None and origin in by_name:
            both = replace(pair(fate, source, target, transfer.rules), old=origin)
            fresh = fate.fate == "inserted as identity"
            carried[fate.target] = {state: _state(both, state, moments[name], fresh, new_rows) for state, name in by_name[origin].items()}
    return carried


def _state(both: Pair, state: str, tensor: Tensor, fresh: bool, new_rows: str) -> Tensor:
    if tensor.ndim == 0:
        return tensor.clone()
    places = both.places()[: tensor.ndim]
    if tuple(tensor.shape) != tuple(place.size for place in places):
        raise CheckpointError(
            "an optimizer state has another shape than its parameter",
            where=f"{both.old}/{state}",
            got=tuple(tensor.shape),
            expected=tuple(place.size for place in places),
            remedy="start with warm_start.optimizer=reset",
        )
    out = torch.empty([len(place.index) for place in places], dtype=tensor.dtype)
    if fresh:
        return out.fill_(_level(state, tensor))
    read = partial(InMemory({both.old: tensor}).take, both.old)
    out = next(state_blocks(both, state, places, read, tensor.dtype, len(out)), out)
    if new_rows == "none" and state == "sum" and both.axes[0].startswith("vocab:"):
        out[torch.from_numpy(places[0].index < 0)] = 0.0
    return out


def _level(state: str, tensor: Tensor) -> float:
    return float(tensor.double().mean()) if STATES[state] == 2 else 0.0


@dataclass(frozen=True)
class StateStart:
    """What new entries of an optimizer state start as.

    Attributes:
        level: Value of new entries of widths.
        rows: float64 [groups, width of production], value of new rows by group; None where new rows start at `level`.
        group: int64 [new rows], group of each new row.
    """

    def new(self, part: slice) -> Tensor:
        """Returns float64 [some new rows, width of production]."""
        assert self.rows is not None and self.group is not None
        return self.rows[torch.from_numpy(self.group[part])]

    level: float
    rows: Tensor | None = None
    group: np.ndarray | None = None


def begin_state(both: Pair, state: str, places: list[Place], read: Read) -> StateStart:
    """Computes the start of new entries: zero for directions and for `last` (never touched), the mean for second moments.

    New rows of a table start with the mean of old rows that are met as often, an octave of events a day; where there are none,
    with that of the next more frequent ones, for a larger second moment is the safe side.
    """
    if STATES[state] != 2:
        return StateStart(0.0)
    axis, new = both.axes[0], np.flatnonzero(places[0].index < 0)
    table = axis.startswith("vocab:")
    grown = any((place.index < 0).any() for place in places[table:])
    start = StateStart(float(grouped_means(read, np.zeros(places[0].size, np.int8), None, 1).mean()) if grown else 0.0)
    if not table or not len(new):
        return start
    octave = np.concatenate([np.zeros(RESERVED_ROWS, np.int8), _octave(both.target.vocabularies[axis[6:]])])
    kept = places[0].index >= RESERVED_ROWS
    known = np.unique(octave[kept])
    if not len(known):
        return start
    group_R = np.full(places[0].size, -1, np.int8)  # there are at most 128 octaves
    for first in range(0, len(octave), _RATED_IDS):
        part = slice(first, first + _RATED_IDS)
        group_R[places[0].index[part][kept[part]]] = np.searchsorted(known, octave[part][kept[part]])
    means = grouped_means(read, group_R, None, len(known))
    return StateStart(start.level, means, np.minimum(np.searchsorted(known, octave[new]), len(known) - 1))


def state_blocks(both: Pair, state: str, places: list[Place], read: Read, dtype: torch.dtype, block_rows: int) -> Iterator[Tensor]:
    """Builds one state of one parameter, some rows at a time.

    Args:
        both: The parameter on both sides.
        state: A key of `STATES`.
        places: One place a dimension of the state (row-wise states have only the first).
        read: Reads production's rows of the state.
        dtype: Type of the state.
        block_rows: Rows of a block.

    Yields:
        The rows, in order.
    """
    begin = begin_state(both, state, places, read)
    how = _TOGETHER[STATES[state]]
    free = [replace(place, zero=np.broadcast_to(False, len(place.index))).together(how) for place in places]
    factors = [None if place.gradient is None else place.gradient ** STATES[state] for place in places]
    added = None if begin.rows is None else begin.new
    shape = [len(place.index) for place in places]
    for start in range(0, shape[0], max(block_rows, 1)):
        stop = min(start + block_rows, shape[0])
        yield moved(free, read, torch.full([stop - start, *shape[1:]], begin.level, dtype=dtype), start, stop, factors, added)


def _octave(vocabulary: AnyVocabulary) -> np.ndarray:
    """Returns int8 [ids, or buckets]: floor of log2 of each one's events a day, between its first and its last day."""
    octave = np.empty(len(vocabulary.count_V), np.int8)
    for start in range(0, len(octave), _RATED_IDS):
        part = slice(start, start + _RATED_IDS)
        days = pc.add(_days_between(vocabulary.first_seen[part], vocabulary.last_seen[part]), 1)
        rate = np.maximum(vocabulary.count_V[part], 1) / np.maximum(np.asarray(days, np.float64), 1)
        octave[part] = np.floor(np.log2(rate))
    return octave


def _days_between(first: pa.Array, last: pa.Array) -> pa.Array:
    return pc.fill_null(pc.days_between(first.cast(pa.date32()), last.cast(pa.date32())), 0)
