"""Hash functions by which ids find rows: named, seeded, the same on every machine and in every version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import CheckpointError
from trainer.schema.ids import hash_ids, splitmix64

TEXT_FNV1A_SPLITMIX64 = "text-fnv1a64-splitmix64"
FUNCTIONS = (TEXT_FNV1A_SPLITMIX64,)
MOST_ROWS = 2**31 - 3  # files hold rows, the two reserved ones among them, as int32
MOST_SEED = 2**63 - 1
_HASHED_IDS = 1 << 20  # ids handled at once: Arrow's table of distinct ones takes 50 bytes and more an id


@dataclass(frozen=True, kw_only=True)
class HashFunction:
    """How an id finds its bucket; recorded in the manifest, so that no later default changes what a row means.

    ``text-fnv1a64-splitmix64``: the id as text (the number 7 and the text 7 are one id), its UTF-8 bytes under 64-bit FNV-1a, mixed
    by the finaliser of SplitMix64 (`trainer.schema.ids.hash_ids`); then exclusive-or with the mixed seed, mixed again, modulo `rows`.
    The same on every machine. The remainder favours no bucket by more than ``rows / 2^64``.

    Attributes:
        function: Name of the function, one of `FUNCTIONS`.
        rows: Buckets; the table has two reserved rows besides.
        seed: Another seed is another function: it moves every id.
    """

    function: str = TEXT_FNV1A_SPLITMIX64
    rows: int
    seed: int = 0

    def check(self, where: object) -> None:
        """Checks what a file says.

        Raises:
            CheckpointError: If the function is unknown, or rows or seed are impossible.
        """
        if self.function not in FUNCTIONS:
            raise CheckpointError(
                "ids of this bundle are hashed by a function that this version does not know", where=where, got=self.function,
                expected=" or ".join(FUNCTIONS), remedy="take the version of rewarm that wrote the bundle",
            )  # fmt: skip
        for name, value, least, most in (("rows", self.rows, 1, MOST_ROWS), ("seed", self.seed, 0, MOST_SEED)):
            if type(value) is not int or not least <= value <= most:
                raise CheckpointError(f"a hash has impossible {name}", where=where, got=value, expected=f"{least} to {most}")

    def buckets(self, ids: pa.Array | pa.ChunkedArray, dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
        """Returns the bucket of each id, from 0; -1 for nulls. Each distinct id is hashed once in a million."""
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        bucket_N = np.full(len(ids), -1, dtype)
        for start in range(0, len(ids), _HASHED_IDS):
            part = ids[start : start + _HASHED_IDS]
            coded = pc.dictionary_encode(part.dictionary_decode() if pa.types.is_dictionary(part.type) else part.cast(pa.string()))
            hash_D = splitmix64(hash_ids(coded.dictionary.cast(pa.string())) ^ splitmix64(np.array([self.seed], np.uint64)))
            bucket_D = np.append((hash_D % np.uint64(self.rows)).astype(dtype), dtype(-1))
            bucket_N[start : start + len(part)] = bucket_D[np.asarray(pc.fill_null(coded.indices, -1))]
        return bucket_N
