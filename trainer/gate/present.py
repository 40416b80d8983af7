"""The verdict for a person at a terminal: what decided first, then one line a check that is not simply fine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.schema.verdict import HOLD, PROMOTE, REJECT, Check, Verdict

_STYLES = {PROMOTE: "bold green", HOLD: "bold yellow", REJECT: "bold red", "fail": "red", "hold": "yellow", "pass": "green"}
_MOST_ROWS = 25


def present(verdict: Verdict, path: Path | None = None, console: Console | None = None) -> None:
    """Prints the verdict: all checks on all rows, and those on slices that failed or held.

    Args:
        verdict: What to print.
        path: Where the whole of it was written.
        console: Where to print; default: standard output.
    """
    console = console or Console()
    console.print(Text(f"{verdict.verdict} ({verdict.policy})", style=_STYLES[verdict.verdict]), Text(verdict.reason))
    shown = [check for check in verdict.checks if _notable(check)]
    table = Table(box=None, pad_edge=False)
    for title in ("outcome", "severity", "check"):
        table.add_column(title, no_wrap=True)
    table.add_column("finding", overflow="fold")
    for check in shown[:_MOST_ROWS]:
        table.add_row(Text(check.outcome, style=_STYLES.get(check.outcome, "dim")), check.severity, Text(check.path), Text(check.sentence))
    console.print(table)
    counts = Counter(check.outcome for check in verdict.checks)
    tail = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
    hidden = f"; {len(shown) - _MOST_ROWS:,} more of this kind" if len(shown) > _MOST_ROWS else ""
    console.print(Text(f"{len(verdict.checks):,} checks: {tail}{hidden}" + (f"; all in {path}" if path else ""), style="dim"))


def _notable(check: Check) -> bool:
    return check.outcome in ("fail", "hold") or (check.slice == "all" and check.outcome != "not_applicable")
