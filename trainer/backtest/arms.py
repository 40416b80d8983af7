"""Arms: what each one trains on and from, night after night."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from trainer.checkpoint import Bundle
from trainer.config import ArmConfig, BacktestConfig, RetrainConfig, load
from trainer.days import DayPlan
from trainer.errors import ConfigError
from trainer.schema.plain import as_plain


@dataclass
class Arm:
    """One arm with one seed.

    Attributes:
        name: Name in the configuration.
        seed: Seed of its initial weights, batches and dropout.
        declared: How it was declared.
        config: The run's configuration with the arm's settings.
        bundle: Its last weights; None before the first night.
        flops: Operations spent so far.
        seconds: Seconds of training so far.
    """

    name: str
    seed: int
    declared: ArmConfig
    config: RetrainConfig
    bundle: Bundle | None = None
    flops: int = 0
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Name of its folder: one an arm and seed."""
        return f"{self.name}-seed{self.seed}"

    @property
    def trains(self) -> bool:
        """Whether the coming night trains it."""
        if self.declared.then != "freeze":
            return True
        return self.bundle is None and self.declared.start == "none"

    def parent(self, production: Bundle | None) -> Bundle | None:
        """Returns what the coming night starts from: the arm's own weights, production, or None for a cold start."""
        if self.bundle is not None and self.declared.then != "again":
            return self.bundle
        return production if self.declared.start == "production" else None

    def window(self, days: DayPlan, parent: Bundle | None) -> DayPlan:
        """Returns the days of the coming night.

        A cold start is cut to its window. What goes on from there leaves out the days before the window, although they are new
        to it; days inside that were repaired since are learned again.
        """
        if parent is None:
            return replace(days, train=days.train[-self.declared.days :])  # 0 takes all
        oldest = min(parent.manifest.trained)
        return replace(days, train=[day for day in days.train if day > oldest])


def arms_of(config: BacktestConfig) -> list[Arm]:
    """Returns every arm and seed; the baseline first, because its weights of the night before are the live model of the others.

    Raises:
        ConfigError: If an arm's settings name an unknown group or key, or one that all arms share.
    """
    order = [config.baseline, *(name for name in config.arms if name != config.baseline)]
    return [arm for name in order for arm in _seeds(config, name)]


def _seeds(config: BacktestConfig, name: str) -> Iterator[Arm]:
    declared = config.arms[name]
    own = {field.name: getattr(config, field.name) for field in fields(RetrainConfig)}
    for group, values in declared.settings.items():
        own[group] = _laid_over(config, f"arms.{name}.settings", group, values)
    for number in range(declared.seeds):
        yield Arm(name, config.seed + number, declared, RetrainConfig(**{**own, "seed": config.seed + number}))


# What training reads. Which rows are judged, and what is known of them, is the same for all arms.
_GROUPS = ("model", "optimizer", "schedule", "warm_start", "distill", "fit")


def _laid_over(config: BacktestConfig, where: str, group: str, values: dict[str, Any]) -> Any:
    if group not in _GROUPS:
        raise ConfigError("an arm cannot set this group", where=where, got=group, expected=", ".join(_GROUPS))
    current = getattr(config, group)
    return load(type(current), {**as_plain(current), **values}, f"{where}.{group}")
