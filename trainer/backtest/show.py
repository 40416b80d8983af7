"""Prints a succession table."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table

from trainer.schema.succession import ArmResult, Cost, Interval, Succession


def show(succession: Succession, console: Console | None = None) -> None:
    """Prints one table an action; several seeds of an arm share a row, as mean and range."""
    console = console or Console()
    for action in dict.fromkeys(result.action for result in succession.results):
        table = Table(title=_title(succession, action), title_justify="left", caption_justify="left", caption=_caption(succession))
        for column in ("arm", "NE", "against baseline", "AUC", "spent", "level with baseline", "reaches reference", "seconds"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        chosen = [result for result in succession.results if result.action == action]
        for arm, group in groupby(chosen, key=lambda result: result.arm):
            table.add_row(*_row(arm, list(group), succession))
        console.print(table)


def _title(succession: Succession, action: str) -> str:
    days = succession.days
    return f"{action}: {days[0]} to {days[-1]}, {len(days)} nights, {succession.rows:,} judged rows"


def _caption(succession: Succession) -> str:
    return (
        f"Costs are shares of the first night of the reference ({succession.reference} where no other is named), counted in FLOPs. "
        f"against baseline: NE relative to {succession.baseline} on the same rows, 95 % interval clustered by user. level: first within "
        f"{succession.tolerance:.1%} of it for good. reaches: first as good as the reference for good. '>' marks what was never reached: "
        "all that was spent."
    )


def _row(arm: str, results: list[ArmResult], succession: Succession) -> list[str]:
    name = arm if len(results) == 1 else f"{arm} ({len(results)} seeds)"
    if results[0].reference not in (arm, succession.reference):
        name += f"\nreference {results[0].reference}"
    return [
        name, _numbers([r.ne for r in results], ".4f"), _gap([r.gap for r in results]), _numbers([r.auc for r in results], ".4f"),
        _flops(sum(r.flops for r in results) / len(results)), _cost([r.level for r in results]), _cost([r.reach for r in results]),
        f"{sum(r.seconds for r in results) / len(results):.0f}",
    ]  # fmt: skip


def _numbers(values: list[Interval], form: str) -> str:
    known = [v.value for v in values if v.value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else ""
    return f"{sum(known) / len(known):{form}}{spread}"


def _gap(values: list[Interval]) -> str:
    parts = [f"{v.value:+.2%} [{v.low:+.2%}, {v.high:+.2%}]" for v in values if v.value is not None and v.low is not None]
    return "\n".join(parts) or "-"


def _cost(costs: list[Cost]) -> str:
    return ", ".join(f"{'' if cost.reached else '> '}{cost.share:.1%}" for cost in costs)


def _flops(flops: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops:,.0f} FLOP"
