"""Ordered sequences: one row an event, an order within each user, no clock.

Shape suffixes of this package: U users, E events of all users, V items, N targets or questions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import NextItemConfig
from trainer.errors import ConfigError, DataError, nearest

HELD_OUT = 2  # the last event tests, the one before validates
SHORTEST = HELD_OUT + 1  # a shorter sequence cannot be judged: all of it trains


@dataclass(frozen=True)
class Sequences:
    """Events of each user in their order, users one after the other.

    Attributes:
        user_ids: Arrow array [U], ascending.
        item_ids: Arrow array [V], ascending: the catalogue.
        offsets_U1: int64, events of user u are ``[offsets[u], offsets[u+1])``.
        item_E: int64, place of each event's item in `item_ids`.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    offsets_U1: np.ndarray
    item_E: np.ndarray

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def items(self) -> int:
        return len(self.item_ids)

    @property
    def events(self) -> int:
        return len(self.item_E)

    @property
    def judged_U(self) -> np.ndarray:
        """bool [U]: users whose last two events are held out."""
        return np.diff(self.offsets_U1) >= SHORTEST

    @property
    def training_end_U(self) -> np.ndarray:
        """int64 [U]: where the training events of each user end."""
        return self.offsets_U1[1:] - HELD_OUT * self.judged_U


def read_sequences(root: Path, columns: NextItemConfig) -> Sequences:
    """Reads a Parquet file of ordered events.

    Args:
        root: Folder of the log.
        columns: File below `root`, and its columns.

    Returns:
        The sequences, whatever the order of the rows.

    Raises:
        ConfigError: If a mapped column is missing.
        DataError: If the file is absent, damaged or empty, an id or position is null, or two events of a user share a position.
    """
    path = root / columns.path
    table = _read(path, [columns.user, columns.item, columns.position])
    if not len(table):
        raise DataError("the file of sequences is empty", where=path)
    for name in table.column_names:
        if nulls := table[name].null_count:
            raise DataError("an event needs a user, an item and a position", where=f"{path}, column {name}", got=f"{nulls} nulls")
    user_ids, user_E = _codes(table[columns.user])
    item_ids, item_E = _codes(table[columns.item])
    _, position_E = _codes(table[columns.position])
    order_E = np.lexsort((position_E, user_E))
    user_E, position_E = user_E[order_E], position_E[order_E]
    repeated = np.flatnonzero((np.diff(user_E) == 0) & (np.diff(position_E) == 0))
    if len(repeated):
        raise DataError(
            "two events of a user share a position: their order is unknown",
            where=f"{path}, column {columns.position}",
            got=f"{len(repeated)} times, first at user {user_ids[int(user_E[repeated[0]])]}",
            expected="one event a user and position",
            remedy="break ties in the file, or map a finer position (next_item.position)",
        )
    offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_E, minlength=len(user_ids)))]).astype(np.int64)
    return Sequences(user_ids, item_ids, offsets_U1, item_E[order_E])


def _read(path: Path, names: list[str]) -> pa.Table:
    if not path.is_file():
        raise DataError("the file of sequences is absent", where=path, remedy="set data.root to its folder, or next_item.path to its name")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        known = file.schema_arrow.names
        for name in names:
            if name not in known:
                raise ConfigError("a mapped column is missing", where=path, got=name, remedy=nearest(name, known))
        return file.read(columns=names)
    except (OSError, pa.ArrowException) as error:
        raise DataError("cannot read the file of sequences", where=path, got=str(error), expected="an intact Parquet file") from error


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Returns the distinct values, ascending, and the place of every row's value among them (int64)."""
    values = pc.unique(column)
    values = values.take(pc.sort_indices(values))
    return values, pc.index_in(column, value_set=values).combine_chunks().to_numpy().astype(np.int64)
