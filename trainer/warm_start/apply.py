"""Carries out a transfer plan on weights, tensor by tensor, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.schema.transfer import TensorFate, TransferPlan
from trainer.schema.vocabulary import PAD_ROW
from trainer.warm_start.places import Place
from trainer.warm_start.plan import pair, refused, starts_zero
from trainer.warm_start.rows import BLOCK_ROWS, Read, mean_row, new_rows
from trainer.warm_start.side import Side


class Rows(Protocol):
    """Tensors whose rows can be read without holding the whole: a folder of shards, or tensors in memory."""

    def take(self, name: str, index: np.ndarray) -> Tensor:
        """Returns rows (entries of the first dimension) of a tensor by int64 index."""


class InMemory:
    """Tensors in memory as `Rows`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def take(self, name: str, index: np.ndarray) -> Tensor:
        """Returns rows of a tensor."""
        return self.tensors[name][torch.from_numpy(index)]


class Folded:
    """Production's tensors, with the mean rows of removed features' tables added to what every input meets instead."""

    def __init__(self, transfer: TransferPlan, source: Side, tensors: Rows) -> None:
        self.tensors = tensors
        self.added: dict[str, Tensor] = {}
        self.tables = {name for name, axes in source.axes.items() if axes[0].startswith("vocab:")}
        for fate in transfer.fates:
            for signed in fate.folds:
                table = signed.removeprefix("-")
                mean = mean_row(partial(tensors.take, table), source.vocabularies[source.axes[table][0].removeprefix("vocab:")])
                name = str(fate.source)
                self.added[name] = self.added.get(name, 0.0) + (-mean if signed.startswith("-") else mean)

    def take(self, name: str, index: np.ndarray) -> Tensor:
        """Returns rows of a tensor; the pad row stays zero."""
        rows = self.tensors.take(name, index)
        if name not in self.added:
            return rows
        added = self.added[name].expand(len(index), -1) if rows.ndim > 1 else self.added[name][torch.from_numpy(index)]
        if name in self.tables:
            added = added * torch.from_numpy(index != PAD_ROW)[:, None]
        return (rows.double() + added).to(rows.dtype)


def apply(
    transfer: TransferPlan, source: Side, target: Side, weights: Mapping[str, Tensor], initial: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, Tensor]:
    """Builds the challenger's weights.

    Args:
        transfer: The plan.
        source: Production's side of it.
        target: The challenger's side of it.
        weights: Production's tensors.
        initial: The challenger's freshly initialised tensors; new entries come from here unless the plan fills them.
        seed: Seed of the noise on new rows.

    Returns:
        Tensor -> value, for every tensor of the challenger.

    Raises:
        CheckpointError: If the plan refuses a tensor, or too little of production arrives.
    """
    refused(transfer)
    old = Folded(transfer, source, InMemory(weights))
    result: dict[str, Tensor] = {}
    for fate in transfer.fates:
        if fate.target is not None:
            fresh = initial[fate.target]
            blocks = tensor_blocks(fate, transfer, source, target, old, lambda rows, fresh=fresh: fresh[rows].clone(), len(fresh), seed)  # type: ignore[misc]
            result[fate.target] = next(blocks, fresh.clone())
    return result


