"""The transfer plan: what happens to every tensor of both sides. Pure: reads names, shapes, axes and keys, never weights.

Keyed axes (ids, features, actions) are matched by key, never by position. Two kinds of width may grow, and stay exact by one
rule: entries that a weight *produces* on a grown axis are free (they start as the challenger initialised them), entries that
a weight *consumes* from it are zero, so what the new units compute reaches nothing until training moves it. Exactly one
factor of each product is zero: both zero would be dead for ever (reference: Gesmundo & Maile, arXiv 2308.06103, section 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import CheckpointError
from trainer.schema.transfer import AxisMove, TensorFate, TransferPlan
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary

GROWING = ("ffn", "head", "heads", "context_ffn")  # inner widths: produced by one weight, consumed by another
TRUNK_BLOCKS = ("blocks.", "rotary.")
_BLOCK = re.compile(r"^(.*\b(?:blocks|layers))\.(\d+)\.")


@dataclass(frozen=True)
class Side:
    """One side of a transfer as the planner sees it.

    Attributes:
        shapes: Tensor -> shape.
        axes: Tensor -> meaning of each dimension.
        keys: Keyed axis without a vocabulary (``numeric``, ``output``, ``history_action``) -> its keys in order.
        vocabularies: Vocabulary name -> ids and traffic.
        architecture: Name of the architecture; blocks of different ones share names but no meaning.
        head_dim: Width of a head: added heads are appended, a wider head would have its new entries inside each head.
        sha256: Hash of the bundle, empty for a ranker that is not a bundle yet.
    """

    shapes: Mapping[str, Sequence[int]]
    axes: Mapping[str, Sequence[str]]
    keys: Mapping[str, Sequence[str]]
    vocabularies: Mapping[str, Vocabulary]
    architecture: str
    head_dim: int
    sha256: str = ""

    @classmethod
    def of(cls, ranker: Any, vocabularies: Mapping[str, Vocabulary], sha256: str = "") -> Side:
        """Describes a ranker (`models.ranker.Ranker`)."""
        shape = ranker.shape
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in ranker.state_dict().items()},
            axes=ranker.axes(),
            keys={"numeric": shape.numeric, "output": shape.outputs, "history_action": shape.history_actions},
            vocabularies=vocabularies,
            architecture=shape.architecture,
            head_dim=shape.head_dim,
            sha256=sha256,
        )


def plan(source: Side, target: Side, new_ids: str = "oov") -> TransferPlan:
    """Plans the transfer.

    Args:
        source: Production.
        target: The challenger, freshly initialised.
        new_ids: What the rows of new ids hold: ``oov``, ``mean`` or ``zero``.

    Returns:
        One fate a tensor; `refused` ones are listed, and `apply` will not run such a plan.
    """
    fates = [_fate(name, source, target, new_ids) for name in target.shapes]
    used = {fate.source for fate in fates}
    fates += [
        TensorFate(target=None, source=name, fate="dropped", shape=list(shape), reason="the challenger has no such tensor")
        for name, shape in source.shapes.items()
        if name not in used
    ]
    elements: dict[str, int] = {}
    for fate in fates:
        elements[fate.fate] = elements.get(fate.fate, 0) + int(np.prod(fate.shape))
    inexact = any(fate.fate in ("dropped", "refused") for fate in fates) or new_ids != "oov"
    lost = any(move.dropped for fate in fates for move in fate.moves)
    return TransferPlan(source=source.sha256, fates=fates, elements=elements, exact=not (inexact or lost))


def _fate(name: str, source: Side, target: Side, new_ids: str) -> TensorFate:
    shape = list(target.shapes[name])
    axes = target.axes[name]
    if source.architecture != target.architecture and name.startswith(TRUNK_BLOCKS):
        return TensorFate(
            target=name, source=None, fate="initialised", shape=shape, reason=f"blocks of {source.architecture} mean something else"
        )
    if name not in source.shapes:
        return _fresh(name, shape, axes, source)
    if tuple(source.axes[name]) != tuple(axes):
        return TensorFate(
            target=name,
            source=name,
            fate="refused",
            shape=shape,
            reason=f"its dimensions mean {', '.join(axes)}, in production {', '.join(source.axes[name])}",
        )
    moves: list[AxisMove] = []
    for dimension, axis in enumerate(axes):
        move = _move(axis, dimension, name, source, target, new_ids)
        if isinstance(move, str):
            return TensorFate(target=name, source=name, fate="refused", shape=shape, reason=move)
        if move is not None:
            moves.append(move)
    keyed = [move for move in moves if is_keyed(move.axis)]
    fate = "copied" if not moves else "row-remapped" if len(keyed) == len(moves) else "grown"
    return TensorFate(target=name, source=name, fate=fate, shape=shape, moves=moves)


def _fresh(name: str, shape: list[int], axes: Sequence[str], source: Side) -> TensorFate:
    """A tensor that production does not have: part of a new block, a new feature's table, or something else new."""
    block = _BLOCK.match(name)
    if block:
        siblings = {int(m.group(2)) for m in map(_BLOCK.match, source.shapes) if m and m.group(1) == block.group(1)}
        if siblings and int(block.group(2)) > max(siblings):
            zero = writes_residual(axes)
            reason = "output of a new block: zero, so the block adds nothing yet" if zero else "inner part of a new block"
            return TensorFate(target=name, source=None, fate="inserted as identity", shape=shape, reason=reason)
    if axes and axes[0].startswith("vocab:"):
        return TensorFate(
            target=name,
            source=None,
            fate="initialised",
            shape=shape,
            moves=[_zero(axes[0], shape[0])],
            reason="table of a new feature: zero, so old outputs stay",
        )
    return TensorFate(target=name, source=None, fate="initialised", shape=shape, reason="production has no such tensor")


