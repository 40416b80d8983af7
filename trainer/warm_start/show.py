"""Shows a transfer report as tables a person reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from trainer.schema.transfer import FAMILIES, FATES

_COLOURS = {
    "refused": "red",
    "dropped": "yellow",
    "initialised": "yellow",
    "shrunk": "yellow",
    "grown": "cyan",
    "inserted as identity": "cyan",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints what happens to every tensor, what arrives, and how far the result is from production.

    Args:
        report: The transfer report (`transfer.json`).
        console: Where to; by default the terminal.
    """
    console = console or Console()
    console.print(_tensors(report))
    console.print(_totals(report))
    console.print(_rows(report))
    console.print(_arrives(report))
    for line in _sentences(report):
        console.print(line, highlight=False)


def _tensors(report: dict[str, Any]) -> Table:
    table = _table("Transfer plan", f"production {str(report['source'])[:12]}, plan {str(report.get('sha256', ''))[:12]}")
    for name in ("family", "tensor", "fate", "shape"):
        table.add_column(name, no_wrap=name != "tensor", overflow="fold")
    table.add_column("what happens", overflow="fold", ratio=1)
    groups = list(_groups(report["fates"]))
    for family in FAMILIES:
        rows = [group for group in groups if group[0]["family"] == family]
        for number, (fate, name) in enumerate(rows):
            colour = _COLOURS.get(fate["fate"], "green")
            table.add_row(
                family if number == 0 else "", name, f"[{colour}]{fate['fate']}[/]", " x ".join(map(str, fate["shape"])) or "scalar",
                _what(fate), end_section=number == len(rows) - 1,
            )  # fmt: skip
    return table


def _groups(fates: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields one row for all layers that share a fate: (fate, name with the layers' numbers)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for fate in fates:
        alike = {key: _NUMBER.sub("*", str(value)) for key, value in fate.items() if key not in ("copy_of", "like")}
        groups.setdefault(str(alike), []).append(fate)
    for group in groups.values():
        name = str(group[0]["target"] or group[0]["source"])
        places = sorted(int(match[0]) for fate in group if (match := _NUMBER.search(str(fate["target"] or fate["source"]))))
        span = f"{places[0]}-{places[-1]}" if len(places) > 1 and places[-1] - places[0] + 1 == len(places) else ",".join(map(str, places))
        yield group[0], _NUMBER.sub(f"{{{span}}}", name, count=1) if len(group) > 1 else name


def _what(fate: dict[str, Any]) -> str:
    parts = []
    for move in fate["moves"]:
        parts.append(
            f"{move['axis']} {move['kept']:,} kept"
            + (f" + {move['new']:,} {_FILLS.get(move['fill'], move['fill'])}" if move["new"] else "")
            + (f" - {move['dropped']:,} dropped" if move["dropped"] else "")
            + (f", x {move['scale']:.4g}" if move.get("scale", 1.0) != 1.0 else "")
            + (f", {move['coverage']:.1%} of traffic" if move["axis"].startswith("vocab:") and move["coverage"] < 1 else "")
        )
    if fate.get("dtype"):
        parts.append(str(fate["dtype"]))
    if fate["source"] and fate["target"] and fate["source"] != fate["target"]:
        parts.append(f"from {fate['source']}")
    return "; ".join([*parts, *([fate["reason"]] if fate["reason"] else [])])


_FILLS = {"init": "fresh", "part": "fresh or zero", "oov": "from OOV", "copy": "repeated", "bucket": "from their bucket"}


def _totals(report: dict[str, Any]) -> Table:
    table = _table("Fates")
    for name in ("fate", "tensors", "challenger's elements", "production's elements"):
        table.add_column(name, justify="left" if name == "fate" else "right")
    for name in FATES:
        fates = [fate for fate in report["fates"] if fate["fate"] == name]
        if fates:
            mine = report["elements"][name] if any(fate["target"] for fate in fates) else 0
            table.add_row(name, f"{len(fates):,}", f"{mine:,}", f"{report.get('source_elements', {}).get(name, 0):,}")
    targets = [fate for fate in report["fates"] if fate["target"]]
    table.add_section()
    table.add_row(
        "all",
        f"{len(report['fates']):,}",
        f"{sum(_size(fate['shape']) for fate in targets):,}",
        f"{sum(report.get('source_elements', {}).values()):,}",
    )
    return table


def _size(shape: list[int]) -> int:
    size = 1
    for entries in shape:
        size *= entries
    return size


def _rows(report: dict[str, Any]) -> Table:
    table = _table("Ids")
    for name in ("vocabulary", "kept", "new", "dropped", "traffic kept"):
        table.add_column(name, justify="left" if name == "vocabulary" else "right")
    for name, rows in report["vocabularies"].items():
        name += f" (hashed, {rows['hash']['rows']:,} rows)" if rows.get("hash") else ""
        table.add_row(name, f"{rows['kept']:,}", f"{rows['new']:,}", f"{rows['dropped']:,}", f"{rows['traffic_kept']:.2%}")
    return table


def _arrives(report: dict[str, Any]) -> Table:
    table = _table("What arrives of production")
    for name in ("family", "arrives", "must arrive"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for name, share in report.get("coverage", {}).items():
        wanted = report["rules"]["coverage"].get(name, 0.0)
        table.add_row(name, f"[{'green' if share >= wanted else 'red'}]{share:.2%}[/]", f"{wanted:.0%}")
    return table


def _sentences(report: dict[str, Any]) -> Iterator[str]:
    parity = report["parity"]
    if parity is None:
        yield "[red]refused[/]: nothing was carried over"
        return
    exact = "[green]exact[/]" if report["exact"] else "[yellow]not exact[/]"
    yield (
        f"{exact}: outputs differ by at most {parity['max_difference']:.2e} from production's on {parity['rows']:,} probe rows "
        f"(largest output {parity['max_output']:.3g}; bound {parity['bound']:.2e})"
    )
    for reason in report.get("inexact", []):
        yield f"  because {reason}"
    for name, change in report.get("removed", {}).items():
        measured = (
            "cannot be measured: the log no longer has it" if change["mean_change"] is None else f"{change['mean_change']:.3g} on average"
        )
        yield f"  without {name} outputs change by: {measured}; its mean goes to {change['mean_goes_to']}"
    new = report.get("new_items", {})
    if new.get("count"):
        yield (
            f"{new['count']:,} new items take {new.get('softmax_nats', 0.0):.3f} nats from old ones "
            f"and {new.get('top_share', 0.0):.1%} of the first ten places"
        )
    for name, distance in parity.get("new_outputs", {}).items():
        yield f"new head {name} starts {distance:.1e} away from its base rate"


def _table(title: str, caption: str | None = None) -> Table:
    style = {"title_style": "bold", "header_style": "bold", "box": box.SIMPLE_HEAD}
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left", **style)  # type: ignore[arg-type]
