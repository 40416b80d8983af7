"""Where the entries of one dimension come from, and what new ones hold: the rules of exact growth.

Under RMSNorm every width grows by one rule: of the two factors of each new product exactly one is zero. Entries that a weight
*produces* on a residual stream are zero, so the stream stays zero there; entries it *produces* inside a block are free and
those *consumed* from there are zero. Both zero would be dead for ever. The gain takes sqrt(old / new), because the mean of
squares is now taken over more entries (Gesmundo & Maile 2023, arXiv 2308.06103, section 3).

Under LayerNorm zeros would move the mean and the variance. There a stream grows by whole multiples only: entries come back r
times, and what consumes them takes unequal shares that add up to one (Wang et al. 2024, LEMON, arXiv 2310.07999).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.errors import CheckpointError
from trainer.schema.transfer import AxisMove
from trainer.schema.vocabulary import RESERVED_ROWS
from trainer.warm_start.buckets import Match, Pool
from trainer.warm_start.names import Renames
from trainer.warm_start.side import Side

STREAMS = ("dim", "vector", "context")  # what blocks add to; the item vector is as wide as the first
INNER = ("ffn", "head", "heads", "context_ffn")  # inside a block: produced by one weight, consumed by another
APPENDED = ("rotary", "position")  # more of them changes nothing for what production could see
KEYED = ("numeric", "output", "history_action")
_ENTRIES = 1 << 20  # entries handled at once: beside millions of them, what numpy makes on the way is most of the memory
_SELECTS = ("vocab:", "fixed", "numeric", "history_action", "position")  # a first axis that selects rows, so the second is produced


@dataclass(frozen=True)
class Place:
    """One dimension of a tensor.

    Attributes:
        index: int64 or int32 [entries of the target], entry of the source; -1 for new ones.
        zero: bool [entries of the target], new entries that must be zero; other new ones are free.
        size: Entries of the source.
        weight: float64 [entries of the target], factor on values; None for 1.
        gradient: float64 [entries of the target], factor on what training will send back; None for 1.
        fill: Name of the fill of new entries.
        coverage: Share of the source's traffic that kept entries carry.
        pool: Entries of the source that become one; `index` then has the one with the largest share. None: one becomes one.
    """

    index: np.ndarray
    zero: np.ndarray
    size: int
    weight: np.ndarray | None = None
    gradient: np.ndarray | None = None
    fill: str = "init"
    coverage: float = 1.0
    pool: Pool | None = None

    @property
    def moves(self) -> bool:
        """Whether anything changes along this dimension."""
        same = len(self.index) == self.size and all(
            np.array_equal(part, np.arange(start, start + len(part))) for start, part in _parts(self.index)
        )
        return not (same and self.weight is None)

    def move(self, axis: str) -> AxisMove:
        """Describes the dimension for the report."""
        kept = int(self.arrived().sum())
        new = len(self.index) - kept if self.pool is None else int((self.index < 0).sum())
        scale = float(self.weight[0]) if self.weight is not None and self.fill != "copy" else 1.0
        return AxisMove(axis=axis, kept=kept, new=new, dropped=self.size - kept, coverage=self.coverage, fill=self.fill, scale=scale)

    def together(self, how: str) -> Place:
        """The same where several entries become one in another way (`trainer.warm_start.buckets.Pool.how`)."""
        return self if self.pool is None else replace(self, pool=replace(self.pool, how=how))

    def arrived(self) -> np.ndarray:
        """Returns bool [entries of the source]: which of them the target has."""
        if self.pool is not None:
            return np.ones(self.size, bool)  # each becomes part of some entry
        mask = np.zeros(self.size + 1, bool)
        for _, part in _parts(self.index):
            mask[part] = True  # the -1 of new entries marks the one behind the last
        return mask[:-1]


def _parts(index: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the parts of an index, each with the place of its first entry."""
    for start in range(0, len(index), _ENTRIES):
        yield start, index[start : start + _ENTRIES]