def _zero(axis: str, size: int) -> AxisMove:
    return AxisMove(axis=axis, kept=0, new=size, dropped=0, fill="zero")


def writes_residual(axes: Sequence[str]) -> bool:
    """Tells whether a weight of a block writes into the residual stream: [width, inner] with an inner width as input."""
    return len(axes) == 2 and axes[0] in ("dim", "context") and axes[1] in GROWING


def is_keyed(axis: str) -> bool:
    """Tells whether entries of an axis have keys."""
    return axis.startswith("vocab:") or axis in ("numeric", "output", "history_action")


def _move(axis: str, dimension: int, name: str, source: Side, target: Side, new_ids: str) -> AxisMove | str | None:
    """Returns how an axis moves, None if it does not, or the reason why it cannot."""
    before, after = source.shapes[name][dimension], target.shapes[name][dimension]
    if is_keyed(axis):
        index, traffic = axis_index(axis, source, target)
        if len(index) != after:
            raise CheckpointError("a tensor does not fit its axis", where=name, got=after, expected=f"{len(index)} entries of {axis}")
        kept = int((index >= 0).sum())
        if kept == before == after and np.array_equal(index, np.arange(after)):
            return None
        mask = np.zeros(before, bool)
        mask[index[index >= 0]] = True
        total = traffic.sum()
        coverage = float(traffic[mask].sum() / total) if total > 0 else 1.0
        fill = new_ids if axis.startswith("vocab:") else "init" if axis == "output" else "zero"
        return AxisMove(axis=axis, kept=kept, new=after - kept, dropped=before - kept, coverage=coverage, fill=fill)
    if before == after:
        return None
    same_heads = axis != "head" or source.head_dim == target.head_dim
    if axis in GROWING and after > before and same_heads:
        return AxisMove(axis=axis, kept=before, new=after - before, dropped=0, fill="init" if dimension == 0 or axis == "heads" else "zero")
    verb = "shrink" if after < before else "grow"
    return f"cannot {verb} {axis} from {before} to {after} and keep the function; keep model.{axis} or start with warm_start=none"


def axis_index(axis: str, source: Side, target: Side) -> tuple[np.ndarray, np.ndarray]:
    """Maps the entries of a keyed axis.

    Returns:
        int64 [target entries]: source entry of the same key, -1 for a new key; and float64 [source entries]: traffic.
    """
    if axis.startswith("vocab:"):
        old, new = source.vocabularies[axis[6:]], target.vocabularies[axis[6:]]
        found = np.asarray(pc.fill_null(pc.index_in(new.keys.cast(old.keys.type), value_set=old.keys), -1), np.int64)
        index = np.concatenate([np.arange(RESERVED_ROWS), np.where(found >= 0, found + RESERVED_ROWS, -1)])
        return index, np.concatenate([np.zeros(RESERVED_ROWS), old.count_V.astype(np.float64)])
    found = pc.index_in(pa.array(list(target.keys[axis]), pa.string()), value_set=pa.array(list(source.keys[axis]), pa.string()))
    return np.asarray(pc.fill_null(found, -1), np.int64), np.ones(len(source.keys[axis]))


def refused(transfer: TransferPlan) -> None:
    """Raises if a plan refuses a tensor.

    Raises:
        CheckpointError: Naming the first refused tensor and why.
    """
    for fate in transfer.fates:
        if fate.fate == "refused":
            count = sum(other.fate == "refused" for other in transfer.fates)
            raise CheckpointError(
                f"the warm start is refused: {count} tensor{'s' * (count > 1)} cannot be carried over",
                where=fate.target,
                got=fate.reason,
                remedy="change the model so that it extends production's, or start with warm_start=none",
            )
