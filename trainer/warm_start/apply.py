"""Carries out a transfer plan on weights and on optimizer moments, tensor by tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.schema.transfer import AxisMove, TensorFate, TransferPlan
from trainer.schema.vocabulary import OOV_ROW
from trainer.warm_start.plan import Side, axis_index, is_keyed, refused, writes_residual


def apply(
    transfer: TransferPlan,
    source: Side,
    target: Side,
    weights: dict[str, Tensor],
    initial: dict[str, Tensor],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Builds the challenger's weights.

    Args:
        transfer: The plan.
        source: Production's side of it.
        target: The challenger's side of it.
        weights: Production's tensors.
        initial: The challenger's freshly initialised tensors; new entries come from here unless the plan fills them.
        noise: Noise on the rows of new ids, as a share of the trained rows' standard deviation.
        seed: Seed of the noise.

    Returns:
        Tensor -> value, for every tensor of the challenger.

    Raises:
        CheckpointError: If the plan refuses a tensor.
    """
    refused(transfer)
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Tensor] = {}
    for fate in transfer.fates:
        if fate.target is None:
            continue
        fresh = initial[fate.target].clone()
        if fate.source is None:
            zero = writes_residual(target.axes[fate.target]) if fate.fate == "inserted as identity" else bool(fate.moves)
            result[fate.target] = fresh.zero_() if zero else fresh
        else:
            result[fate.target] = _carried(fate, source, target, weights[fate.source].to(fresh.dtype), fresh, noise, generator)
    return result


def _carried(fate: TensorFate, source: Side, target: Side, old: Tensor, fresh: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Moves one tensor: the block of kept entries is copied, new entries are filled axis by axis."""
    axes = target.axes[fate.target or ""]
    moves = {move.axis: move for move in fate.moves}
    positions = [_position(axis, moves.get(axis), source, target, size) for axis, size in zip(axes, fresh.shape, strict=True)]
    for dimension, (axis, (kept, _)) in enumerate(zip(axes, positions, strict=True)):
        move = moves.get(axis)
        if move is not None and move.fill == "zero":
            fresh.index_fill_(dimension, torch.from_numpy(np.setdiff1d(np.arange(fresh.shape[dimension]), kept)), 0.0)
    target_index = np.ix_(*(kept for kept, _ in positions))
    source_index = np.ix_(*(origin for _, origin in positions))
    fresh[tuple(map(torch.from_numpy, target_index))] = old[tuple(map(torch.from_numpy, source_index))]
    move = moves.get(axes[0]) if axes else None
    if move is not None and axes[0].startswith("vocab:") and move.new:
        _fill_rows(fresh, positions[0][0], move, noise, generator)
    return fresh


def _position(axis: str, move: AxisMove | None, source: Side, target: Side, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kept entries of an axis in the target and where they come from in the source."""
    if move is None:
        return np.arange(size), np.arange(size)
    if not is_keyed(axis):
        return np.arange(move.kept), np.arange(move.kept)
    index, _ = axis_index(axis, source, target)
    kept = np.flatnonzero(index >= 0)
    return kept, index[kept]


def _fill_rows(table: Tensor, kept: np.ndarray, move: AxisMove, noise: float, generator: torch.Generator) -> None:
    """Fills the rows of new ids: with the OOV row (what production did with them), the mean of trained rows, or zero."""
    new = torch.from_numpy(np.setdiff1d(np.arange(len(table)), kept))
    trained = table[torch.from_numpy(kept[kept > OOV_ROW])]
    if move.fill == "oov":
        table[new] = table[OOV_ROW].clone()
    elif move.fill == "mean" and len(trained):
        table[new] = trained.mean(0)
    if noise > 0 and len(trained) > 1:
        table[new] += torch.randn(len(new), *table.shape[1:], generator=generator) * (noise * float(trained.std()))


def carry_moments(transfer: TransferPlan, source: Side, target: Side, moments: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Carries Adam's moments by parameter name and row.

    New entries start with a first moment of zero and the mean second moment of the old ones: zeros under a large carried
    step would let them move 3 to 6.6 times as far as an old row (reference/warm-start.md, section 5).

    Args:
        transfer: The plan that moved the weights.
        source: Production's side.
        target: The challenger's side.
        moments: ``<parameter>/exp_avg``, ``/exp_avg_sq``, ``/step``.

    Returns:
        Parameter -> {exp_avg, exp_avg_sq, step} for every parameter that production had; the others start without state.
    """
    carried: dict[str, dict[str, Tensor]] = {}
    for fate in transfer.fates:
        if fate.target is None or fate.source is None or f"{fate.source}/exp_avg" not in moments:
            continue
        state = {"step": moments[f"{fate.source}/step"].clone()}
        for key in ("exp_avg", "exp_avg_sq"):
            old = moments[f"{fate.source}/{key}"]
            fill = float(old.mean()) if key == "exp_avg_sq" else 0.0
            state[key] = _moved(fate, source, target, old, fill)
        carried[fate.target] = state
    return carried


def _moved(fate: TensorFate, source: Side, target: Side, old: Tensor, fill: float) -> Tensor:
    axes = target.axes[fate.target or ""]
    moves = {move.axis: move for move in fate.moves}
    result = torch.full(tuple(fate.shape), fill, dtype=old.dtype)
    positions = [_position(axis, moves.get(axis), source, target, size) for axis, size in zip(axes, fate.shape, strict=True)]
    target_index = tuple(map(torch.from_numpy, np.ix_(*(kept for kept, _ in positions))))
    source_index = tuple(map(torch.from_numpy, np.ix_(*(origin for _, origin in positions))))
    result[target_index] = old[source_index]
    return result
