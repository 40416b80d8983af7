"""Entity ids: one type to compare them in, and a 64-bit hash that is the same on every machine and in every version."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.errors import DataError

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


def plain_ids(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns ids as one int64 or string array, so that they can be compared; nulls stay.

    Raises:
        DataError: If ids are neither integers nor strings.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.int64())
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids.cast(pa.string())
    raise DataError("not an id", got=ids.type, expected="integers or strings")


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns uint64 hashes [N], uniform over their range.

    Integers never collide: their hash is a bijection (the finaliser of SplitMix64; Steele et al., 2014). Strings are hashed by
    their bytes (FNV-1a, then the same finaliser).

    Args:
        ids: Integers or strings, without nulls.

    Raises:
        DataError: If there is a null, or ids are neither integers nor strings.
    """
    ids = plain_ids(ids)
    if ids.null_count:
        raise DataError("an id is null", got=f"{ids.null_count} of {len(ids)}", expected="every row has an id")
    if pa.types.is_int64(ids.type):
        return splitmix64(ids.to_numpy().view(np.uint64))
    return splitmix64(_fnv(ids.cast(pa.large_binary())))


def splitmix64(x_N: np.ndarray) -> np.ndarray:
    """Mixes uint64 values (the finaliser of SplitMix64; Steele, Lea, Flood 2014); a bijection, so integers never collide."""
    x_N = x_N.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def _fnv(ids: pa.LargeBinaryArray) -> np.ndarray:
    """FNV-1a of each value, one byte position of all values at a time."""
    hash_N = np.full(len(ids), _FNV_OFFSET)
    if not len(ids) or ids.buffers()[2] is None:
        return hash_N
    offset_N1 = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
    data = np.frombuffer(ids.buffers()[2], np.uint8)
    length_N = np.diff(offset_N1)
    order_N = np.argsort(-length_N, kind="stable")  # the longest first: at each position the values that reach it lead
    longer_P = len(ids) - np.searchsorted(np.sort(length_N), np.arange(length_N.max()), side="right")
    for position, count in enumerate(longer_P.tolist()):
        row_M = order_N[:count]
        hash_N[row_M] = (hash_N[row_M] ^ data[offset_N1[row_M] + position].astype(np.uint64)) * _FNV_PRIME
    return hash_N
