"""Entities of counters: keys of rows, and events as an entity sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.logs.hashing import combine, hash_ids
from trainer.rebuild.kernels import EntityLog, Primitive
from trainer.rebuild.serving import ripe, served
from trainer.schema.examples import FEATURE, LABEL
from trainer.schema.logs import LogSpec

_AS_THEY_ARE = ("bucket", "request_time", "event_time", "known_at")
_OF = "of_"  # hashes of what a `distinct` counts


def column_of(name: str) -> str:
    """Returns the events column behind a name that a counter uses."""
    return name if name in ("user", "item") else FEATURE + name


def is_user_keyed(entity: Iterable[str]) -> bool:
    """Tells whether all events of one key lie in one user bucket."""
    return "user" in entity


def entity_label(entity: Sequence[str]) -> str:
    """Returns the folder name of an entity."""
    return "x".join(entity) or "all"


def keys_of(table: pa.Table, entity: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the key hash of each row (uint64) and whether the row has the key (no part is null)."""
    if not entity:
        return np.zeros(len(table), np.uint64), np.ones(len(table), bool)
    columns = [table[column_of(name)] for name in entity]
    valid_N = np.logical_and.reduce([np.asarray(column.is_valid()) for column in columns])
    return combine(*(hash_ids(column) for column in columns)), valid_N


def columns_needed(primitives: Iterable[Primitive]) -> list[str]:
    """Returns the event columns that primitives read."""
    names = {"event_time", "known_at"}
    for primitive in primitives:
        names |= {column_of(name) for name in primitive.entity}
        names |= {LABEL + primitive.action} if primitive.action else set()
        names |= {column_of(primitive.of)} if primitive.of else set()
    return sorted(names)


def entity_rows(events: pa.Table, entity: Sequence[str], primitives: Sequence[Primitive]) -> pa.Table:
    """Returns events as one entity sees them; rows without its key are left out.

    Args:
        events: Events with the columns that `columns_needed` names.
        entity: Names of the key.
        primitives: What will be evaluated.

    Returns:
        key (uint64), event_time, known_at, ``label_<action>``, ``of_<name>`` (uint64); bucket and request_time if events have them.
    """
    key_N, has_key_N = keys_of(events, entity)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"key": pa.array(key_N)}
    columns |= {name: events[name] for name in _AS_THEY_ARE if name in events.column_names}
    columns |= {LABEL + action: events[LABEL + action] for action in sorted({p.action for p in primitives} - {""})}
    for name in sorted({primitive.of for primitive in primitives} - {""}):
        column = events[column_of(name)]
        columns[_OF + name] = pa.array(hash_ids(column), mask=np.asarray(column.is_null()))
    table = pa.table(columns)
    return table if has_key_N.all() else table.filter(pa.array(has_key_N))


def entity_log(rows: pa.Table, spec: LogSpec) -> EntityLog:
    """Builds the events of one entity for the kernel.

    Args:
        rows: What `entity_rows` returned.
        spec: The log: maturities and serving freshness.
    """
    event_N, known_N = rows["event_time"].to_numpy(), rows["known_at"].to_numpy()
    actions = [name.removeprefix(LABEL) for name in rows.column_names if name.startswith(LABEL)]
    maturity = {"": 0, **{action: spec.actions[action].maturity_ms for action in actions}}
    served_of = {length: served(ripe(event_N, known_N, length), spec) for length in set(maturity.values())}
    label = {action: label_values(rows, action) for action in actions}
    counted = {name.removeprefix(_OF): rows[name] for name in rows.column_names if name.startswith(_OF)}
    of = {name: (np.asarray(pc.fill_null(column, 0)), np.asarray(column.is_valid())) for name, column in counted.items()}
    return EntityLog(rows["key"].to_numpy(), event_N, {action: served_of[length] for action, length in maturity.items()}, label, of)


def label_values(events: pa.Table, action: str) -> np.ndarray:
    """Returns an action's values as float64, NaN where unknown."""
    return np.asarray(pc.fill_null(events[LABEL + action].cast(pa.float64()), np.nan), np.float64)
