"""The diagnosis as a person reads it: the paragraph, the evidence, and the tables behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import count, percent, significant
from trainer.report.parts import Fact, facts
from trainer.schema.diagnosis import Diagnosis, Finding

MOST_ROWS = 12


@dataclass(frozen=True)
class Grid:
    """A small table.

    Attributes:
        title: What it shows.
        heads: Words over the columns; the first is over the names, the others over numbers.
        rows: Texts of each row.
        omitted: Rows that are not shown.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    omitted: int = 0


@dataclass(frozen=True)
class DiagnosisPart:
    """The section.

    Attributes:
        cause: Most likely cause.
        paragraph: Verdict, cause, evidence and next command in a few sentences.
        next_command: What to run next, empty if nothing.
        findings: Evidence, what supports the cause first.
        signals: How production and the challenger stand.
        grids: The tables that are not empty.
    """

    cause: str
    paragraph: str
    next_command: str
    findings: list[Finding]
    signals: list[Fact]
    grids: list[Grid]


def diagnosis(run: Artefacts) -> DiagnosisPart | None:
    """Returns the diagnosis of a run; None where none was made."""
    found = run.diagnosis
    if found is None:
        return None
    grids = [_slices(found), _drift(found), _ablation(found), _cohorts(found)]
    return DiagnosisPart(
        cause=found.cause, paragraph=found.paragraph, next_command=found.next_command or "", findings=found.findings,
        signals=facts(found.signals), grids=[grid for grid in grids if grid.rows],
    )  # fmt: skip


def _slices(found: Diagnosis) -> Grid:
    rows = [
        [
            f"{row.get('slice')}, {row.get('action')}", count(row.get("n")), _signed(row.get("harm")), _signed(row.get("low")),
            "yes" if row.get("confirmed") else "no",
        ]
        for row in found.slices
    ]  # fmt: skip
    title = "Worst slices, searched on one half of the users and tested on the other"
    return _grid(title, ["slice", "rows", "harm", "at least", "confirmed"], rows)


def _drift(found: Diagnosis) -> Grid:
    rows = [
        [str(row.get("feature")), percent(row.get("nulls_before")), percent(row.get("nulls_after")), significant(row.get("shift"))]
        for row in found.drift
    ]
    return _grid(
        "Features that moved most from the training days to the judged ones", ["feature", "null before", "null now", "shift"], rows
    )


def _ablation(found: Diagnosis) -> Grid:
    rows = [
        [f"{row.get('feature')}, {row.get('action')}", _signed(row.get("production")), _signed(row.get("challenger"))]
        for row in found.ablation
    ]
    return _grid("What each model loses without a feature", ["feature", "production", "challenger"], rows)


def _cohorts(found: Diagnosis) -> Grid:
    rows = [
        [f"{day}, {action}", percent(cohort.get("rate"), 2), count(cohort.get("n"))]
        for day, actions in sorted(found.cohorts.items(), reverse=True)
        for action, cohort in sorted(actions.items())
    ]
    return _grid("Positives among labels of equal age", ["day", "share", "rows"], rows)


def _signed(value: Any) -> str:
    return percent(value, 2, signed=True)


def _grid(title: str, heads: list[str], rows: list[list[str]]) -> Grid:
    return Grid(title, heads, rows[:MOST_ROWS], max(0, len(rows) - MOST_ROWS))
