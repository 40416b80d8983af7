"""The batch plan: which user-days make up which step, fixed before training starts.

Everything that resume and accounting need follows from it: a step is a position in the plan, every unit of a pass is in
exactly one batch, and two runs with the same seed, shards and ranks have the same plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import numpy as np

from trainer.data.shards import ShardKey

# Units are shuffled, then sorted by length inside windows of so many batches: padding stays small, order stays random.
WINDOW_BATCHES = 8
WINDOW_STEPS = 16  # steps among which batches are exchanged, so that the ranks of each step have about the same to do


@dataclass(frozen=True)
class PlannedBatch:
    """Units of one shard that make up one rank's batch of one step.

    Attributes:
        key: Shard.
        units_B: Unit numbers, ascending.
        new: Whether the targets are new (false: replayed).
        beside: Replayed units of another shard in the same batch; they come behind its own.
    """

    key: ShardKey
    units_B: np.ndarray
    new: bool = True
    beside: PlannedBatch | None = None

    @property
    def parts(self) -> list[PlannedBatch]:
        """What the batch is joined from, each of one shard."""
        return [replace(self, beside=None), *([self.beside] if self.beside is not None else [])]


@dataclass(frozen=True)
class BatchPlan:
    """Batches in training order.

    Attributes:
        batches: One entry a (step, rank): step s of rank r is ``batches[s * ranks + r]``.
        ranks: Ranks that share every step.
    """

    batches: list[PlannedBatch]
    ranks: int = 1

    @property
    def steps(self) -> int:
        return len(self.batches) // self.ranks

    def is_new(self, step: int) -> bool:
        """Tells whether a step has new targets; all ranks of a step agree."""
        return self.batches[step * self.ranks].new

    @property
    def sha256(self) -> str:
        """Identity of the plan: every unit of every step."""
        digest = hashlib.sha256(f"{self.ranks}".encode())
        for batch in self.batches:
            for place, part in enumerate(batch.parts):
                digest.update(f"{'+' * place}{part.key.stem} {part.new} {len(part.units_B)} ".encode())
                digest.update(np.ascontiguousarray(part.units_B, np.int64).tobytes())
        return digest.hexdigest()

    def ends_of_days(self) -> dict[int, str]:
        """Returns the last step of each day with new targets; days must have been planned in order."""
        last = {batch.key.day: place // self.ranks for place, batch in enumerate(self.batches) if batch.new}
        return {step: day for day, step in last.items()}

    def of_rank(self, rank: int) -> list[PlannedBatch]:
        """Returns the batches of one rank, a step each."""
        return self.batches[rank :: self.ranks]


def plan_batches(
    keys: Sequence[ShardKey],
    lengths: Callable[[ShardKey], tuple[np.ndarray, np.ndarray]],
    *,
    batch_targets: int,
    batch_tokens: int,
    passes: int,
    seed: int,
    ranks: int = 1,
    replay: Sequence[ShardKey] = (),
    replay_share: float = 0.0,
    replay_beside: bool = False,
    in_order: bool = False,
) -> BatchPlan:
    """Plans every step of a run.

    Args:
        keys: Shards with new targets.
        lengths: Shard -> tokens and targets of each unit.
        batch_targets: Targets a batch aims at.
        batch_tokens: Tokens a batch may hold; a single longer unit makes a batch of its own.
        passes: Passes over the new targets; within a pass every unit is used exactly once.
        seed: Seed of all shuffles.
        ranks: Ranks; the number of batches is made divisible by halving the largest ones.
        replay: Shards that production has already trained on.
        replay_share: Share of all targets that come from `replay`.
        replay_beside: Whether replayed targets make up their share of every batch, instead of batches of their own: a step on new
            targets alone undoes for what is only replayed what the step before did (scripts/bench/RESULTS.md, DIGINETICA).
        in_order: Whether a day begins only after the one before it has ended; within a day the order stays random.

    Returns:
        The plan. Replayed batches are spread evenly among the new ones.
    """
    beside = replay_beside and bool(replay) and replay_share > 0
    own, theirs = (1 - replay_share, replay_share) if beside else (1.0, 1.0)  # shares of a batch
    budget = partial(_budget, batch_targets, batch_tokens)
    new: list[PlannedBatch] = []
    for number in range(passes):
        rng = np.random.default_rng([seed, number])
        days = sorted({key.day for key in keys}) if in_order else [None]
        for day in days:
            block: list[PlannedBatch] = []
            ours = [key for key in keys if day in (None, key.day)]
            for index in rng.permutation(len(ours)):
                tokens_U, targets_U = lengths(ours[index])
                block += [PlannedBatch(ours[index], units) for units in cut(tokens_U, targets_U, *budget(own), rng)]
            # A step is one day's on every rank, so that its end is the same for all.
            mixed = [block[index] for index in _interleave(block, rng)]
            new += _shared(mixed, ranks, lengths, rng) if in_order else mixed
    rng = np.random.default_rng([seed, passes])
    wanted = len(new) if beside else round(len(new) * replay_share / (1 - replay_share))
    replayed = _replayed(wanted, replay, lengths, budget(theirs), rng)
    if beside:
        new, replayed = [replace(batch, beside=old) for batch, old in zip_longest(new, replayed)], []
    # Each kind fills whole steps: what replayed targets may not touch is then the same on every rank.
    new = new if in_order else _shared(new, ranks, lengths, rng)
    return BatchPlan(_spread(new, _shared(replayed, ranks, lengths, rng), ranks), ranks)


def _budget(targets: int, tokens: int, share: float) -> tuple[int, int]:
    return max(round(targets * share), 1), max(round(tokens * share), 1)


def cut(tokens_U: np.ndarray, targets_U: np.ndarray, batch_targets: int, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cuts the units of one shard into batches under both budgets.

    Returns:
        Unit numbers of each batch, ascending within a batch, batches in random order.
    """
    order_U = rng.permutation(len(tokens_U))
    mean_targets = max(float(targets_U.mean()), 1.0) if len(targets_U) else 1.0
    window = max(int(WINDOW_BATCHES * batch_targets / mean_targets), 1)
    batches: list[np.ndarray] = []
    for start in range(0, len(order_U), window):
        block = order_U[start : start + window]
        batches += _greedy(block[np.argsort(tokens_U[block], kind="stable")], tokens_U, targets_U, batch_targets, batch_tokens)
    return [np.sort(batches[index]) for index in rng.permutation(len(batches))]


