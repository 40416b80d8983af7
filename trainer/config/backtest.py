"""Configuration of a backtest: the main job's, and the arms that are replayed with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.config.jobs import RetrainConfig
from trainer.errors import ConfigError, nearest
from trainer.schema.validate import choice, positive


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One way to come to a model, night after night.

    Attributes:
        start: Where the weights of the first night come from: ``production`` or ``none``.
        days: Days that the first night of a cold start trains on: the last so many, 0 for all. A warm start always takes the
            days that production has not seen.
        then: What the following nights do: ``continue`` from the arm's own last weights, ``again`` as the first night did, or
            ``freeze``. A production that is frozen from the beginning never trains at all.
        reference: Arm whose first night is the unit of this one's compute, and whose quality it is to reach: its own model from
            scratch. Null takes the backtest's.
        seeds: Repetitions, with seeds of their own (initial weights, batches, dropout).
        settings: Group -> key -> value, laid over the run's configuration: ``{model: {layers: 4}}``.
    """

    start: str = "production"
    days: int = 0
    then: str = "continue"
    reference: str | None = None
    seeds: int = 1
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("arms.*.start", self.start, ("production", "none"))
        choice("arms.*.then", self.then, ("continue", "again", "freeze"))
        positive("arms.*.seeds", self.seeds)
        if self.days < 0:
            raise ConfigError("a number of days is not negative", where="arms.*.days", got=self.days)
        if self.days and self.start == "production":
            raise ConfigError(
                "a warm start trains on the days that production has not seen", where="arms.*.days", got=self.days,
                remedy="leave days out, or set start: none",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BacktestConfig(RetrainConfig):
    """`scripts/backtest.py` (`conf/backtest.yaml`): the main job's configuration describes production.

    Attributes:
        nights: Last days of the log that are judged, a night of training before each.
        behind: Days by which production is further behind than one: the first night learns as many more at once, which shows more of
            a curve than a day does.
        baseline: Arm that every other one is compared with on the same rows: production continued.
        reference: Arm whose compute is the unit and whose quality is to be reached, where an arm names no other: the new model
            from scratch on all days.
        tolerance: Relative distance in NE at which an arm counts as level with the baseline.
        checkpoints: Points of the first night's learning curve at which an arm is judged, besides its beginning and its end.
        truth: Folder of a simulated log: NE is then taken against its true probabilities, so that only what the models would get
            wrong on average counts, and not which outcomes came up. Null judges by labels.
        arms: Name -> arm.
    """

    nights: int = 7
    behind: int = 0
    baseline: str = "production_continued"
    reference: str = "scratch_all"
    tolerance: float = 0.002
    checkpoints: int = 8
    truth: str | None = None
    arms: dict[str, ArmConfig]

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("nights", self.nights)
        if self.behind < 0:
            raise ConfigError("a number of days is not negative", where="behind", got=self.behind)
        positive("tolerance", self.tolerance)
        own = {f"arms.{name}.reference": arm.reference for name, arm in self.arms.items() if arm.reference is not None}
        for where, name in {"baseline": self.baseline, "reference": self.reference, **own}.items():
            start = "production" if where == "baseline" else "none"
            if name not in self.arms:
                raise ConfigError("unknown arm", where=where, got=name, remedy=nearest(name, self.arms))
            if self.arms[name].start != start:
                raise ConfigError("an arm in this role has another start", where=where, got=self.arms[name].start, expected=start)
