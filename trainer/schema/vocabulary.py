"""Vocabularies: the rows of embedding tables, by id.

A file `<name>.parquet` has columns key (int64 | string, null for the reserved rows), row (int32), count (int64),
first_seen and last_seen (ISO days). Row 0 is padding, row 1 stands for every unknown id (OOV). Rows are never matched by
position between models, always by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.errors import CheckpointError

VOCABULARY_VERSION = 1
PAD_ROW = 0
OOV_ROW = 1
RESERVED_ROWS = 2
_HASHED_KEYS = 1_000_000  # keys looked up at once: Arrow's table of them takes 50 MB, and beyond 2^20 at once four times as much


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one table, in row order from row 2 on.

    Attributes:
        name: Name of the table.
        keys: Arrow array of the ids; ``keys[i]`` owns row ``i + 2``. Unique, no nulls.
        count_V: Traffic of each id over the training days.
        first_seen: ISO day of each id's first event.
        last_seen: ISO day of each id's last event.
    """

    name: str
    keys: pa.Array
    count_V: np.ndarray
    first_seen: pa.Array
    last_seen: pa.Array

    def __post_init__(self) -> None:
        if self.keys.null_count or len(pc.unique(self.keys)) != len(self.keys):
            raise CheckpointError(
                "a vocabulary has duplicate or null keys",
                where=f"vocabulary {self.name}",
                got=f"{len(self.keys)} rows, {len(pc.unique(self.keys))} distinct",
                expected="one row an id",
                remedy="rebuild the vocabulary; which of two rows owns an id cannot be guessed",
            )

    @property
    def rows(self) -> int:
        """Rows of the embedding table, reserved ones included."""
        return len(self.keys) + RESERVED_ROWS

    def lookup(self, ids: pa.Array | pa.ChunkedArray, dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
        """Returns the row of each id: `dtype`, OOV for unknown ids and nulls. The number 7 and the text 7 are one id."""
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        if not len(self.keys):
            return np.full(len(ids), OOV_ROW, dtype)
        alike = ids.type == self.keys.type or (pa.types.is_integer(ids.type) and pa.types.is_integer(self.keys.type))
        common = self.keys.type if alike else pa.string()  # text is the one type that every id can be written in
        asked, rows = ids.cast(common), np.full(len(ids), OOV_ROW, dtype)
        for start in range(0, len(self.keys), _HASHED_KEYS):
            found = pc.index_in(asked, value_set=self.keys[start : start + _HASHED_KEYS].cast(common), skip_nulls=True)
            for first in range(0, len(found), _HASHED_KEYS):
                place = np.asarray(pc.fill_null(found[first : first + _HASHED_KEYS], -1))
                np.copyto(rows[first : first + len(place)], place + dtype(start + RESERVED_ROWS), where=place >= 0)
            del found  # as large as the answer: the next one is made while it would still live
        return rows

    def write(self, path: Path) -> None:
        """Writes the file; same vocabulary, same bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        reserved = pa.nulls(RESERVED_ROWS)
        table = pa.table(
            {
                "key": pa.concat_arrays([reserved.cast(self.keys.type), self.keys]),
                "row": pa.array(np.arange(self.rows, dtype=np.int32)),
                "count": pa.array(np.concatenate([np.zeros(RESERVED_ROWS, np.int64), self.count_V.astype(np.int64)])),
                "first_seen": pa.concat_arrays([reserved.cast(pa.string()), self.first_seen]),
                "last_seen": pa.concat_arrays([reserved.cast(pa.string()), self.last_seen]),
            }
        )
        pq.write_table(table, path, write_page_checksum=True, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Reads the file.

        Raises:
            CheckpointError: If it cannot be decoded, a column is missing, or rows are not 0, 1, 2, ...
        """
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            rows = table["row"].to_numpy()
            keys, first, last = (table[name].combine_chunks() for name in ("key", "first_seen", "last_seen"))
            count_V = table["count"].to_numpy()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise CheckpointError("cannot read a vocabulary", where=path, got=str(error)) from error
        if not np.array_equal(rows, np.arange(len(rows))) or len(rows) < RESERVED_ROWS:
            raise CheckpointError("vocabulary rows are not 0, 1, 2, ...", where=path, remedy="the file was altered; restore it")
        tail = slice(RESERVED_ROWS, None)
        return cls(path.stem, keys[tail], count_V[tail], first[tail], last[tail])
