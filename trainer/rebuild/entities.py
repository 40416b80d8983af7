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


def entity_log(events: pa.Table, spec: LogSpec, entity: Sequence[str], primitives: Sequence[Primitive]) -> EntityLog:
    """Builds the events of one entity; rows without its key are left out.

    Args:
        events: Events with the columns that `columns_needed` names.
        spec: The log: maturities and serving freshness.
        entity: Names of the key.
        primitives: What will be evaluated.
    """
    key_N, has_key_N = keys_of(events, entity)
    event_N, known_N = events["event_time"].to_numpy(), events["known_at"].to_numpy()
    actions = sorted({primitive.action for primitive in primitives} - {""})
    enter = {"": served(ripe(event_N, known_N, 0), spec)}
    enter |= {action: served(ripe(event_N, known_N, spec.actions[action].maturity_ms), spec) for action in actions}
    label = {action: label_values(events, action) for action in actions}
    counted = {name: events[column_of(name)] for name in sorted({primitive.of for primitive in primitives} - {""})}
    of = {name: (hash_ids(column), np.asarray(column.is_valid())) for name, column in counted.items()}
    log = EntityLog(key_N, event_N, enter, label, of)
    return log if has_key_N.all() else log.take(has_key_N)


def label_values(events: pa.Table, action: str) -> np.ndarray:
    """Returns an action's values as float64, NaN where unknown."""
    return np.asarray(pc.fill_null(events[LABEL + action].cast(pa.float64()), np.nan), np.float64)
