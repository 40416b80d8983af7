"""Detectors that need two columns, or two days: right values in wrong rows, yesterday's values, new ids, values that know the label."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainer.logs.roles import FEATURE, LABEL, REQUIRED
from trainer.scan.history import share_noise, share_scale
from trainer.scan.links import ITEM, USER, Link, ends, key
from trainer.scan.states import ColumnState, match_rate, overlap
from trainer.scan.summary import FileState
from trainer.scan.suspicion import Suspicion
from trainer.scan.values import Watch

_STRONG = 0.1  # a weaker link between columns is not missed
_BROKEN = 0.5  # of the usual strength
_LEAK, _NO_LEAK = 0.8, 0.5
_LEAK_RISE = 0.2
_STALE_RISE = 0.3
_KNOWN, _LOST = 0.1, 0.3  # usual overlap of ids that means something, and the part of it that may not be left
_MANY = 20  # ids; fewer are categories that everybody has
_LEAST_ROWS = 100
_PRIOR_LINK, _PRIOR_SHARE = 0.012, 0.05
_RECENT = 3  # days whose ids are compared with: the overlap with all days grows with their number


def leaks(watch: Watch, links: Mapping[str, Link], skip: Collection[str]) -> Iterator[Suspicion]:
    """Features that know a label all of a sudden."""
    features = [name for name, role in watch.roles.items() if role in (FEATURE, REQUIRED) and name not in skip]
    labels = [name for name, role in watch.roles.items() if role == LABEL]
    for name in features:
        worst = max((_leak(watch, links, name, label) for label in labels), key=lambda found: found[0], default=(0.0, None))
        if worst[1] is not None:
            yield worst[1]


def _leak(watch: Watch, links: Mapping[str, Link], name: str, label: str) -> tuple[float, Suspicion | None]:
    link = links.get(key(name, label))
    past = watch.history.series(lambda day: found.strength if (found := day.state.links.get(key(name, label))) else None)
    usual = watch.history.usual(past)
    if link is None or usual is None or link.strength < max(usual + _LEAK_RISE, 2 * usual):
        return 0.0, None
    if not watch.history.strange(watch.day, link.strength, past, prior=_PRIOR_LINK, noise=1 / np.sqrt(link.rows), tests=watch.tests):
        return 0.0, None
    kind = "label_leak" if link.strength >= _LEAK and usual <= _NO_LEAK else "future_leakage"
    return link.strength, Suspicion(kind, f"tells {label} with strength {link.strength:.2f}, usual {usual:.2f}", link.rows, name)


def matches(columns: Mapping[str, ColumnState], yesterday: Mapping[str, ColumnState]) -> dict[str, tuple[float, int]]:
    """Returns column -> share of values that the same user had the day before, and the rows looked at."""
    return {name: match_rate(state, yesterday[name]) for name, state in columns.items() if name in yesterday}


def stale(watch: Watch, found: Mapping[str, tuple[float, int]], skip: Collection[str]) -> Iterator[Suspicion]:
    """Columns that repeat, user by user, what was there the day before."""
    for name, (rate, rows) in found.items():
        if name in skip or watch.roles.get(name) not in (FEATURE, REQUIRED) or rows < _LEAST_ROWS:
            continue
        past = [(day, share_scale(value)) for day, value in watch.history.series(lambda day, name=name: day.matches.get(name))]  # type: ignore[misc]
        usual = watch.history.usual(past)
        if usual is None or rate < np.sin(usual) ** 2 + _STALE_RISE:
            continue
        if watch.history.strange(watch.day, share_scale(rate), past, prior=_PRIOR_SHARE, noise=share_noise(rows), tests=watch.tests):
            evidence = f"{rate:.1%} of values are what the user had the day before, usual {np.sin(usual) ** 2:.1%}"
            yield Suspicion("stale_copy", evidence, rows, name)


def overlaps(watch: Watch, columns: Mapping[str, ColumnState]) -> dict[str, tuple[float, int]]:
    """Returns id column -> share of rows whose id was there on one of the last healthy days, and the rows looked at.

    A young log has fewer days to look back on, and a lower share; waiting for all of them would let the first damage become usual.
    """
    found = {}
    for name in sorted(watch.ids & set(columns)):
        past = [state for _, state in watch.history.of_column(name)][-_RECENT:]
        if past and len(columns[name].id_K) >= _MANY:
            found[name] = overlap(columns[name], past)
    return found


def resalted(watch: Watch, found: Mapping[str, tuple[float, int]], skip: Collection[str]) -> Iterator[Suspicion]:
    """Id columns whose ids nobody has ever seen."""
    for name, (share, rows) in found.items():
        past = [(day, share_scale(value)) for day, value in watch.history.series(lambda day, name=name: day.overlaps.get(name))]  # type: ignore[misc]
        usual = watch.history.usual(past)
        if name in skip or usual is None or np.sin(usual) ** 2 < _KNOWN or share > _LOST * np.sin(usual) ** 2 or rows < _LEAST_ROWS:
            continue
        if watch.history.strange(watch.day, share_scale(share), past, prior=_PRIOR_SHARE, noise=share_noise(rows), tests=watch.tests):
            yield Suspicion("resalted_ids", f"{share:.1%} of rows have a known {name}, usual {np.sin(usual) ** 2:.1%}", rows, name)


@dataclass(frozen=True)
class _Graph:
    """Links that are usually strong with their usual strengths, and those of them that are broken today with what to say."""

    strong: dict[str, float]
    broken: dict[str, str]

    def weight(self, node: str, links: Collection[str]) -> float:
        """Adds up the usual strengths of a node's links among those given."""
        return sum(self.strong[name] for name in links if node in ends(name))


