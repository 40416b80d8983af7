"""Hashes of log columns: buckets, delivery keys and entity codes depend on them, on every machine alike."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.schema import ids as plain
from trainer.schema.ids import splitmix64

_ODD = np.uint64(0xBF58476D1CE4E5B9)


def hash_ids(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes a column of ids or categories; nulls hash like 0 or the empty string, mask them yourself.

    Returns:
        uint64 [N].
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return plain.hash_ids(pc.fill_null(column, ""))
    return plain.hash_ids(pc.fill_null(column.cast(pa.int64()), 0))


def combine(*hashes_N: np.ndarray) -> np.ndarray:
    """Combines hashes of several columns into one, order-sensitive; uint64 [N]."""
    result_N = hashes_N[0]
    for hash_N in hashes_N[1:]:
        result_N = splitmix64(result_N * _ODD ^ hash_N)
    return result_N
