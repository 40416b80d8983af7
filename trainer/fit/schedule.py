"""The learning-rate schedule of a run: linear (re-)warm-up, then a constant rate; a served copy leaves it and is annealed."""

from __future__ import annotations

from dataclasses import dataclass

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
