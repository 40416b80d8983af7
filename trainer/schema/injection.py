"""What the fault injector is asked for and what it did: the truth against which detection is scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.errors import ConfigError
from trainer.schema.time import parse_day

INJECTION_VERSION = 1
TRUTH_FILE = "faults.json"


@dataclass(frozen=True, kw_only=True)
class FaultSettings:
    """How a kind of damage is carried out; what is left open is chosen by the seed.

    Attributes:
        day: Day to damage, if not the day of the whole injection.
        feature: Source column to damage.
        partner: Second column (``swapped_columns``).
        share: Share of rows or cells hit, in (0, 1].
        factor: Multiplier (``unit_change``, ``time_unit``).
        value: Value written into cells (``sentinel_spike``, ``constant``).
        hours: Hours lost, or whose labels are cut.
        bytes: Bytes overwritten (``zeroed_sector``).
    """

    day: str | None = None
    feature: str | None = None
    partner: str | None = None
    share: float | None = None
    factor: float | None = None
    value: float | None = None
    hours: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if self.day is not None:
            parse_day(self.day, "faults.*.day")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError("a share lies in (0, 1]", where="faults.*.share", got=self.share)
        if self.hours is not None and not 1 <= self.hours <= 24:
            raise ConfigError("hours lie in 1..24", where="faults.*.hours", got=self.hours)
        if self.bytes is not None and self.bytes < 1:
            raise ConfigError("must be positive", where="faults.*.bytes", got=self.bytes)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One piece of damage as it was done.

    Attributes:
        kind: Name of the catalogue.
        day: Business day.
        file: Path below the data root, if one file was damaged.
        feature: Source column, if one was damaged.
        rows: Rows or cells changed, added or lost; 0 where only bytes changed.
        bytes: Bytes changed or lost; 0 where only rows changed.
        note: What was done, in a few words.
    """

    kind: str
    day: str
    file: str | None = None
    feature: str | None = None
    rows: int = 0
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Everything that was planted (``faults.json`` beside the damaged log).

    Attributes:
        version: Version of this schema.
        log: Name of the log.
        source: Data root that was copied.
        seed: Same log, faults and seed: same bytes.
        planted: The damage, in the order in which it was done.
    """

    version: int = INJECTION_VERSION
    log: str
    source: str
    seed: int
    planted: list[Planted] = field(default_factory=list)
