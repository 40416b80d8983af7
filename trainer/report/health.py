"""Data health: the map of days and columns, and where each day's rows went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import count, counted, finite, percent
from trainer.schema.heat import LEVELS, MASKED, OK, Cell, heat_lines

MOST_DAYS = 92  # a quarter fits on the page; older days are summed up in a sentence
MOST_FEATURES = 40
MOST_FAULTS = 300
ROLES = {"holdout": "judged", "train": "trained on", "seen": "seen by production", "refused": "refused", "unripe": "not ripe"}


@dataclass(frozen=True)
class Day:
    """One day: its status, its part in the run, and its rows."""

    day: str
    status: str
    role: str
    rows: int
    used: int
    dropped: int
    duplicates: int
    late: int
    height: int

    @property
    def number(self) -> str:
        return self.day[-2:]

    @property
    def level(self) -> str:
        return self.status if self.status in LEVELS else MASKED

    @property
    def glyph(self) -> str:
        return LEVELS[self.level]


@dataclass(frozen=True)
class Fault:
    """A line of the list of faults."""

    day: str
    kind: str
    feature: str
    file: str
    rows: str
    evidence: str


@dataclass(frozen=True)
class Health:
    """The whole section.

    Attributes:
        sentence: The days in one sentence.
        totals: (what, rows) over all days.
        months: (month, days) over the columns.
        days: Columns of the map.
        features: Lines of the map: column of the log, and its cells.
        healthy: How many declared features had no fault, in a sentence.
        faults: What was found, day by day.
        notices: What was strange and is no fault, in sentences.
        left_out: What the page does not show, in a sentence.
    """

    sentence: str
    totals: list[tuple[str, str]]
    months: list[tuple[str, int]]
    days: list[Day]
    features: list[tuple[str, list[Cell]]]
    healthy: str
    faults: list[Fault]
    notices: list[str]
    left_out: str


def health(run: Artefacts) -> Health | None:
    """Builds the section; None where nothing was scanned."""
    found = {day: state for day, state in sorted((run.scan.get("days") or {}).items()) if isinstance(state, Mapping)}
    if not found:
        return None
    shown = dict(list(found.items())[-MOST_DAYS:])
    roles = _roles(run)
    most = max((_rows(state)["rows"] for state in shown.values()), default=0)
    days = [_day(day, state, roles.get(day, ""), most) for day, state in shown.items()]
    notices = [notice for notice in run.scan.get("notices") or [] if isinstance(notice, Mapping)]
    lines = heat_lines(shown, notices)
    faults = [_fault(day, fault) for day, state in found.items() for fault in state.get("faults", [])]
    statuses = Counter(str(state.get("status")) for state in found.values())
    words = ", ".join(f"{count(number)} {status}" for status, number in sorted(statuses.items()))
    return Health(
        sentence=f"{counted(len(found), 'day')} scanned, {next(iter(found))} to {list(found)[-1]}: {words}.",
        totals=_totals(found),
        months=[(month, len(list(group))) for month, group in groupby(days, key=lambda day: day.day[:7])],
        days=days,
        features=lines[:MOST_FEATURES],
        healthy=_healthy(run, [name for name, _ in lines]),
        faults=faults[:MOST_FAULTS],
        notices=[_notice(notice) for notice in notices[:MOST_FAULTS]],
        left_out=_left_out(len(found) - len(shown), len(lines) - MOST_FEATURES, len(faults) - MOST_FAULTS),
    )


def status_line(run: Artefacts) -> tuple[bool, str]:
    """Returns whether the data gave no reason to worry, and a sentence for the first screen."""
    found = health(run)
    if found is None:
        return True, "The logs were not scanned in this run."
    lost = sum(day.dropped for day in found.days)
    rows = sum(day.rows for day in found.days)
    words = f" {count(lost)} of {count(rows)} rows set aside ({percent(lost / rows, 2)})." if rows else ""
    return all(day.status == OK for day in found.days), found.sentence + words


def _rows(state: Mapping[str, Any]) -> dict[str, int]:
    """Rows of a day by fate: below ``rows``, or beside the status."""
    nested = state.get("rows")
    source = nested if isinstance(nested, Mapping) else state
    return {name: int(finite(source.get(name)) or 0) for name in ("rows", "used", "dropped", "duplicates", "late")}


def _day(day: str, state: Mapping[str, Any], role: str, most: int) -> Day:
    rows = _rows(state)
    return Day(day=day, status=str(state.get("status")), role=role, height=round(100 * rows["rows"] / most) if most else 0, **rows)


def _roles(run: Artefacts) -> dict[str, str]:
    """What each day was used for, from the summary's plan; a day with several parts keeps the first of `ROLES`."""
    plan = run.summary.data.get("days") or run.summary.data
    if not isinstance(plan, Mapping):
        return {}
    found: dict[str, str] = {}
    for part, word in ROLES.items():
        days = plan.get(part)
        for day in days if isinstance(days, list | tuple) else []:
            found.setdefault(str(day), word)
    return found


def _notice(notice: Mapping[str, Any]) -> str:
    return f"{notice.get('day')}: {notice.get('kind')}: {notice.get('what')} ({notice.get('evidence')})"


def _fault(day: str, fault: Mapping[str, Any]) -> Fault:
    return Fault(
        day, str(fault.get("kind")), str(fault.get("feature") or ""), str(fault.get("file") or ""), count(fault.get("rows")),
        str(fault.get("evidence") or ""),
    )  # fmt: skip


def _totals(days: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    words = {"rows": "read", "used": "used", "dropped": "set aside", "duplicates": "duplicate deliveries removed", "late": "known late"}
    sums = {name: sum(_rows(state)[name] for state in days.values()) for name in words}
    return [(word, count(sums[name])) for name, word in words.items()]


def _healthy(run: Artefacts, faulty: Sequence[str]) -> str:
    declared = run.setting("data", "features", default={})
    clean = [name for name in declared if name not in faulty] if isinstance(declared, Mapping) else []
    return f"{counted(len(clean), 'other declared feature')}: nothing found." if clean else ""


def _left_out(days: int, features: int, faults: int) -> str:
    parts = [
        f"{counted(number, word)}"
        for number, word in ((days, "earlier day"), (features, "more column"), (faults, "more fault"))
        if number > 0
    ]
    return f"Not shown: {', '.join(parts)}; see scan.json and quarantine/ledger.parquet." if parts else ""
