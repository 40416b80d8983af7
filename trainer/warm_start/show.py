"""Shows a transfer report as a table a person reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints what happens to every tensor, and how far the result is from production."""
    console = console or Console()
    table = Table(title="transfer plan", title_justify="left")
    for column in ("tensor", "fate", "shape", "moves"):
        table.add_column(column, overflow="fold")
    for fate in report["fates"]:
        moves = "; ".join(
            f"{move['axis']}: {move['kept']} kept, {move['new']} new ({move['fill']}), {move['dropped']} dropped" for move in fate["moves"]
        )
        table.add_row(fate["target"] or fate["source"], fate["fate"], "x".join(map(str, fate["shape"])), moves or fate["reason"])
    console.print(table)
    counts = Counter(fate["fate"] for fate in report["fates"])
    parity = report["parity"]
    console.print(", ".join(f"{count} {fate}" for fate, count in counts.items()))
    console.print(
        f"{'exact' if report['exact'] else 'not exact'}: max difference {parity['max_difference']:.2e} on {parity['rows']} probe rows "
        f"(bound {parity['bound']:.2e})"
    )
