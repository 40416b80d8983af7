"""The books of a run: every row that was to be trained is trained, skipped or still to come, by day, or the run fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.data import BatchPlan
from trainer.data.shards import ShardKey
from trainer.errors import TrainingError
from trainer.fit.steps import StepLog


@dataclass(frozen=True, kw_only=True)
class DayAccount:
    """Targets of one day, all passes together. Always ``planned = trained + skipped + remaining``.

    Attributes:
        planned: Targets in the batches of the plan.
        trained: Those of steps that reached the optimizer.
        skipped: Those of steps whose loss or gradient was not finite.
        remaining: Those of steps that were not made.
    """

    planned: int = 0
    trained: int = 0
    skipped: int = 0
    remaining: int = 0

    def __add__(self, other: DayAccount) -> DayAccount:
        return DayAccount(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the rows of a run.

    Attributes:
        new: Day -> its targets, each once a pass.
        replayed: Day that production had seen -> targets drawn from it again.
    """

    new: dict[str, DayAccount] = field(default_factory=dict)
    replayed: dict[str, DayAccount] = field(default_factory=dict)

    @property
    def total(self) -> DayAccount:
        """The sum over days, replayed ones included."""
        return sum([*self.new.values(), *self.replayed.values()], DayAccount())


def reconcile(
    plan: BatchPlan,
    lengths: Callable[[ShardKey], tuple[np.ndarray, np.ndarray]],
    log: Sequence[StepLog],
    rows: Mapping[str, int],
    passes: int,
) -> Account:
    """Closes the books of a finished run.

    Args:
        plan: Batches of all steps.
        lengths: Shard -> tokens and targets of each unit.
        log: One entry a step that was made, a killed run's included.
        rows: Training day -> rows that rebuild wrote for it.
        passes: Passes over the new rows.

    Returns:
        What became of every row.

    Raises:
        TrainingError: If a day's planned rows are not those that rebuild wrote, once a pass, or a step of the plan was not made.
    """
    made = {entry.step: entry.skipped for entry in log}
    books: dict[bool, dict[str, DayAccount]] = {True: {}, False: {}}
    for place, batch in enumerate(plan.batches):
        skipped = made.get(place // plan.ranks)
        fate = "remaining" if skipped is None else "skipped" if skipped else "trained"
        for part in batch.parts:
            targets, days = int(lengths(part.key)[1][part.units_B].sum()), books[part.new]
            days[part.key.day] = days.get(part.key.day, DayAccount()) + DayAccount(planned=targets, **{fate: targets})
    account = Account(**{name: dict(sorted(books[new].items())) for name, new in (("new", True), ("replayed", False))})
    _check(account, rows, passes)
    return account


def _check(account: Account, rows: Mapping[str, int], passes: int) -> None:
    for day in sorted({*rows, *account.new}):
        planned, expected = account.new.get(day, DayAccount()).planned, passes * rows.get(day, 0)
        if planned != expected:
            raise TrainingError(
                "the rows planned for training are not the rows that were rebuilt", where=day, got=f"{planned:,} planned",
                expected=f"{expected:,} ({rows.get(day, 0):,} rebuilt, {passes} passes)",
                remedy="shards of another rebuild lie in the run's folder: start in a new run_dir",
            )  # fmt: skip
    total = account.total
    if total.remaining:
        raise TrainingError(
            "training ended before every planned row was trained",
            got=f"{total.planned - total.remaining:,} rows, {total.remaining:,} remain", expected=f"{total.planned:,} rows",
            remedy="start the same command again: it goes on from the last checkpoint",
        )  # fmt: skip
