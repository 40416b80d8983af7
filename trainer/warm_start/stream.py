"""Carries out a plan a block of rows at a time: production is read by rows, the challenger is written or overwritten in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from trainer.schema.transfer import TransferPlan
from trainer.warm_start.apply import Folded, Rows, tensor_blocks
from trainer.warm_start.moments import STATES, state_blocks
from trainer.warm_start.plan import pair, refused
from trainer.warm_start.side import Side

Write = Callable[[str, Iterable[Tensor]], None]  # name, blocks of rows in order
_LOADED_ROWS = 1 << 16


def load(transfer: TransferPlan, source: Side, target: Side, old: Rows, tensors: Mapping[str, Tensor], *, seed: int = 0) -> None:
    """Overwrites a freshly initialised challenger; the same values as `apply` returns, with no second copy of a table.

    Args:
        transfer: The plan.
        source: Production's side.
        target: The challenger's side.
        old: Production's tensors (`trainer.checkpoint.shards.ShardReader`).
        tensors: The challenger's own (its ``state_dict()``), holding what new entries start as; overwritten.
        seed: Seed of the noise on new rows.

    Raises:
        CheckpointError: If the plan refuses a tensor, or too little of production arrives; nothing is overwritten then.
    """

    def overwrite(name: str, blocks: Iterable[Tensor]) -> None:
        start = 0
        for block in blocks:
            tensors[name][start : start + len(block)] = block
            start += len(block)

    with torch.no_grad():
        stream_weights(
            transfer, source, target, old, lambda name, rows: tensors[name][rows].clone(), overwrite, lambda _: _LOADED_ROWS, seed=seed
        )


def stream_weights(
    transfer: TransferPlan,
    source: Side,
    target: Side,
    old: Rows,
    initial: Callable[[str, slice], Tensor],
    write: Write,
    block_rows: Callable[[str], int],
    *,
    seed: int = 0,
) -> None:
    """Writes the challenger's weights; the same bytes as `apply` returns.

    Args:
        transfer: The plan.
        source: Production's side.
        target: The challenger's side.
        old: Production's tensors (`trainer.checkpoint.shards.ShardReader`).
        initial: Returns rows of a freshly initialised tensor, to be overwritten.
        write: Takes each tensor's blocks, in the order of names.
        block_rows: Rows of a block of a tensor; memory grows with them.
        seed: Seed of the noise on new rows.

    Raises:
        CheckpointError: If the plan refuses a tensor, or too little of production arrives.
    """
    refused(transfer)
    folded = Folded(transfer, source, old)
    for fate in sorted((fate for fate in transfer.fates if fate.target), key=lambda fate: str(fate.target)):
        name = str(fate.target)
        write(name, tensor_blocks(fate, transfer, source, target, folded, partial(initial, name), block_rows(name), seed))


def stream_moments(
    transfer: TransferPlan,
    source: Side,
    target: Side,
    old: Rows,
    states: Mapping[str, torch.dtype],
    write: Write,
    block_rows: Callable[[str], int],
) -> None:
    """Writes the challenger's optimizer state of tables and other parameters that production had.

    Args:
        transfer: The plan.
        source: Production's side.
        target: The challenger's side.
        old: Production's state, under ``<parameter>/<state>``.
        states: ``<parameter>/<state>`` of production -> type; those of scalars (`step`) are handed on by the caller.
        write: Takes each state's blocks, in the order of names.
        block_rows: Rows of a block of a state.
    """
    wanted = []
    for fate in transfer.fates:
        if fate.target and fate.source:
            both = replace(pair(fate, source, target, transfer.rules), old=fate.source)
            wanted += [(f"{fate.target}/{state}", both, state) for state in STATES if f"{fate.source}/{state}" in states]
    for name, both, state in sorted(wanted, key=lambda entry: entry[0]):
        key = f"{both.old}/{state}"
        places = both.places()[: 1 if state in ("sum", "last") else None]
        write(name, state_blocks(both, state, places, partial(old.take, key), states[key], block_rows(name)))
