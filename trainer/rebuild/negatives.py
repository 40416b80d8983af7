"""Sampled negatives for click-only logs, drawn as serving could have drawn them: from what was known before the request.

Every draw is a hash of (seed, day, user, item, time, attempt), so it does not depend on buckets, workers, or loaded days.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.logs.calendar import BusinessDays
from trainer.logs.hashing import combine, hash_ids
from trainer.rebuild.kernels import merged_intervals
from trainer.rebuild.serving import ripe
from trainer.rebuild.sides import SideTable, join
from trainer.schema.examples import CARRIED, FEATURE, LABEL, LOGGED, SERVED
from trainer.schema.ids import splitmix64
from trainer.schema.logs import LogSpec, NegativesSpec
from trainer.schema.time import parse_duration

SEED = 20171001
PARENT = "parent"
ATTEMPTS = 24  # per slot; a request for which so many draws fail has too few candidates
_EVENT_ONLY = (CARRIED + "position", CARRIED + "exposure_probability")  # facts of the shown item, not of the request


@dataclass(frozen=True)
class Candidates:
    """Items that may be drawn, each present from `enter` (included) to `leave` (excluded), sorted by `enter`.

    Attributes:
        items: Item of each entry.
        enter_M: int64 ms.
        leave_M: int64 ms.
    """

    items: pa.Array
    enter_M: np.ndarray
    leave_M: np.ndarray


def candidates(pool: pa.Table, negatives: NegativesSpec) -> Candidates:
    """Builds the candidates: one entry an event (``recent_popularity``), or one a presence of an item (``uniform``).

    Args:
        pool: Events with item, event_time, known_at, of all users.
        negatives: The declared sampler.
    """
    window = parse_duration(negatives.window)
    event_N, known_N = pool["event_time"].to_numpy(), pool["known_at"].to_numpy()
    enter_N, leave_N = ripe(event_N, known_N, 0), event_N + window + 1
    items = pool["item"].combine_chunks()
    encoded = items.dictionary_encode()
    code_N = np.asarray(encoded.indices, np.int64)
    order_V = np.argsort(hash_ids(encoded.dictionary), kind="stable")
    rank_V = np.empty(len(order_V), np.int64)  # ranks by hash: the order of entries must not depend on the order of files
    rank_V[order_V] = np.arange(len(order_V))
    code_N = rank_V[code_N]
    if negatives.sampler == "uniform":
        live_N = leave_N > enter_N
        same_N = np.zeros(int(live_N.sum()), np.int64)
        code_N, enter_N, leave_N = merged_intervals(code_N[live_N], same_N, enter_N[live_N], leave_N[live_N])
    sort_M = np.lexsort((leave_N, code_N, enter_N))
    dictionary = encoded.dictionary.take(pa.array(order_V))
    return Candidates(dictionary.take(pa.array(code_N[sort_M])), enter_N[sort_M], leave_N[sort_M])


def sample(events: pa.Table, pool: Candidates, spec: LogSpec) -> tuple[np.ndarray, np.ndarray]:
    """Draws distinct negatives for every event.

    Args:
        events: Positives: user, item, request_time, event_time.
        pool: Candidates of all users.
        spec: The log.

    Returns:
        Entry of `pool` for each event and slot, int64 [N, per_positive], and which events got all of theirs, bool [N]. An event
        with fewer gets none: a base rate that differs from row to row would be no rate.
    """
    negatives = spec.negatives
    if negatives is None:
        raise ValueError("this log declares no sampler")
    slots, time_N = negatives.per_positive, events["request_time"].to_numpy()
    item_N, pool_item_M = hash_ids(events["item"]), hash_ids(pool.items)
    listed, low_N, high_N = _ranges(pool, time_N, spec, negatives)
    seed_N = combine(hash_ids(events["user"]), item_N, hash_ids(events["event_time"])) ^ np.uint64(SEED)
    drawn_NS = np.full((len(time_N), slots), -1, np.int64)
    for attempt in range(ATTEMPTS * slots):
        open_N = np.flatnonzero((drawn_NS[:, -1] < 0) & (high_N > low_N))
        if not len(open_N):
            break
        draw_N = splitmix64(seed_N[open_N] + np.uint64(attempt + 1))
        entry_N = listed[low_N[open_N] + (draw_N % (high_N - low_N)[open_N].astype(np.uint64)).astype(np.int64)]
        taken_NS = np.where(drawn_NS[open_N] >= 0, pool_item_M[drawn_NS[open_N]], item_N[open_N, None])
        good_N = (pool.leave_M[entry_N] > time_N[open_N]) & (taken_NS != pool_item_M[entry_N, None]).all(1)
        good_N &= pool_item_M[entry_N] != item_N[open_N]
        slot_N = (drawn_NS[open_N] >= 0).sum(1)
        drawn_NS[open_N[good_N], slot_N[good_N]] = entry_N[good_N]
    complete_N = drawn_NS[:, -1] >= 0
    drawn_NS[~complete_N] = -1
    return drawn_NS, complete_N


def drawn_rows(events: pa.Table, pool: Candidates, spec: LogSpec, tables: list[SideTable]) -> pa.Table:
    """Returns the sampled negatives of positives.

    A negative has its positive's user, times, context and carried columns, the drawn item with that item's side features, binary
    and count actions 0, durations and logged scores null, and weight 1 / rate if the sampling rate is declared.

    Args:
        events: Positives with a column is_event.
        pool: Candidates.
        spec: The log.
        tables: Loaded side tables.

    Returns:
        The columns of `events` and `PARENT`, the position of the positive.
    """
    drawn_NS, complete_N = sample(events, pool, spec)
    parent_M = np.repeat(np.flatnonzero(complete_N), drawn_NS.shape[1])
    rows = events.take(pa.array(parent_M))
    item = pool.items.take(pa.array(drawn_NS[complete_N].ravel())).cast(events["item"].type)
    rate = spec.negatives.rate if spec.negatives and spec.negatives.rate else 1.0
    weight_M = (rows["weight"].to_numpy() / rate).astype(np.float32)
    item_features = {FEATURE + name for side in tables if side.entity == "item" for name in side.columns}
    replaced = {"item": item, "weight": pa.array(weight_M), "is_event": pa.array(np.zeros(len(rows), bool))}
    for name in rows.column_names:
        if name.startswith(LABEL):
            kind = spec.actions[name.removeprefix(LABEL)].kind
            replaced[name] = pa.nulls(len(rows), pa.float32()) if kind == "duration" else pa.array(np.zeros(len(rows), np.float32))
        elif name.startswith((LOGGED, SERVED)) or name in _EVENT_ONLY:
            replaced[name] = pa.nulls(len(rows), rows.schema.field(name).type)
    kept = [name for name in rows.column_names if name not in item_features]
    negatives = pa.table({name: replaced.get(name, rows[name]) for name in kept})
    negatives = join(negatives, [side for side in tables if side.entity == "item"]).select(events.column_names)
    return negatives.append_column(PARENT, pa.array(parent_M))


def with_negatives(events: pa.Table, drawn: pa.Table, spec: LogSpec) -> pa.Table:
    """Appends what `drawn_rows` returned to its positives.

    The labels of a positive without negatives become null: it stays in histories and is no target.
    """
    complete_N = np.zeros(len(events), bool)
    complete_N[drawn[PARENT].to_numpy()] = True
    if not complete_N.all():
        events = _labels_where(events, spec, complete_N)
    return pa.concat_tables([events, drawn.drop_columns([PARENT])])


def negatives_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of the negatives drawn for a (day, user bucket)."""
    return root / "negatives" / f"day={day}" / f"bucket={bucket:02d}.arrows"


