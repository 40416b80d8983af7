"""What is remembered of a file as a whole: its columns, its hours, its labels, and how production's scores ranked them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from trainer.errors import DataError
from trainer.logs.conform import REAL
from trainer.logs.lists import list_columns
from trainer.logs.roles import EXTRA, FEATURE, KEY, LABEL, REQUIRED, source_columns
from trainer.logs.values import categorical_columns
from trainer.scan.links import Link, links
from trainer.scan.listed import listed_ids, row_view, value_states
from trainer.scan.states import ColumnState, column_state, merged_by_name, value_hashes
from trainer.schema.examples import LABEL as LABEL_COLUMN
from trainer.schema.examples import LOGGED
from trainer.schema.expression import columns_of
from trainer.schema.logs import LogSpec
from trainer.schema.time import DAY_MS, HOUR_MS, day_start_ms

HOURS = 25  # of a local day; the longest one, at the end of daylight saving, has 25
COUNTED_ROWS = 200_000  # rows of a file that the counting model learns from and is judged on
_BINS = 1 << 16
MAX_CONTEXT = 4


@dataclass(frozen=True)
class Ranking:
    """How well scores rank a label: AUC with the sizes of both classes."""

    auc: float
    positives: int
    negatives: int

    @property
    def error(self) -> float:
        """Standard error of the AUC (Hanley and McNeil, 1982)."""
        a, m, n = self.auc, self.positives, self.negatives
        above, below = a / (2 - a), 2 * a * a / (1 + a)
        return float(np.sqrt(max(a * (1 - a) + (m - 1) * (above - a * a) + (n - 1) * (below - a * a), 1e-12) / (m * n)))


@dataclass(frozen=True)
class FileState:
    """A file, or a whole day.

    Attributes:
        rows: Usable rows.
        columns: Monitored source columns; of lists and vectors, their views.
        hour_H: Events in each hour of the local day.
        label_hours: Binary action -> events with a known label, and positives, by hour: int64 [2, H].
        inversions: Share of rows that lie before their predecessor.
        links: How strongly columns hang together (`trainer.scan.links`).
        rankings: Binary action -> how production's logged scores rank it.
        entity_bins: Hashed ids for the counting model, uint16 [E, N]: user, item, then categorical features.
        labels: Binary action -> int8 [N] for the same rows; -1 where unknown.
    """

    rows: int = 0
    columns: dict[str, ColumnState] = field(default_factory=dict)
    hour_H: np.ndarray = field(default_factory=lambda: np.zeros(HOURS, np.int64))
    label_hours: dict[str, np.ndarray] = field(default_factory=dict)
    inversions: float = 0.0
    links: dict[str, Link] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    entity_bins: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint16))
    labels: dict[str, np.ndarray] = field(default_factory=dict)


def monitored(spec: LogSpec, types: Mapping[str, str]) -> dict[str, str]:
    """Returns the source columns whose values are watched -> role: ids, features, labels, and real extras (logged scores)."""
    roles = source_columns(spec)
    watched = {name: role for name, role in roles.items() if role in (FEATURE, REQUIRED, LABEL)}
    watched |= dict.fromkeys((spec.user, spec.item), KEY)
    watched |= {name: EXTRA for name, role in roles.items() if role == EXTRA and types.get(name) == REAL}
    return dict(sorted(watched.items()))


def id_columns(spec: LogSpec) -> set[str]:
    """Returns the views (`trainer.scan.listed`) that hold ids or categories."""
    return {spec.user, spec.item, *categorical_columns(spec), *listed_ids(spec)}


def binary_actions(spec: LogSpec) -> dict[str, set[str]]:
    """Returns binary actions that are trained or judged on -> their source columns."""
    return {
        name: columns_of(action.expression)
        for name, action in spec.actions.items()
        if action.kind == "binary" and (action.gated or action.history)
    }


def file_state(spec: LogSpec, types: Mapping[str, str], day: str, conformed: pa.Table, events: pa.Table) -> FileState:
    """Summarises a file.

    Args:
        spec: The log.
        types: Source column -> logical type.
        day: Business day.
        conformed: Source columns of the rows that are events.
        events: The same rows, normalised.
    """
    if not len(events):
        return FileState()
    conformed = conformed.combine_chunks()
    items = _column(conformed, spec.item)
    user_N, item_N = value_hashes(_column(conformed, spec.user)), value_hashes(items)
    watched, ids = monitored(spec, types), id_columns(spec)
    listed = {name: _column(conformed, name) for name in list_columns(spec)}
    columns = {name: row_view(listed[name], spec, name) if name in listed else _column(conformed, name) for name in watched}
    actions = binary_actions(spec)
    labels = {name: _label(events, name) for name in actions}
    start = day_start_ms(day, spec.timezone)
    event_N = events["event_time"].to_numpy()
    hour_N = (event_N - start) // HOUR_MS
    own_N = (event_N >= start) & (event_N < start + DAY_MS + HOUR_MS) & (hour_N < HOURS)
    step = max(len(events) // COUNTED_ROWS, 1)
    return FileState(
        rows=len(events),
        columns={name: column_state(column, user_N, name in ids, None if name in ids else items) for name, column in columns.items()}
        | value_states(spec, listed, user_N),
        hour_H=np.bincount(hour_N[own_N], minlength=HOURS),
        label_hours={name: _by_hour(label_N[own_N], hour_N[own_N]) for name, label_N in labels.items()},
        inversions=float(np.mean(np.diff(event_N) < 0)) if len(event_N) > 1 else 0.0,
        links=links({name: column for name, column in columns.items() if watched[name] != KEY}, user_N, item_N),
        rankings={name: found for name in spec.logged_scores if name in actions and (found := _ranked(events, name, labels[name]))},
        entity_bins=np.stack([_bins(hash_N[::step]) for hash_N in (user_N, item_N, *_context(spec, columns))]),
        labels={name: label_N[::step] for name, label_N in labels.items()},
    )


def ranked_by(state: FileState, events: pa.Table, scores: Mapping[str, np.ndarray]) -> FileState:
    """Replaces the rankings of a file by those of other scores: production's on a day whose log does not carry them.

    Args:
        state: The file's state.
        events: Its rows, normalised.
        scores: Action -> score of every row.

    Raises:
        DataError: If an action has another number of scores than the file has rows.
    """
    for action, score_N in scores.items():
        if len(score_N) != len(events):
            raise DataError("injected scores do not fit the rows", where=action, got=len(score_N), expected=len(events))
    found = {
        action: rank(np.asarray(scores[action], np.float64), _label(events, action)) for action in scores if action in state.label_hours
    }
    return replace(state, rankings={action: ranking for action, ranking in found.items() if ranking is not None})


def day_state(states: Sequence[FileState]) -> FileState:
    """Merges the files of a day; links and rankings are averaged by rows."""
    full = [state for state in states if state.rows]
    if len(full) <= 1:
        return full[0] if full else FileState()
    rows = sum(state.rows for state in full)
    actions = dict.fromkeys(name for state in full for name in state.label_hours)
    return FileState(
        rows=rows,
        columns=merged_by_name([state.columns for state in full]),
        hour_H=np.sum([state.hour_H for state in full], axis=0),
        label_hours={name: np.sum([state.label_hours[name] for state in full], axis=0) for name in actions},
        inversions=sum(state.inversions * state.rows for state in full) / rows,
        links=_mean_links(full),
        rankings={name: found for name in actions if (found := _mean_ranking([s.rankings[name] for s in full if name in s.rankings]))},
        entity_bins=np.concatenate([state.entity_bins for state in full], axis=1),
        labels={name: np.concatenate([state.labels[name] for state in full]) for name in actions},
    )


def rank(score_N: np.ndarray, label_N: np.ndarray) -> Ranking | None:
    """Returns the AUC of scores (ties one half) over rows whose label is 0 or 1; None with a single class."""
    use_N = (label_N >= 0) & np.isfinite(score_N)
    score_N, positive_N = score_N[use_N], label_N[use_N] == 1
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if min(positives, negatives) < 2:
        return None
    order = np.argsort(score_N, kind="stable")
    new_N = np.r_[True, np.diff(score_N[order]) != 0]
    block_N = np.cumsum(new_N) - 1
    begin = np.flatnonzero(new_N)
    middle = (begin + np.r_[begin[1:], len(order)] - 1) / 2
    rank_sum = float(middle[block_N][positive_N[order]].sum())
    return Ranking((rank_sum - positives * (positives - 1) / 2) / (positives * negatives), positives, negatives)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def _label(events: pa.Table, action: str) -> np.ndarray:
    return np.nan_to_num(np.asarray(events[LABEL_COLUMN + action].fill_null(-1.0), np.float32), nan=-1).astype(np.int8)


def _by_hour(label_N: np.ndarray, hour_N: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(hour_N[mask_N], minlength=HOURS) for mask_N in (label_N >= 0, label_N == 1)])


def _ranked(events: pa.Table, action: str, label_N: np.ndarray) -> Ranking | None:
    step = max(len(events) // COUNTED_ROWS, 1)
    return rank(np.asarray(events[LOGGED + action].fill_null(np.nan), np.float64)[::step], label_N[::step])


def _bins(hash_N: np.ndarray) -> np.ndarray:
    return (hash_N >> np.uint64(48)).astype(np.uint16)


def _context(spec: LogSpec, columns: Mapping[str, pa.Array]) -> list[np.ndarray]:
    """Hashes of the first categorical features that are plain columns."""
    names = [name for name, feature in spec.features.items() if feature.kind == "categorical" and (feature.expression or name) in columns]
    return [value_hashes(columns[spec.features[name].expression or name]) for name in names[:MAX_CONTEXT]]


def _mean_links(states: Sequence[FileState]) -> dict[str, Link]:
    found: dict[str, Link] = {}
    for name in dict.fromkeys(name for state in states for name in state.links):
        parts = [state.links[name] for state in states if name in state.links]
        rows = sum(part.rows for part in parts)
        found[name] = Link(sum(part.strength * part.rows for part in parts) / max(rows, 1), rows)
    return found


def _mean_ranking(parts: Sequence[Ranking]) -> Ranking | None:
    pairs = [part.positives * part.negatives for part in parts]
    if not parts:
        return None
    auc = sum(part.auc * weight for part, weight in zip(parts, pairs, strict=True)) / sum(pairs)
    return Ranking(auc, sum(part.positives for part in parts), sum(part.negatives for part in parts))
