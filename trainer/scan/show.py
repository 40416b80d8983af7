"""The table that `scripts/scan.py` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from trainer.schema.health import DayHealth, HealthMap

_STYLE = {"ok": "green", "masked": "yellow", "refused": "red"}
_SHOWN = 3


def print_health(health: HealthMap, console: Console | None = None) -> None:
    """Prints a line a day: status, counts, the largest faults."""
    table = Table("day", "status", title="log health")
    for name in ("rows", "used", "dropped", "duplicates", "late"):
        table.add_column(name, justify="right")
    table.add_column("faults")
    for day, state in health.days.items():
        counts = [f"{getattr(state, name):,}" for name in ("rows", "used", "dropped", "duplicates", "late")]
        table.add_row(day, f"[{_STYLE[state.status]}]{state.status}[/]", *counts, _faults(state))
    (console or Console()).print(table)


def _faults(state: DayHealth) -> str:
    worst = sorted((fault for fault in state.faults if fault.action != "count"), key=lambda fault: (-fault.rows, fault.kind))
    texts = [f"{fault.kind}{f' ({fault.feature})' if fault.feature else ''}: {fault.evidence}" for fault in worst[:_SHOWN]]
    more = len(worst) - _SHOWN
    return "\n".join([*texts, *([f"and {more} more"] if more > 0 else [])])
