"""Which days are judged, which are trained on, and which stay out: decided before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import DataError
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_end_ms


@dataclass(frozen=True)
class DayPlan:
    """Days of one run, all ascending.

    Attributes:
        as_of: Cut-off day; everything used was known by its end.
        holdout: Judged days: the last ones whose gated labels are ripe.
        train: Earlier days that production has not trained on (all of them in a cold run).
        seen: Earlier days that production has trained on with the same contents: replay draws from them.
        refused: Days that the scan refused; they stay out.
        unripe: Days after the holdout whose labels are not ripe yet.
        usable: Days that rebuild reads: every day up to `as_of` that was not refused.
    """

    as_of: str
    holdout: list[str]
    train: list[str]
    seen: list[str]
    refused: list[str]
    unripe: list[str]
    usable: list[str]


def choose_as_of(as_of: str | None, days: list[str], where: str) -> str:
    """Returns the cut-off day: the given one, or the log's last.

    Raises:
        DataError: If the log has no days, or none on or before `as_of`.
    """
    if not days:
        raise DataError(
            "no data: the log has no day",
            where=where,
            expected="folders such as dt=2022-05-01 with files in them",
            remedy="check data.root and data.layout",
        )
    chosen = as_of or days[-1]
    if chosen < days[0]:
        raise DataError(
            "as_of lies before the first day of the log",
            where=where,
            got=chosen,
            expected=f"{days[0]} .. {days[-1]}",
            remedy=f"use as_of={days[-1]}",
        )
    if chosen not in days:
        raise DataError(
            "no data for as_of",
            where=where,
            got=chosen,
            expected=f"a day of the log ({days[0]} .. {days[-1]})",
            remedy="wait for the day's partition, or choose another as_of",
        )
    return chosen


def plan_days(
    spec: LogSpec, health: HealthMap, contents: dict[str, str], trained: dict[str, str], as_of: str, holdout_days: int
) -> DayPlan:
    """Splits the scanned days.

    Args:
        spec: The log; the slowest gated label decides when a day is ripe.
        health: Scan of every day up to `as_of`.
        contents: Day -> content hash after quarantine.
        trained: Day -> content hash that production has trained on; a repaired day has another hash and is new again.
        as_of: Cut-off day.
        holdout_days: Number of judged days.

    Returns:
        The plan.

    Raises:
        DataError: If no ripe day is left to judge, or none to train on.
    """
    refused = [day for day, state in health.days.items() if state.status == "refused"]
    usable = [day for day in health.days if day <= as_of and day not in refused]
    if as_of in refused:
        faults = "; ".join(sorted({fault.kind for fault in health.days[as_of].faults}))
        raise DataError(
            "the day of as_of is refused",
            where=f"{spec.name} {as_of}",
            got=faults,
            remedy="see scan.json; repair the day or use an earlier as_of",
        )
    slowest = max((spec.actions[name].maturity_ms for name in spec.gated_actions), default=0)
    cutoff = day_end_ms(as_of, spec.timezone)
    ripe = [day for day in usable if day_end_ms(day, spec.timezone) + slowest <= cutoff]
    if not ripe:
        raise DataError(
            "no day has ripe labels by as_of", where=f"{spec.name} {as_of}", remedy="wait, or shorten the maturity of gated actions"
        )
    holdout = ripe[-holdout_days:]
    earlier = [day for day in usable if day < holdout[0]]
    train = [day for day in earlier if trained.get(day) != contents[day]]
    if not earlier:
        raise DataError(
            "no day is left to train on",
            where=f"{spec.name} {as_of}",
            got=f"holdout {', '.join(holdout)}",
            remedy="use a later as_of, or fewer evaluation.holdout_days",
        )
    if not train:
        raise DataError(
            "production has learned every day before the judged ones",
            where=f"{spec.name} {as_of}",
            got=f"holdout {', '.join(holdout)}; learned up to {earlier[-1]}",
            remedy="use a later as_of or fewer evaluation.holdout_days; warm_start=none learns all days anew",
        )
    return DayPlan(
        as_of=as_of,
        holdout=holdout,
        train=train,
        seen=[day for day in earlier if day not in train],
        refused=[day for day in refused if day <= as_of],
        unripe=[day for day in usable if day > holdout[-1]],
        usable=usable,
    )
