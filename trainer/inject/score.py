"""Scores a scan against the truth: was the damage seen, named, answered as the catalogue says, counted, and was nothing else accused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.schema.faults import CATALOGUE, CONSEQUENCES
from trainer.schema.health import DayHealth, Fault, HealthMap
from trainer.schema.injection import Planted

HARMLESS = ("duplicate_rows", "late_rows")  # what every log has; no accusation

# Kinds of which every single row or cell can be counted; of others the ledger says how many rows the finding is about.
_EXACT = (
    "non_finite", "overflow", "wrong_dtype_garbage", "invalid_text", "time_out_of_day", "time_unit", "out_of_range_id", "duplicate_rows",
    "missing_file", "duplicate_file",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """How a scan did on one piece of damage.

    Attributes:
        detected: Whether the ledger has a row of a right kind on the right day, new against the clean log.
        placed: Whether such a row names a damaged column (where one was damaged).
        handled: Whether the answer is the catalogue's.
        counted: Whether the day's rows reconcile, and what can be counted exactly was.
        false_alarms: Rows of the ledger that neither the damage nor the clean log explains, as kind, day and column.
    """

    detected: bool
    placed: bool
    handled: bool
    counted: bool
    false_alarms: list[str]

    @property
    def perfect(self) -> bool:
        return self.detected and self.placed and self.handled and self.counted and not self.false_alarms


def score(planted: Sequence[Planted], health: HealthMap, clean: HealthMap, stopped: bool) -> Score:
    """Scores the scan of a log in which one kind of damage was planted on one day.

    Args:
        planted: What was planted.
        health: Scan of the damaged log.
        clean: Scan of the same days before.
        stopped: Whether the budgets stopped the run.
    """
    kind, day = CATALOGUE[planted[0].kind], planted[0].day
    state, before = health.days[day], clean.days[day]
    mine = [fault for fault in state.faults if fault.kind in kind.ledger_kinds]
    usual = sum(fault.rows for fault in before.faults if fault.kind in kind.ledger_kinds)
    columns: set[str | None] = {one.feature for one in planted if one.feature}
    placed = not columns or any(fault.feature in columns for fault in mine) or all(fault.feature is None for fault in mine)
    rows = sum(one.rows for one in planted)
    counted = state.rows == state.used + state.dropped + state.duplicates
    if kind.name in _EXACT and rows:
        counted = counted and sum(fault.rows for fault in mine) - usual == rows
    return Score(
        detected=_new(mine, usual),
        placed=placed,
        handled=_handled(kind.response, state, before, mine, columns, stopped),
        counted=counted,
        false_alarms=_false_alarms(kind.ledger_kinds, day, health, clean),
    )


def _new(mine: Sequence[Fault], usual: int) -> bool:
    """A kind that the clean log has as well must have grown."""
    return bool(mine) and (not usual or sum(fault.rows for fault in mine) > usual)


def _handled(response: str, state: DayHealth, before: DayHealth, mine: Sequence[Fault], columns: set[str | None], stopped: bool) -> bool:
    actions = {fault.action for fault in mine}
    refused = state.status == "refused"
    match response:
        case "count" | "retry":
            return not refused and (state.dropped <= before.dropped or "mask" not in actions)
        case "cells" | "chunk":
            return bool(actions & {"mask", "quarantine_group", "quarantine_file"}) or bool(columns & set(state.masked_columns))
        case "feature":
            return bool(columns & set(state.masked_columns)) or "quarantine_file" in actions or (refused and "refuse_day" in actions)
        case "file":
            return any(file.quarantined for file in state.files)
        case "rows":
            return state.dropped > before.dropped
        case "day":
            return refused or bool(columns & set(state.masked_columns))
        case "stop":
            return stopped and "stop" in actions
    return False


def _false_alarms(kinds: Sequence[str], day: str, health: HealthMap, clean: HealthMap) -> list[str]:
    known = {(other, fault.kind, fault.feature) for other, state in clean.days.items() for fault in state.faults}
    found = [
        (other, fault.kind, fault.feature)
        for other, state in health.days.items()
        for fault in state.faults
        if fault.kind not in HARMLESS and not (other == day and (fault.kind in kinds or fault.kind in CONSEQUENCES))
    ]
    return sorted({" ".join(filter(None, one)) for one in found if one not in known})