def shuffled(watch: Watch, state: FileState, skip: Collection[str], entities: Mapping[str, str]) -> list[Suspicion]:
    """Columns that have lost all that tied them to others: right values, wrong rows.

    A broken link has two ends. The end that lost most of its links is to blame; what it explains is no evidence against others.
    Labels can be to blame too: they are judged by how they are ranked, not here.

    Args:
        watch: What to go by.
        state: The day.
        skip: Columns that something else is wrong with.
        entities: Name of an entity in links -> its source column.
    """
    graph = _graph(watch, state, skip)
    broken, found = dict(graph.broken), []
    while broken:
        nodes = sorted({end for name in broken for end in ends(name)})
        blamed = max(nodes, key=lambda node: _blame(watch, graph, node, broken))
        mine = [name for name in broken if blamed in ends(name)]
        if graph.weight(blamed, mine) < _BROKEN * graph.weight(blamed, graph.strong):
            break  # nobody lost most of what it had: the world moved
        column = entities.get(blamed, blamed)
        if watch.roles.get(column) != LABEL:
            had = sum(blamed in ends(name) for name in graph.strong)
            evidence = f"{len(mine)} of {had} links with other columns are broken: {', '.join(broken[name] for name in mine[:3])}"
            found.append(Suspicion("shuffled_column", evidence, state.rows, column))
        broken = {name: said for name, said in broken.items() if name not in mine}
    return found


def _graph(watch: Watch, state: FileState, skip: Collection[str]) -> _Graph:
    strong, broken = {}, {}
    for name, link in state.links.items():
        if any(end in skip or _mostly_null(state, end) for end in ends(name)) or link.rows < _LEAST_ROWS:
            continue
        past = watch.history.series(lambda day, name=name: found.strength if (found := day.state.links.get(name)) else None)  # type: ignore[misc]
        usual = watch.history.usual(past)
        if usual is None or usual < _STRONG:
            continue
        strong[name] = usual
        noise = 1 / np.sqrt(link.rows)
        if link.strength < _BROKEN * usual and watch.history.strange(
            watch.day, link.strength, past, prior=_PRIOR_LINK, noise=noise, tests=watch.tests
        ):
            broken[name] = f"{name} {link.strength:.2f} instead of {usual:.2f}"
    return _Graph(strong, broken)


def _mostly_null(state: FileState, name: str) -> bool:
    column = state.columns.get(name)
    return column is not None and column.nulls > 0.2 * column.rows


def _blame(watch: Watch, graph: _Graph, node: str, broken: Collection[str]) -> tuple[bool, float, float, bool, str]:
    """Orders the ends of broken links: the share of its links that a node lost, then their weight; an entity ties many columns."""
    lost, had = graph.weight(node, broken), graph.weight(node, graph.strong)
    several = node not in (USER, ITEM) or sum(node in ends(name) for name in broken) > 1
    return several, lost / had, lost, watch.roles.get(node) in (FEATURE, REQUIRED), node
