"""A diagnosis for a person at a terminal: one paragraph, then the tables behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.schema.diagnosis import Diagnosis


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Prints a diagnosis.

    Args:
        diagnosis: What to print.
        console: Where to print; default: standard output.
    """
    console = console or Console(highlight=False)
    console.print(Text(diagnosis.paragraph))
    for finding in diagnosis.findings:
        console.print(
            Text(f"  {'*' if finding.supports else '-'} {finding.topic}: {finding.sentence}", style="" if finding.supports else "dim")
        )
    _table(console, "Worst slices (found on one half of the users, tested on the other)", diagnosis.slices)
    _table(console, "Features that moved", diagnosis.drift)
    _table(console, "Loss without a feature", diagnosis.ablation)
    rows = [{"day": day, **{action: entry["rate"] for action, entry in actions.items()}} for day, actions in diagnosis.cohorts.items()]
    _table(console, "Positives at equal label age", rows)


def _table(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text("" if value is None else str(value))
