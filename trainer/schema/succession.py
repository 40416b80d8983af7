"""`succession.json` and `succession.parquet`: what each arm of a backtest cost, and how good it was on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SUCCESSION_VERSION = 1

SUCCESSION_JSON, CURVES_PARQUET = "succession.json", "succession.parquet"

# One row an arm, seed, judged night, point of its learning curve and action.
CURVES_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("day", pa.string()),  # judged day
        ("step", pa.int64()),  # steps of this night
        ("last", pa.bool_()),  # whether this is what the night ended with
        ("flops", pa.int64()),  # spent since the first night, this point included
        ("seconds", pa.float64()),
        ("action", pa.string()),
        ("ne", pa.float64()),
        ("gap", pa.float64()),  # ne / ne of the baseline at the end of the same night - 1
    ]
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % interval, clustered by user; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Compute until something held.

    Attributes:
        flops: Operations spent by then; where `reached` is false, all that was spent: a lower bound.
        seconds: Seconds of training, likewise.
        share: `flops` over what the arm's reference spent on its first night.
        reached: Whether it held at all.
    """

    flops: int
    seconds: float
    share: float
    reached: bool


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm with one seed and action, over all judged nights.

    Attributes:
        arm: Name.
        seed: Seed.
        action: Judged action.
        reference: Arm whose first night is the unit of its compute.
        nights: Judged day -> NE at the end of its night.
        ne: NE over all judged rows.
        auc: AUC over all judged rows; rank correlation for an action that is not binary.
        gap: NE relative to the baseline's on the same rows, minus 1; negative is better.
        level: Compute until the arm was within the tolerance of the baseline, and stayed there at the end of every later night.
        reach: Compute until the arm was at least as good as the reference at the end of the same night, and stayed within the
            tolerance of it at the end of every later night.
        flops: All it spent.
        seconds: All its seconds of training.
    """

    arm: str
    seed: int
    action: str
    reference: str
    nights: dict[str, float]
    ne: Interval
    auc: Interval
    gap: Interval
    level: Cost
    reach: Cost
    flops: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Succession:
    """What a backtest found (`succession.json`).

    Attributes:
        version: Version of this schema.
        days: Judged days.
        rows: Judged rows.
        baseline: Arm that gaps are relative to.
        reference: Arm whose first night is the unit of compute where an arm names no other.
        tolerance: Relative distance in NE that counts as level.
        arms: Arm -> how it was declared.
        results: One an arm, seed and action.
        hardware: What it ran on.
    """

    version: int = SUCCESSION_VERSION
    days: list[str]
    rows: int
    baseline: str
    reference: str
    tolerance: float
    arms: dict[str, Any]
    results: list[ArmResult]
    hardware: str