def tensor_blocks(
    fate: TensorFate, transfer: TransferPlan, source: Side, target: Side, old: Rows,
    initial: Callable[[slice], Tensor], block_rows: int, seed: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """Builds one tensor of the challenger, some rows at a time, so that no table need be held.

    Args:
        fate: Its fate.
        transfer: The plan.
        source: Production's side.
        target: The challenger's side.
        old: Production's tensors.
        initial: Returns rows of the freshly initialised tensor, to be overwritten.
        block_rows: Rows of a block.
        seed: Seed of the noise on new rows.

    Yields:
        The rows, in order; nothing for a tensor without rows.
    """
    rules, size = transfer.rules, target.shapes[fate.target or ""][0]
    blocks = [slice(start, min(start + block_rows, size)) for start in range(0, size, max(block_rows, 1))]
    origin = fate.source or fate.copy_of
    if origin is None:
        for rows in blocks:
            yield _blended(fate, transfer, target, initial(rows).zero_() if starts_zero(fate, target) else initial(rows), initial, rows)
        return

    def read(index: np.ndarray) -> Tensor:
        return old.take(origin, index)

    both = pair(fate, source, target, rules)
    places = both.places()
    added = None
    if both.axes[0].startswith("vocab:") and both.new_ids != "zero" and bool((places[0].index < 0).any()):
        added = new_rows(both, places[0].index, read, rules.noise, seed).__getitem__
    factors = [place.weight for place in places]
    for rows in blocks:
        # No name for the block: it would live on while the next one is built.
        yield _blended(fate, transfer, target, moved(places, read, initial(rows), rows.start, rows.stop, factors, added), initial, rows)


def moved(
    places: Sequence[Place],
    read: Read,
    out: Tensor,
    start: int,
    stop: int,
    factors: Sequence[np.ndarray | None],
    added: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """Fills rows [start, stop) of a tensor from production's.

    Args:
        places: One place a dimension.
        read: Reads production's rows.
        out: The rows, holding what new entries start as; overwritten.
        start: First row.
        stop: Row behind the last.
        factors: Factor on entries of each dimension; None for 1.
        added: Returns float64 [new rows, width of production] for some of the new ids, counted in row order; None leaves them as `out`
            has them.

    Returns:
        `out`.
    """
    for dimension, place in enumerate(places):
        zero = place.zero[start:stop] if dimension == 0 else place.zero
        if zero.any():
            out.index_fill_(dimension, torch.from_numpy(np.flatnonzero(zero)), 0.0)
    index = places[0].index[start:stop].astype(np.int64, copy=False)
    kept = np.flatnonzero(index >= 0)
    kept = kept[np.argsort(index[kept], kind="stable")]  # ascending: a disk then reads forward
    for first in range(0, len(kept), BLOCK_ROWS):
        rows = kept[first : first + BLOCK_ROWS]
        factor = None if factors[0] is None else factors[0][start:stop][rows]
        values = read(index[rows]) if places[0].pool is None else places[0].pool.take(read, start + rows)
        _write(out, rows, values, places[1:], [factor, *factors[1:]])
    if added is not None and (index < 0).any():
        earlier = int((places[0].index[:start] < 0).sum())
        rows = np.flatnonzero(index < 0)
        _write(out, rows, added(slice(earlier, earlier + len(rows))), places[1:], [None, *factors[1:]])
    return out


def _write(out: Tensor, rows: np.ndarray, values: Tensor, places: Sequence[Place], factors: Sequence[np.ndarray | None]) -> None:
    """Writes some rows: columns are taken, scaled in float64 where they are, and put into their places."""
    target = [rows]
    for dimension, place in enumerate(places, start=1):
        kept = np.flatnonzero(place.index >= 0)
        if place.moves:
            values = values.index_select(dimension, torch.from_numpy(place.index[kept]))
        target.append(kept)
    for dimension, factor in enumerate(factors):
        if factor is not None:
            shape = [-1 if other == dimension else 1 for other in range(values.ndim)]
            values = values.double() * torch.from_numpy(factor[target[dimension]] if dimension else factor).view(shape)
    whole = all(len(entries) == out.shape[dimension] for dimension, entries in enumerate(target[1:], start=1))
    index = (torch.from_numpy(rows),) if whole else tuple(map(torch.from_numpy, np.ix_(*target)))
    out[index] = values.to(out.dtype)


def _blended(
    fate: TensorFate, transfer: TransferPlan, target: Side, warm: Tensor, initial: Callable[[slice], Tensor], rows: slice
) -> Tensor:
    """Shrinks and perturbs a matrix (Ash & Adams 2020): tables, norms, biases and other vectors stay as they are."""
    rules, axes = transfer.rules, target.axes[fate.target or ""]
    if (rules.shrink, rules.perturb) == (1.0, 0.0) or len(axes) < 2 or axes[0] not in MIXED:
        return warm
    return warm * rules.shrink + initial(rows) * rules.perturb


def new_entries(transfer: TransferPlan, source: Side, target: Side) -> dict[str, Tensor]:
    """Returns, for every tensor outside the tables, bool of its shape: the entries that production did not have."""
    found = {}
    for fate in transfer.fates:
        if fate.target is None or fate.family == "tables":
            continue
        shape = tuple(target.shapes[fate.target])
        if not (fate.source or fate.copy_of):
            found[fate.target] = torch.ones(shape, dtype=torch.bool)
            continue
        found[fate.target] = torch.zeros(shape, dtype=torch.bool)
        for dimension, place in enumerate(pair(fate, source, target, transfer.rules).places()):
            found[fate.target].index_fill_(dimension, torch.from_numpy(np.flatnonzero(place.index < 0)), True)
    return found


MIXED = ("dim", "vector", "context", "ffn", "context_ffn", "head", "output")  # what a matrix produces; tables select instead