def _ranges(pool: Candidates, time_N: np.ndarray, spec: LogSpec, negatives: NegativesSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists the entries that requests draw from; a request draws from ``listed[low:high]``, and rejects what has left.

    For popularity these are the events that entered within the window. A presence may have begun long ago, so the uniform
    sampler lists, for every calendar day, the presences that reach into it, those from before it first. Either way the list up
    to `high` holds nothing that was unknown at the request, and does not depend on how much of the past was loaded.

    Returns:
        Entries of `pool`, and low and high for each request.
    """
    if negatives.sampler == "recent_popularity":
        low_N = np.searchsorted(pool.enter_M, time_N - parse_duration(negatives.window), side="left")
        return np.arange(len(pool.enter_M)), low_N, np.searchsorted(pool.enter_M, time_N, side="right")
    days = BusinessDays.covering(time_N, spec.timezone)
    index_N, hash_M = days.index(time_N), hash_ids(pool.items)
    lists, offset = [], 0
    low_N, high_N = np.zeros(len(time_N), np.int64), np.zeros(len(time_N), np.int64)
    for day in np.unique(index_N):
        present_M = np.flatnonzero(pool.leave_M > days.starts_D[day])
        since_M = np.maximum(pool.enter_M[present_M], days.starts_D[day])
        order_M = np.lexsort((hash_M[present_M], since_M))
        here_N = index_N == day
        low_N[here_N] = offset
        high_N[here_N] = offset + np.searchsorted(since_M[order_M], time_N[here_N], side="right")
        lists.append(present_M[order_M])
        offset += len(order_M)
    return np.concatenate(lists) if lists else np.zeros(0, np.int64), low_N, high_N


def _labels_where(events: pa.Table, spec: LogSpec, keep_N: np.ndarray) -> pa.Table:
    for action in spec.actions:
        name = LABEL + action
        column = events[name].combine_chunks()
        mask_N = ~keep_N | ~np.asarray(column.is_valid())
        values_N = np.asarray(column.fill_null(0), np.float32)
        events = events.set_column(events.column_names.index(name), name, pa.array(values_N, mask=mask_N))
    return events