@dataclass(frozen=True)
class Pair:
    """A tensor on both sides, as the rules see it.

    Attributes:
        source: Production.
        target: The challenger.
        old: Name in production.
        new: Name in the challenger.
        renames: Rename rules, for keys.
        new_ids: Fill of new rows of tables.
    """

    source: Side
    target: Side
    old: str
    new: str
    renames: Renames
    new_ids: str = "oov"

    @property
    def axes(self) -> Sequence[str]:
        return self.target.axes[self.new]

    @property
    def is_gain(self) -> bool:
        return self.new.endswith(".gain")

    def places(self) -> list[Place]:
        """Returns one place a dimension.

        Raises:
            CheckpointError: If a keyed dimension does not have the size of its keys.
        """
        return [self._place(dimension) for dimension in range(len(self.axes))]

    def _place(self, dimension: int) -> Place:
        axis, old_axis = self.axes[dimension], self.source.axes[self.old][dimension]
        before, after = self.source.shapes[self.old][dimension], self.target.shapes[self.new][dimension]
        if is_keyed(axis):
            return self._keyed(axis, old_axis, before, after)
        if before == after and not (axis == "head" and self.source.heads != self.target.heads):
            return Place(np.arange(before), np.zeros(after, bool), before)
        if axis == "head":
            return self._head(dimension, before, after)
        if axis in STREAMS and self.source.layer_normed(axis) and after % before == 0:
            return self._repeated(axis, dimension, before, after)
        index = np.where(np.arange(after) < before, np.arange(after), -1)
        zero = (index < 0) & self._zero(axis, dimension)
        weight = np.full(after, (before / after) ** 0.5) if self.is_gain else None
        gradient = None if weight is None else 1 / weight
        return Place(index, zero, before, weight, gradient, _fill(index, zero))

    def _zero(self, axis: str, dimension: int) -> bool:
        """Whether new entries along a width must be zero."""
        if axis not in STREAMS:
            return dimension == 1 and axis in INNER and axis != "heads"
        if self.is_gain:
            return False
        return dimension == 0 or self.axes[0].startswith(_SELECTS)

    def _head(self, dimension: int, before: int, after: int) -> Place:
        """Entries of heads, head by head. New heads are free and reach nothing. In a widened head new keys and values are zero, so
        neither its scores nor a norm over the head notice them; queries, gates and what reads them are free.
        """
        old_width, width = before // self.source.heads, after // self.target.heads
        head, entry = np.divmod(np.arange(after), width)
        kept = (head < self.source.heads) & (entry < old_width)
        index = np.where(kept, head * old_width + entry, -1)
        wider = (head < self.source.heads) & ~kept
        reads = dimension == 1
        held = self.new.split(".")[-2] in ("key", "value")
        zero = ~kept & ~wider if reads else wider & held
        weight = np.full(after, (old_width / width) ** 0.5) if self.is_gain and width != old_width else None
        return Place(index, zero, before, weight, None if weight is None else 1 / weight, _fill(index, zero))

    def _repeated(self, axis: str, dimension: int, before: int, after: int) -> Place:
        """A stream under LayerNorm: entries come back a whole number of times."""
        index = np.arange(after) % before
        share = np.repeat(shares(after // before), before)
        reads = dimension == 1 and not self.axes[0].startswith(_SELECTS)
        splits = reads != (axis == "vector")  # the item vector itself is split, so that its product with the user vector stays
        splits = splits and (reads or dimension == 0)
        weight, gradient = (share, None) if splits else (None, share)
        return Place(index, np.zeros(after, bool), before, weight, gradient, "copy")

    @property
    def match(self) -> Match | None:
        """Where the rows of a table come from; None for any other tensor."""
        axis, old_axis = next(iter(self.axes), ""), next(iter(self.source.axes[self.old]), "")
        if not (axis.startswith("vocab:") and old_axis.startswith("vocab:")):
            return None
        return self.target.match(self.source.vocabularies[old_axis[6:]], axis[6:])

    def _keyed(self, axis: str, old_axis: str, before: int, after: int) -> Place:
        table = self.match if axis.startswith("vocab:") else None
        index, traffic = self._by_key(axis) if table is None else (table.index, self.source.vocabularies[old_axis[6:]].count_V)
        reserved = 0 if table is None else RESERVED_ROWS
        if len(index) != after or reserved + len(traffic) != before:
            raise CheckpointError(
                "a tensor does not fit its keys",
                where=self.new,
                got=f"{before} entries in production, {after} in the challenger",
                expected=f"{reserved + len(traffic)} and {len(index)} entries of {axis}",
            )
        pool = None if table is None else table.pool
        kept = Place(index, index, before, pool=pool).arrived()
        total = traffic.sum(dtype=np.float64)
        arrived = traffic.sum(dtype=np.float64, where=kept[reserved:])
        coverage = float(arrived / total) if total > 0 else float(kept.mean()) if before else 1.0
        start = None if table is None else table.fill or self.new_ids
        fill = start if start is not None else "init" if axis == "output" and self.new.endswith(".bias") else "zero"
        zero = index < 0 if fill == "zero" else np.broadcast_to(False, len(index))
        return Place(index, zero, before, fill=fill, coverage=coverage, pool=pool)

    def _by_key(self, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns integers [target entries]: source entry of the same key, -1 for new keys; and one for each of the source's keys."""
        known = list(self.target.keys[axis])
        renamed = [self.renames(key, known) for key in self.source.keys[axis]]
        place = {key: number for number, key in enumerate(renamed)}
        if len(place) != len(renamed):
            raise CheckpointError(
                "two keys would become one", where="warm_start.rename", got=", ".join(renamed), expected=f"different {axis} keys"
            )
        return np.array([place.get(key, -1) for key in known], np.int64), np.ones(len(renamed))

    def refusal(self) -> str | None:
        """Returns why the widths or rows of this tensor cannot move and keep the function, or None."""
        if self.match is not None and self.match.refusal:
            return self.match.refusal
        for dimension, axis in enumerate(self.axes):
            if is_keyed(axis):
                continue
            before, after = self.source.shapes[self.old][dimension], self.target.shapes[self.new][dimension]
            reason = self._widths(axis, before, after)
            if reason:
                return reason
        return self._eps()

    def _widths(self, axis: str, before: int, after: int) -> str | None:
        if axis == "head":
            old_width, width = before // self.source.heads, after // self.target.heads
            if self.target.heads < self.source.heads or width < old_width:
                return f"cannot shrink heads from {self.source.heads} x {old_width} to {self.target.heads} x {width} and keep the function"
        elif after < before:
            return f"cannot shrink {axis} from {before} to {after} and keep the function"
        elif after > before and axis in STREAMS and self.source.layer_normed(axis) and after % before:
            return f"LayerNorm runs over {axis}: it grows by whole multiples of {before} only, not to {after}"
        elif after > before and axis not in (*STREAMS, *INNER, *APPENDED):
            return f"no exact rule grows {axis} from {before} to {after}"
        return None

    def _eps(self) -> str | None:
        """A norm over more entries needs its eps as the sum of squares needs it: eps x width stays (LayerNorm: eps stays)."""
        if not self.is_gain:
            return None
        axis, old_size, size = self.axes[0], self.source.shapes[self.old][0], self.target.shapes[self.new][0]
        layer_norm = self.source.layer_normed(axis)
        widths = (old_size // self.source.heads, size // self.target.heads) if axis == "head" else (old_size, size)
        had, has = (side.eps_at(width, layer_norm) for side, width in zip((self.source, self.target), widths, strict=True))
        wanted = had if layer_norm else had * widths[0] / widths[1]
        if abs(has - wanted) <= 1e-6 * wanted:
            return None
        return f"the eps of this norm is {has:.6g}; to keep the function it must be {wanted:.6g}"


def is_keyed(axis: str) -> bool:
    """Tells whether entries of an axis have keys."""
    return axis.startswith("vocab:") or axis in KEYED


def shares(copies: int) -> np.ndarray:
    """Returns float64 [copies]: different shares that add up to one. Equal ones would leave the copies alike for ever."""
    return np.arange(1, copies + 1) / (copies * (copies + 1) / 2)


def _fill(index: np.ndarray, zero: np.ndarray) -> str:
    new = index < 0
    if not new.any() or not zero.any():
        return "init"
    return "zero" if zero[new].all() else "part"
