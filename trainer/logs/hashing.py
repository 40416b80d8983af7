"""Hashes of ids that are the same on every machine, in every process and version: buckets and keys depend on them."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(value_N: np.ndarray) -> np.ndarray:
    """Mixes 64-bit integers (Steele, Lea, Flood 2014, the finaliser of SplitMix64); a bijection, so ints never collide.

    Args:
        value_N: int64 or uint64.

    Returns:
        uint64 [N].
    """
    mixed_N = value_N.astype(np.uint64) + _GAMMA
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * _MIX_1
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * _MIX_2
    return mixed_N ^ (mixed_N >> np.uint64(31))


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes ids: SplitMix64 for integers, BLAKE2b (8 bytes) of the UTF-8 for strings. Nulls hash like 0; mask them yourself.

    Returns:
        uint64 [N]. Two different strings collide with probability 2**-64 a pair.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if not pa.types.is_string(ids.type):
        return splitmix64(np.asarray(pc.fill_null(ids.cast(pa.int64()), 0), np.int64))
    encoded = ids.dictionary_encode()
    digests = [hashlib.blake2b(text, digest_size=8).digest() for text in encoded.dictionary.cast(pa.binary()).to_pylist()]
    table_V = np.frombuffer(b"".join(digests), "<u8") if digests else np.zeros(1, np.uint64)
    return table_V[np.asarray(pc.fill_null(encoded.indices, 0), np.int64)]


def combine(*hashes_N: np.ndarray) -> np.ndarray:
    """Combines hashes of several columns into one, order-sensitive; uint64 [N]."""
    result_N = hashes_N[0]
    for hash_N in hashes_N[1:]:
        result_N = splitmix64(result_N * _MIX_1 ^ hash_N)
    return result_N
