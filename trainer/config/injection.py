"""Configuration of the fault injector."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.schema.injection import FaultSettings
from trainer.schema.logs import LogSpec
from trainer.schema.time import parse_day


@dataclass(frozen=True, kw_only=True)
class InjectConfig:
    """`scripts/inject.py`: damages a copy of a log (`conf/inject.yaml`).

    Attributes:
        data: The log; only read.
        out: Folder of the damaged copy; new or empty.
        faults: Kind of the catalogue -> how it is carried out (`conf/faults`).
        day: Day to damage; default the last. A fault's own `day` wins.
        seed: Same log, faults and seed: same damage.
        spread: Whether each fault gets a day of its own, going back from `day`, instead of all of them the same.
        hold_s: How long faults that happen while files are read are kept up.
    """

    data: LogSpec
    out: str
    faults: dict[str, FaultSettings]
    day: str | None = None
    seed: int = 0
    spread: bool = False
    hold_s: float = 0.0

    def __post_init__(self) -> None:
        if self.day is not None:
            parse_day(self.day, "day")
        if not self.faults:
            raise ConfigError("no fault is asked for", where="faults", remedy="give faults=KIND, a list of kinds, or faults=weekly")