def _greedy(block: np.ndarray, tokens_U: np.ndarray, targets_U: np.ndarray, batch_targets: int, batch_tokens: int) -> list[np.ndarray]:
    batches, start, tokens, targets = [], 0, 0, 0
    for index, unit in enumerate(block.tolist()):
        full = targets >= batch_targets or tokens + tokens_U[unit] > batch_tokens
        if full and index > start:
            batches.append(block[start:index])
            start, tokens, targets = index, 0, 0
        tokens += int(tokens_U[unit]) + 1  # each sequence has a BOS state
        targets += int(targets_U[unit])
    return [*batches, block[start:]] if start < len(block) else batches


def _interleave(batches: list[PlannedBatch], rng: np.random.Generator) -> np.ndarray:
    """Mixes the batches of neighbouring shards, so that consecutive steps do not all come from one day.

    Shards stay close to their turn (a reader needs few at a time): each batch moves by at most about four shards.
    """
    shard_of: dict[ShardKey, int] = {}
    turn = np.array([shard_of.setdefault(batch.key, len(shard_of)) for batch in batches], np.float64)
    return np.argsort(turn + rng.uniform(0, 4, len(batches)), kind="stable") if len(batches) else np.zeros(0, np.int64)


def _replayed(
    wanted: int,
    replay: Sequence[ShardKey],
    lengths: Callable[[ShardKey], tuple[np.ndarray, np.ndarray]],
    budget: tuple[int, int],
    rng: np.random.Generator,
) -> list[PlannedBatch]:
    """Draws so many replayed batches at random, or none from shards without units; no unit comes twice before all have come."""
    batches: list[PlannedBatch] = []
    left: dict[ShardKey, list[np.ndarray]] = {}
    usable, waiting = list(replay), list(replay)
    while len(batches) < wanted and usable:
        waiting = waiting or list(usable)
        place = int(rng.integers(len(waiting)))
        key = waiting[place]
        if not left.get(key):
            left[key] = cut(*lengths(key), *budget, rng)
        if not left[key]:  # a shard without units
            usable.remove(key)
        batches += [PlannedBatch(key, units, new=False) for units in left[key][:4]]
        left[key] = left[key][4:]
        if not left[key]:
            del waiting[place]
    return batches[:wanted]


def _spread(new: list[PlannedBatch], replayed: list[PlannedBatch], ranks: int) -> list[PlannedBatch]:
    """Spreads replayed steps evenly among the new ones; `ranks` batches make a step."""
    if not replayed:
        return new
    steps, extra = len(new) // ranks, len(replayed) // ranks
    position = np.concatenate([np.arange(steps) + 0.5, (np.arange(extra) + 0.5) * steps / extra])
    both = [*new, *replayed]
    return [both[index * ranks + rank] for index in np.argsort(position, kind="stable") for rank in range(ranks)]


def _shared(
    batches: list[PlannedBatch], ranks: int, lengths: Callable[[ShardKey], tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> list[PlannedBatch]:
    """Makes whole steps of batches that cost about the same: a step takes as long as its dearest rank.

    Batches are sorted by their rows inside windows of `WINDOW_STEPS` steps, and the steps of a window are shuffled again, so a batch
    moves by no more than a window. One rank's plan stays as it is.
    """
    batches = _divisible(batches, ranks)
    if ranks == 1:
        return batches
    rows: dict[ShardKey, np.ndarray] = {}
    for key in sorted({part.key for batch in batches for part in batch.parts}):
        tokens_U, targets_U = lengths(key)
        rows[key] = tokens_U + targets_U + 1
    cost_B = np.array([sum(rows[part.key][part.units_B].sum() for part in batch.parts) for batch in batches])
    steps: list[PlannedBatch] = []
    for start in range(0, len(batches), WINDOW_STEPS * ranks):
        order = start + np.argsort(-cost_B[start : start + WINDOW_STEPS * ranks], kind="stable")  # dearest first
        steps += [batches[index] for step in rng.permutation(len(order) // ranks) for index in order[step * ranks : (step + 1) * ranks]]
    return steps


def _divisible(batches: list[PlannedBatch], ranks: int) -> list[PlannedBatch]:
    """Halves batches from the end until every rank has one at every step; single units are followed by empty batches."""
    batches = list(batches)
    index = len(batches) - 1
    while len(batches) % ranks and index >= 0:
        batch = batches[index]
        if len(batch.units_B) > 1:
            half = len(batch.units_B) // 2
            batches[index : index + 1] = [
                replace(batch, units_B=batch.units_B[:half]),
                replace(batch, units_B=batch.units_B[half:], beside=None),
            ]
        else:
            index -= 1
    while len(batches) % ranks:
        batches.append(PlannedBatch(batches[-1].key, np.zeros(0, np.int64), batches[-1].new))
    return batches
