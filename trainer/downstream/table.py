"""What both users of a scored table need: ripe labels, weights, the newest rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError, DataError, nearest
from trainer.schema.ids import hash_ids, splitmix64
from trainer.schema.predictions import LABEL, WEIGHT

TIMES = ("request_time", "time")
REQUEST = "request"
_DAY_MS = 86_400_000


def ripe(table: pa.Table, action: str, kind: str = "binary") -> pa.Table:
    """Returns the rows whose label is known.

    Raises:
        ConfigError: If the table has no such label.
        DataError: If a label is negative or not finite, or, for a binary action, neither 0 nor 1.
    """
    name = LABEL + action
    if name not in table.column_names:
        labels = [column for column in table.column_names if column.startswith(LABEL)]
        raise ConfigError("the table has no label of this action", got=name, remedy=nearest(name, labels))
    known = table.filter(table[name].is_valid())
    label_N = labels_of(known, action)
    good_N = np.isin(label_N, (0.0, 1.0)) if kind == "binary" else np.isfinite(label_N) & (label_N >= 0)
    if not good_N.all():
        raise DataError("not a label", where=name, got=label_N[~good_N][0], expected="0 or 1" if kind == "binary" else "0 or more, finite")
    return known


def labels_of(table: pa.Table, action: str) -> np.ndarray:
    """Returns the labels of `ripe` rows, float64 [N]."""
    return table[LABEL + action].cast(pa.float64()).to_numpy()


def weights_of(table: pa.Table) -> np.ndarray:
    """Returns row weights, float64 [N]: 1 where the table has none.

    Raises:
        DataError: If a weight is missing, negative or not finite.
    """
    if WEIGHT not in table.column_names:
        return np.ones(table.num_rows)
    weight_N = table[WEIGHT].cast(pa.float64()).to_numpy()
    if not (np.isfinite(weight_N) & (weight_N >= 0)).all():
        raise DataError("a row weight is missing, negative or not finite", where=WEIGHT, expected="1 / sampling rate")
    return weight_N


def newest(table: pa.Table, count: int) -> pa.Table:
    """Returns the `count` newest rows, in the table's order.

    Raises:
        ConfigError: If rows have to be left out and the table has no time to choose by.
    """
    if table.num_rows <= count:
        return table
    name = next((name for name in TIMES if name in table.column_names), None)
    if name is None:
        raise ConfigError("the newest rows cannot be told", where="downstream.max_rows", got="no time column", expected=" or ".join(TIMES))
    order = pc.sort_indices(table, sort_keys=[(name, "descending")])  # stable: ties keep the table's order
    return table.take(pa.array(np.sort(order[:count].to_numpy())))


def slates_of(table: pa.Table) -> np.ndarray:
    """Returns the slate of each row, dense int64 codes: its request, or else the user's UTC day.

    Raises:
        ConfigError: If the table has neither a request nor a time.
    """
    if REQUEST in table.column_names:
        request_N = hash_ids(pc.fill_null(table[REQUEST].cast(pa.string()), ""))
        key_N = splitmix64(hash_ids(table["user"]) ^ request_N)
    else:
        name = next((name for name in TIMES if name in table.column_names), None)
        if name is None:
            raise ConfigError("slates cannot be told", where="downstream.objective", got="no request and no time", expected="one of them")
        day_N = table[name].cast(pa.int64()).to_numpy() // _DAY_MS
        key_N = splitmix64(hash_ids(table["user"]) ^ splitmix64(day_N.astype(np.uint64)))
    return np.unique(key_N, return_inverse=True)[1].reshape(-1)
