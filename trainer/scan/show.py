"""What `scripts/scan.py` prints: a table of the days, and a heat map of the columns in which something was found."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainer.scan.ledger import as_document
from trainer.schema.faults import CONSEQUENCES
from trainer.schema.health import DayHealth, Fault, HealthMap
from trainer.schema.heat import HEAVY, LEGEND, LEVELS, MASKED, NOTED, REFUSED, Cell, heat_lines

_STYLE = {"ok": "green", "masked": "yellow", "refused": "red"}
_HEAT = {NOTED: "dim", MASKED: "yellow", HEAVY: "bold yellow", REFUSED: "bold red"}
_SHOWN = 3
_LEAST_DAYS = 14  # in a line of the map, however narrow the terminal


def print_health(health: HealthMap, console: Console | None = None) -> None:
    """Prints a line a day (status, counts, the largest faults), and the heat map."""
    console = console or Console()
    table = Table("day", "status", title="log health")
    for name in ("rows", "used", "dropped", "duplicates", "late"):
        table.add_column(name, justify="right")
    table.add_column("faults")
    for day, state in health.days.items():
        counts = [f"{getattr(state, name):,}" for name in ("rows", "used", "dropped", "duplicates", "late")]
        table.add_row(day, f"[{_STYLE[state.status]}]{state.status}[/]", *counts, _faults(state))
    console.print(table)
    for text in heat_map(health, console.width):
        console.print(text, no_wrap=True, overflow="ellipsis", soft_wrap=True)


def heat_map(health: HealthMap, width: int) -> list[Text]:
    """Returns the lines of the heat map, a character a day; none where nothing was found.

    Args:
        health: The map.
        width: Characters of a line; longer logs go on below.
    """
    document = as_document(health)
    lines = heat_lines(document["days"], document["notices"])
    if not lines:
        return []
    days, indent = list(health.days), max(len(name) for name, _ in lines) + 2
    step = max(width - indent, _LEAST_DAYS)
    legend = "   ".join(f"{LEVELS[level]} {words}" for level, words in LEGEND.items())
    texts = [Text(f"columns in which something was found   {legend}")]
    for begin in range(0, len(days), step):
        texts += [Text(" " * indent + line, style="bold") for line in _dates(days[begin : begin + step])]
        texts += [_line(name, cells[begin : begin + step], indent) for name, cells in lines]
    return texts


def _dates(days: Sequence[str]) -> list[str]:
    """Returns what stands over a map: its first and last day, and the days of the month, upright."""
    return [f"{days[0]} to {days[-1]}", *("".join(day[digit] for day in days) for digit in (-2, -1))]


def _line(name: str, cells: Sequence[Cell], indent: int) -> Text:
    text = Text(name.ljust(indent))
    for cell in cells:
        text.append(cell.glyph or " ", style=_HEAT.get(cell.level, ""))
    return text


def _faults(state: DayHealth) -> str:
    alike: dict[tuple[str, str | None], list[Fault]] = {}  # a fault of the day is one of each of its files
    for fault in state.faults:
        if fault.action != "count":
            alike.setdefault((fault.kind, fault.feature), []).append(fault)
    # What led to a verdict stands before the verdict.
    worst = sorted(alike.items(), key=lambda entry: (entry[0][0] in CONSEQUENCES, -sum(fault.rows for fault in entry[1]), entry[0][0]))
    texts = [_told(kind, feature, faults) for (kind, feature), faults in worst[:_SHOWN]]
    more = len(worst) - _SHOWN
    notices = [f"notice: {notice.kind}: {notice.what} ({notice.evidence})" for notice in state.notices]
    return "\n".join(escape(text) for text in (*texts, *([f"and {more} more"] if more > 0 else []), *notices))


def _told(kind: str, feature: str | None, faults: Sequence[Fault]) -> str:
    """Says what one kind did to one column of a day; where it did so in many files, how many, and what was seen in the worst."""
    worst = max(faults, key=lambda fault: fault.rows)
    places = len({(fault.file, fault.row_group) for fault in faults})
    often = f", {sum(fault.rows for fault in faults):,} rows in {places} places" if places > 1 else ""
    return f"{kind}{f' ({feature})' if feature else ''}{often}: {worst.evidence}"
