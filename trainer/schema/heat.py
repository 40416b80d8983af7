"""The heat map of a log: its columns, day by day, and how bad each was; `scripts/scan.py` prints it and the report draws it.

Both read it off the days of ``scan.json`` (see `trainer.schema.health`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE = "(file or day)"
HARMLESS = ("duplicate_rows", "late_rows")  # counted, and not held against the data
_NOTHING_LOST = (*HARMLESS, "schema_drift", "slow_read", "transient_error", "typed_time")  # of the rest the ledger has rows

OK, NOTED, MASKED, HEAVY, REFUSED = "ok", "noted", "masked", "heavy", "refused"
LEVELS = {OK: "", NOTED: "·", MASKED: "–", HEAVY: "=", REFUSED: "×"}
LEGEND = {NOTED: "counted, no fault", MASKED: "masked or set aside", HEAVY: "more than one row in twenty", REFUSED: "refused"}
_HEAVY_SHARE = 0.05  # a fault in more than one row of twenty
_TOLD = 4  # faults a cell tells


@dataclass(frozen=True)
class Cell:
    """One day of one column: how bad, and what was seen."""

    level: str
    words: str

    @property
    def glyph(self) -> str:
        return LEVELS[self.level]


def heat_lines(days: Mapping[str, Mapping[str, Any]], notices: Sequence[Mapping[str, Any]] = ()) -> list[tuple[str, list[Cell]]]:
    """Returns one line a column in which something was found: the whole days first, then by the number of days it was hit.

    Args:
        days: Day -> status, faults, masked columns and rows, as in ``scan.json``.
        notices: What is only told, as there.
    """
    cells: dict[str, dict[str, Cell]] = {}
    for day, state in days.items():
        by_feature: dict[str, list[Mapping[str, Any]]] = {}
        for fault in state.get("faults", []):
            by_feature.setdefault(str(fault.get("feature") or WHOLE), []).append(fault)
        for name, faults in by_feature.items():
            cells.setdefault(name, {})[day] = _cell(faults, state)
        for name in state.get("masked_columns", []):
            words = cells.get(name, {}).get(day, Cell(OK, "")).words
            cells.setdefault(str(name), {})[day] = Cell(HEAVY, "; ".join(filter(None, ["masked for the whole day", words])))
    for notice in notices:
        day, words = str(notice.get("day")), f"notice of {notice.get('kind')}: {notice.get('what')}"
        before = cells.setdefault(WHOLE, {}).get(day, Cell(NOTED, ""))
        cells[WHOLE][day] = Cell(before.level, "; ".join(filter(None, [before.words, words])))
    order = sorted(cells, key=lambda name: (name != WHOLE, -sum(cell.level != NOTED for cell in cells[name].values()), name))
    return [(name, [cells[name].get(day, Cell(OK, "")) for day in days]) for name in order]


def _cell(faults: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> Cell:
    levels = [_level(fault, state) for fault in faults]
    words = "; ".join(f"{fault.get('kind')}: {fault.get('evidence')}" for fault in faults[:_TOLD])
    more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
    return Cell(max(levels, key=list(LEVELS).index), words + more)


def _level(fault: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    if fault.get("kind") in _NOTHING_LOST:
        return NOTED
    if state.get("status") == REFUSED and not fault.get("feature"):
        return REFUSED
    nested = state.get("rows")
    rows = _number((nested if isinstance(nested, Mapping) else state).get("rows"))
    return HEAVY if rows and _number(fault.get("rows")) > _HEAVY_SHARE * rows else MASKED


def _number(value: object) -> float:
    """Returns a number of rows; 0 for anything that is none, because files are read as somebody left them."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
