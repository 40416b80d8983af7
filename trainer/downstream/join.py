"""Joins the feature tables of the team that owns the final model to the judged rows; both arms have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import FeatureTable
from trainer.errors import ConfigError, DataError, nearest
from trainer.schema.ids import plain_ids

PREFIX = "own_"
_TIMES = ("request_time", "time")


def join_tables(rows: pa.Table, tables: Sequence[FeatureTable]) -> tuple[pa.Table, list[str]]:
    """Joins every table to `rows`; the rows stay as they are, in their order.

    Args:
        rows: The judged rows: user, item, and request_time or time (ms).
        tables: Declarations.

    Returns:
        The rows with columns ``own_<column>``, null where a key is not in the table, and the names of those columns.

    Raises:
        ConfigError: If a key or column is absent.
        DataError: If a table cannot be read, a key comes twice without `known_at`, or a column comes from two tables.
    """
    names: list[str] = []
    for declared in tables:
        own = _read(declared)
        keys = [_paired_keys(rows, own, name, declared.path) for name in declared.on]
        place_N = _newest_before(rows, own, keys, declared) if declared.known_at else _only(keys, declared)
        taken = pa.array(np.where(place_N < 0, 0, place_N), mask=place_N < 0)
        for column in declared.columns or [name for name in own.column_names if name not in (*declared.on, declared.known_at)]:
            if column not in own.column_names:
                raise ConfigError(
                    "a feature is not in its table", where=declared.path, got=column, remedy=nearest(column, own.column_names)
                )
            if PREFIX + column in names:
                raise DataError("two feature tables have the same column", where=declared.path, got=column, remedy="rename one")
            rows = rows.append_column(PREFIX + column, own[column].combine_chunks().take(taken))
            names.append(PREFIX + column)
    return rows, names


def _read(declared: FeatureTable) -> pa.Table:
    path = Path(declared.path)
    files = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError("no feature table", where=path, expected="a Parquet file, or a folder of them")
    try:
        table = pa.concat_tables([pq.read_table(file, page_checksum_verification=True) for file in files])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read a feature table", where=path, got=str(error).splitlines()[0]) from error
    for name in (*declared.on, *([declared.known_at] if declared.known_at else [])):
        if name not in table.column_names:
            raise ConfigError("a join key is not in its table", where=path, got=name, remedy=nearest(name, table.column_names))
    return table


def _paired_keys(rows: pa.Table, own: pa.Table, name: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of one key column on both sides; -1 where a value is unknown to the other side."""
    if name not in rows.column_names:
        raise ConfigError("the rows have no such key", where="downstream.tables", got=name, expected=", ".join(rows.column_names[:6]))
    left, right = plain_ids(rows[name]), plain_ids(own[name])
    if left.type != right.type:
        raise DataError("a join key has another type than the log's", where=f"{path}, {name}", got=right.type, expected=left.type)
    values = pc.unique(right)
    codes = (
        pc.fill_null(pc.index_in(side, value_set=values), -1).to_numpy(zero_copy_only=False).astype(np.int64) for side in (left, right)
    )
    left_N, right_M = codes
    return left_N, right_M


def _combined(keys: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    left_N, right_M = keys[0]
    for next_N, next_M in keys[1:]:
        width = int(max(next_N.max(initial=-1), next_M.max(initial=-1))) + 1
        left_N = np.where((left_N < 0) | (next_N < 0), -1, left_N * width + next_N)
        right_M = right_M * width + next_M
    return left_N, right_M


def _only(keys: Sequence[tuple[np.ndarray, np.ndarray]], declared: FeatureTable) -> np.ndarray:
    left_N, right_M = _combined(keys)
    order_M = np.argsort(right_M, kind="stable")
    sorted_M = right_M[order_M]
    if (sorted_M[1:] == sorted_M[:-1]).any():
        raise DataError(
            "a key comes more than once in a feature table", where=declared.path, got=", ".join(declared.on),
            expected="one row a key", remedy="declare known_at, or add the missing key column to `on`",
        )  # fmt: skip
    place_N = np.searchsorted(sorted_M, left_N)
    found_N = (place_N < len(sorted_M)) & (left_N >= 0)
    found_N[found_N] = sorted_M[place_N[found_N]] == left_N[found_N]
    return np.where(found_N, order_M[np.minimum(place_N, len(sorted_M) - 1)], -1)


def _newest_before(rows: pa.Table, own: pa.Table, keys: Sequence[tuple[np.ndarray, np.ndarray]], declared: FeatureTable) -> np.ndarray:
    """The newest row of each key that was known strictly before the request."""
    name = next((name for name in _TIMES if name in rows.column_names), None)
    if name is None:
        raise ConfigError("the rows have no time to join by", where=declared.path, expected=" or ".join(_TIMES))
    left_N, right_M = _combined(keys)
    at_N, known_M = rows[name].cast(pa.int64()).to_numpy(), own[declared.known_at].cast(pa.int64()).to_numpy()
    order_M = np.lexsort((known_M, right_M))
    # One sorted list of (key, instant): the last entry below (key, request time) is the row, if its key is the same.
    both = np.concatenate([right_M[order_M], left_N])
    when = np.concatenate([known_M[order_M], at_N])
    is_request = np.concatenate([np.zeros(len(order_M), bool), np.ones(len(left_N), bool)])
    merged = np.lexsort((~is_request, when, both))  # at equal instants the request comes first: strictly before
    last = np.maximum.accumulate(np.where(is_request[merged], -1, np.arange(len(merged))))
    requests = is_request[merged]
    row = np.where(last[requests] >= 0, merged[np.maximum(last[requests], 0)], -1)
    place_N = np.full(len(left_N), -1, np.int64)
    target = merged[requests] - len(order_M)
    same = (row >= 0) & (right_M[order_M[np.maximum(row, 0)]] == left_N[target]) & (left_N[target] >= 0)
    place_N[target] = np.where(same, order_M[np.maximum(row, 0)], -1)
    return place_N
