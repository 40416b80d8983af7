"""The learning-rate schedule of a run: linear (re-)warm-up, then a constant rate; a served copy leaves it and is annealed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate at each step.

    Attributes:
        steps: Steps of the run.
        peak: Factor between warm-up and anneal.
        warmup: Steps of the linear warm-up.
        anneal: Last steps, over which the factor falls linearly.
        anneal_to: Factor of the last step.
    """

    steps: int
    peak: float
    warmup: int
    anneal: int
    anneal_to: float

    def factor(self, step: int) -> float:
        """Returns the factor at `step` (from 0)."""
        rise = self.peak * min(1.0, (step + 1) / max(self.warmup, 1))
        left = self.steps - 1 - step
        if self.anneal and left < self.anneal:
            return rise * (self.anneal_to + (1 - self.anneal_to) * left / self.anneal)
        return rise


def schedule_of(config: ScheduleConfig, steps: int, warm: bool, *, anneal: bool = False) -> Schedule:
    """Returns the schedule of a run with `steps` steps; a warm start re-warms, because carried moments meet new data.

    Args:
        config: Settings.
        steps: Steps of the run.
        warm: Whether the weights come from production.
        anneal: Whether it is that of an annealed copy; the trunk keeps its rate, or the next run would start at nearly none.
    """
    warmup = config.rewarm_steps if warm else config.warmup_steps
    last = round(steps * config.anneal_share) if anneal else 0
    return Schedule(steps, config.warm_factor if warm else 1.0, min(warmup, max(steps // 4, 1)), last, config.anneal_to)


@dataclass(frozen=True)
class Fresh:
    """How much further entries move that production did not have.

    The optimizer works at the rate of fresh entries; a share of its step is what it would have made at a share of that rate.

    Attributes:
        rate: Rate of fresh entries over that of carried ones.
        shares: Parameter -> share of each step that its entries move by, of the parameter's shape; those not named move by all of it.
    """

    rate: float = 1.0
    shares: Mapping[str, Tensor] = field(default_factory=dict)


def fresh_of(config: ScheduleConfig, new: Mapping[str, Tensor]) -> Fresh:
    """Returns the rates of a warm run.

    Args:
        config: Settings.
        new: Parameter outside the tables -> bool, the entries that production did not have.
    """
    if config.fresh_factor in (None, config.warm_factor) or not any(bool(entries.any()) for entries in new.values()):
        return Fresh()
    rate = config.fresh_factor / config.warm_factor
    return Fresh(rate, {name: torch.where(entries, 1.0, 1 / rate) for name, entries in new.items() if not entries.all()})
