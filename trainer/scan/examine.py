"""Examines one day against what is remembered, and remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainer.config import ScanConfig
from trainer.logs.roles import FEATURE, REQUIRED
from trainer.scan import relations, values
from trainer.scan.history import History, Remembered
from trainer.scan.labels import LOST_HOURS, Counts, disorder, lost_hours, misranked, unripe
from trainer.scan.links import ITEM, USER, ends
from trainer.scan.listed import told, viewed, with_views
from trainer.scan.states import ColumnState
from trainer.scan.summary import FileState, Ranking, binary_actions, day_state, id_columns, monitored
from trainer.scan.suspicion import Suspicion
from trainer.scan.values import Watch
from trainer.scan.verify import FileReport
from trainer.schema.expression import columns_of
from trainer.schema.logs import LogSpec
from trainer.schema.time import add_days

_DETECTORS = 8  # tests a column
_HALF = 2  # half of the budget of false alarms is for columns, half for labels
_LEAST_FILE = 200  # rows of a file that is judged apart from its day
_APART = ("zero_filled", "constant", "unit_change", "sentinel_spike")


@dataclass
class Memory:
    """What the scan carries from day to day.

    Attributes:
        history: Healthy days.
        counts: The counting model.
        yesterday: The day before as it was delivered, accused columns included: a job that hangs for days delivers copies of copies.
            None if there was none.
    """

    history: History
    counts: Counts = field(default_factory=Counts)
    yesterday: tuple[str, dict[str, ColumnState]] | None = None

    @classmethod
    def of(cls, config: ScanConfig) -> Memory:
        return cls(History(config.history_days, config.min_history_days, config.false_alarms))


@dataclass(frozen=True)
class Examined:
    """A day as examined.

    Attributes:
        suspicions: What was found.
        ranks: Whether the day's labels are still ranked.
        remembered: What will be remembered if the day turns out to be healthy.
    """

    suspicions: list[Suspicion]
    ranks: bool
    remembered: Remembered


def examine_day(
    spec: LogSpec, day: str, types: dict[str, str], reports: Sequence[FileReport], memory: Memory, config: ScanConfig
) -> Examined:
    """Runs every detector on a day.

    Args:
        spec: The log.
        day: Business day.
        types: Source column -> logical type.
        reports: Its verified files.
        memory: What is usual.
        config: Policy.
    """
    types, roles = viewed(spec, types, monitored(spec, types))
    tests = _HALF * _DETECTORS * len(roles)
    watch = Watch(memory.history, day, roles, types, id_columns(spec), spec.user, spec.item, tests, config.bot_share)
    mixed = _mixed(watch, reports)
    state = day_state([_without(report.state, {one.feature for one in mixed if one.file == report.file.path}) for report in reports])
    explained = {fault.feature for report in reports for fault in report.faults if fault.action in ("mask", "quarantine_group")}
    repeats, known = _matches(watch, state, memory), relations.overlaps(watch, state.columns)
    found = [one for one in values.examine(watch, state.columns) if not (one.kind == "null_spike" and one.feature in explained)]
    found += _related(watch, spec, state, repeats, known, {one.feature for one in (*found, *mixed)} | explained)
    counted = memory.counts.rankings(state)
    labels, wrong = _mislabelled(watch, spec, state, counted, memory.history, found)
    found += [*labels, *wrong, *mixed, *lost_hours(memory.history, state, day, spec.timezone), *disorder(memory.history, state)]
    remembered = Remembered(
        day,
        state,
        {name: rate for name, (rate, _) in repeats.items()},
        {name: share for name, (share, _) in known.items()},
        state.rankings,
        counted,
    )
    return Examined(told(spec, found), bool(state.rankings or counted) and not wrong, remembered)


def remember(memory: Memory, examined: Examined, accused: Iterable[str], actions: dict[str, str], healthy: bool) -> None:
    """Adds a day to the memory, without its accused columns; a refused day is only the next one's yesterday.

    Args:
        memory: Changed in place.
        examined: The day.
        accused: Columns that something was found in.
        actions: Binary action -> source column.
        healthy: Whether the day was not refused.
    """
    day, bad = examined.remembered, with_views(accused)
    memory.yesterday = (day.day, day.state.columns)
    if not healthy:
        return
    bad_actions = {action for action, column in actions.items() if column in bad}
    memory.counts.learn(day.state, bad_actions)
    state = replace(_without(day.state, bad), entity_bins=day.state.entity_bins[:, :0], labels={})
    # Else no hour would be missed any more once it was lost on half of the days.
    if any(one.kind == LOST_HOURS and not one.unsure for one in examined.suspicions):
        state = replace(state, hour_H=np.zeros_like(state.hour_H))
    memory.history.add(
        replace(
            day, state=state,
            matches={name: rate for name, rate in day.matches.items() if name not in bad},
            overlaps={name: share for name, share in day.overlaps.items() if name not in bad},
            rankings=_trusted(day.rankings, bad_actions), counted=_trusted(day.counted, bad_actions),
        )
    )  # fmt: skip


def _mislabelled(
    watch: Watch, spec: LogSpec, state: FileState, counted: dict[str, Ranking], history: History, found: Sequence[Suspicion]
) -> tuple[list[Suspicion], list[Suspicion]]:
    """Returns labels that are not ripe, and labels that are no longer ranked; an accused label is not asked about again."""
    actions = {name: next(iter(columns)) for name, columns in binary_actions(spec).items() if len(columns) == 1}
    sound = {name: column for name, column in actions.items() if not _accused(found, column)}
    labels = list(unripe(history, state, sound, watch.day, spec.timezone))
    if _accused(found, spec.user, spec.item):
        return labels, []  # whoever lost the ids cannot rank
    asked = {name: column for name, column in sound.items() if not _accused(labels, column)}
    distrusted = [name for name, source in spec.logged_scores.items() if _accused(found, *columns_of(source))]
    return labels, list(misranked(watch, state, counted, asked, distrusted))


def _related(
    watch: Watch,
    spec: LogSpec,
    state: FileState,
    repeats: Mapping[str, tuple[float, int]],
    known: Mapping[str, tuple[float, int]],
    accused: set[str | None],
) -> list[Suspicion]:
    """Detectors that look at two columns or two days; each leaves alone what was accused before it."""
    skip = {name for name in accused if name}
    related: list[Suspicion] = []

    def add(suspicions: Iterable[Suspicion]) -> None:
        for one in list(suspicions):
            related.append(one)
            skip.add(one.feature or "")

    add(relations.leaks(watch, state.links, skip))
    add(relations.stale(watch, repeats, skip))
    add(relations.resalted(watch, known, skip))
    if {spec.user, spec.item} & skip:
        skip |= {USER, ITEM}
    add(relations.shuffled(watch, state, skip, {USER: spec.user, ITEM: spec.item}))
    return related


def _matches(watch: Watch, state: FileState, memory: Memory) -> dict[str, tuple[float, int]]:
    """Compares features with those of the day before, if that day was there."""
    if memory.yesterday is None or memory.yesterday[0] != add_days(watch.day, -1):
        return {}
    features = {name: column for name, column in state.columns.items() if watch.roles.get(name) in (FEATURE, REQUIRED)}
    return relations.matches(features, memory.yesterday[1])


def _mixed(watch: Watch, reports: Sequence[FileReport]) -> list[Suspicion]:
    """Columns that are wrong in some files of the day and right in others: two versions of a producer."""
    large = [report for report in reports if report.state.rows >= _LEAST_FILE]
    if len(large) < 2:
        return []
    found: dict[str, list[tuple[FileReport, Suspicion]]] = {}
    for report in large:
        for one in values.examine(watch, report.state.columns):
            if one.feature and one.kind in _APART:
                found.setdefault(one.feature, []).append((report, one))
    found = {
        name: files for name, files in found.items() if _right_elsewhere(watch, reports, name, {report.file.path for report, _ in files})
    }
    told = {name: f"in {len(files)} of {len(large)} files" for name, files in found.items()}
    return [
        replace(one, kind="mixed_version", evidence=f"{one.kind} {told[name]}: {one.evidence}", file=report.file.path)
        for name, files in found.items()
        for report, one in files
    ]


def _right_elsewhere(watch: Watch, reports: Sequence[FileReport], name: str, accused: set[str]) -> bool:
    """Tells whether a column is right in the day's other files, taken together: each may be too small to tell.

    If it is not, or they hold too few rows, the column is wrong in the whole day.
    """
    rest = day_state([report.state for report in reports if report.file.path not in accused])
    wrong = [one for one in values.examine(watch, rest.columns) if one.feature == name and one.kind in _APART]
    return rest.rows >= _LEAST_FILE and not wrong


def _accused(found: Sequence[Suspicion], *columns: str) -> bool:
    return any(one.feature in columns for one in found)


def _without(state: FileState, columns: set[str] | set[str | None]) -> FileState:
    """Forgets columns, and what ties them to others."""
    if not columns:
        return state
    return replace(
        state,
        columns={name: column for name, column in state.columns.items() if name not in columns},
        links={name: link for name, link in state.links.items() if not set(ends(name)) & columns},
    )


def _trusted(rankings: dict[str, Ranking], bad: set[str]) -> dict[str, Ranking]:
    return {action: ranking for action, ranking in rankings.items() if action not in bad}
