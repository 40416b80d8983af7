"""Hashed vocabularies: a fixed number of rows, addressed by a hash of the id instead of a list of ids.

    row = 2 + h(id) mod rows        rows 0 (pad) and 1 (null) stay what they are in every vocabulary

A list of ids grows by every night's new ones; here nothing does, neither the table (bytes in training: the formula of
`trainer.fit.tables.TableOptimizer` with V = rows + 2, the same every night) nor the file (about 30 bytes a row, no ids). The price is
that ids share rows: of V ids in R rows the share exp(-(V - 1) / R) has a row of its own. No id is ever new or unknown.

One hash function, one row an id (feature hashing: Weinberger et al. 2009, arXiv 0902.2206). Two or more rows an id, summed with
weights (hash embeddings: Svenstrup et al. 2017, arXiv 1709.03933) or composed of quotient and remainder (Shi et al. 2020, arXiv
1909.02107), part ids that share one row, but every token then reads two rows and trains both, and a warm start could not move
between lists and hashes row by row: the row of an id would be a sum that no table holds. Rows are cheaper than that: twice the
rows halve the ids that share one, at the same time a step, and growing by a whole factor is exact (`trainer.warm_start.buckets`).

A file `<name>.parquet` has the columns row (int32), count (int64), first_seen and last_seen (ISO days; null in reserved rows and
buckets that no id fell into). The hash itself is recorded in the bundle's manifest, and only that one is ever used with its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.errors import CheckpointError
from trainer.schema.hash_function import HashFunction
from trainer.schema.vocabulary import OOV_ROW, RESERVED_ROWS, Vocabulary


@dataclass(frozen=True)
class HashedVocabulary:
    """The rows of one table by hash; the counterpart of `trainer.schema.vocabulary.Vocabulary`.

    Attributes:
        name: Name of the table.
        hash: How an id finds its bucket; bucket b owns row ``b + 2``.
        count_V: Traffic of each bucket over the training days.
        first_seen: ISO day of each bucket's first event; null where there was none.
        last_seen: ISO day of each bucket's last event; null likewise.
    """

    name: str
    hash: HashFunction
    count_V: np.ndarray
    first_seen: pa.Array
    last_seen: pa.Array

    def __post_init__(self) -> None:
        self.hash.check(f"vocabulary {self.name}")
        if len(self.count_V) != self.hash.rows:
            raise CheckpointError(
                "a hashed vocabulary does not have the rows of its hash", where=f"vocabulary {self.name}", got=len(self.count_V),
                expected=self.hash.rows, remedy="the file or the manifest was altered; restore them",
            )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of the embedding table, reserved ones included."""
        return self.hash.rows + RESERVED_ROWS

    def lookup(self, ids: pa.Array | pa.ChunkedArray, dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
        """Returns the row of each id: `dtype`, that of its bucket, and `OOV_ROW` for nulls alone: no id is unknown."""
        row_N = self.hash.buckets(ids, dtype)
        return np.where(row_N < 0, dtype(OOV_ROW), row_N + dtype(RESERVED_ROWS))

    def write(self, path: Path) -> None:
        """Writes the file; same vocabulary, same bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        reserved = pa.nulls(RESERVED_ROWS, pa.string())
        table = pa.table(
            {
                "row": pa.array(np.arange(self.rows, dtype=np.int32)),
                "count": pa.array(np.concatenate([np.zeros(RESERVED_ROWS, np.int64), self.count_V.astype(np.int64)])),
                "first_seen": pa.concat_arrays([reserved, self.first_seen]),
                "last_seen": pa.concat_arrays([reserved, self.last_seen]),
            }
        )
        pq.write_table(table, path, write_page_checksum=True, compression="zstd")

    @classmethod
    def read(cls, path: Path, hashing: HashFunction) -> HashedVocabulary:
        """Reads the file of a vocabulary that the manifest says is hashed.

        Raises:
            CheckpointError: If it cannot be decoded, lists ids, or does not have the rows of its hash.
        """
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            rows, count_V = table["row"].to_numpy(), table["count"].to_numpy()
            first, last = (table[name].combine_chunks() for name in ("first_seen", "last_seen"))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise CheckpointError("cannot read a hashed vocabulary", where=path, got=str(error)) from error
        if "key" in table.column_names:
            raise CheckpointError("the manifest has a hash for a vocabulary that lists ids", where=path, remedy="restore the bundle")
        if not np.array_equal(rows, np.arange(len(rows))):
            raise CheckpointError("vocabulary rows are not 0, 1, 2, ...", where=path, remedy="the file was altered; restore it")
        tail = slice(RESERVED_ROWS, None)
        return cls(path.stem, hashing, count_V[tail], first[tail], last[tail])

    @classmethod
    def of(cls, hashing: HashFunction, ids: Vocabulary) -> HashedVocabulary:
        """Returns what a list of ids amounts to under a hash: counts of each bucket add up, days are the first and the last."""
        return cls._pooled(ids.name, hashing, ids.count_V, ids.first_seen, ids.last_seen, hashing.buckets(ids.keys))

    def under(self, hashing: HashFunction) -> HashedVocabulary:
        """Returns the traffic of these buckets under another hash, as far as it is known.

        A whole multiple of the rows divides each bucket among as many, in shares that nobody knows: its count is divided evenly. A
        whole divisor adds buckets up. Any other change forgets: which ids were counted is not recorded.
        """
        if hashing == self.hash:
            return self
        same, old, new = (self.hash.function, self.hash.seed) == (hashing.function, hashing.seed), self.hash.rows, hashing.rows
        if same and new % old == 0:
            of, part = np.arange(new) % old, np.arange(new) // old
            share_V = self.count_V[of] // (new // old) + (part < self.count_V[of] % (new // old))
            return HashedVocabulary(self.name, hashing, share_V, self.first_seen.take(pa.array(of)), self.last_seen.take(pa.array(of)))
        if same and old % new == 0:
            return self._pooled(self.name, hashing, self.count_V, self.first_seen, self.last_seen, np.arange(old) % new)
        unseen = pa.nulls(new, pa.string())
        return HashedVocabulary(self.name, hashing, np.zeros(new, np.int64), unseen, unseen)

    def plus(self, other: HashedVocabulary) -> HashedVocabulary:
        """Returns the traffic of both, which have one hash."""
        if self.hash != other.hash:
            raise CheckpointError(
                "counts under two hashes cannot be added", where=f"vocabulary {self.name}", got=other.hash, expected=self.hash
            )
        first, last = pc.min_element_wise(self.first_seen, other.first_seen), pc.max_element_wise(self.last_seen, other.last_seen)
        return HashedVocabulary(self.name, self.hash, self.count_V + other.count_V, first, last)

    @classmethod
    def _pooled(
        cls, name: str, hashing: HashFunction, count_V: np.ndarray, first: pa.Array, last: pa.Array, bucket_V: np.ndarray
    ) -> HashedVocabulary:
        """Adds traffic up by bucket; ISO days are ordered as text."""
        table = pa.table({"bucket": bucket_V, "first": first.cast(pa.string()), "last": last.cast(pa.string())})
        days = table.group_by("bucket").aggregate([("first", "min"), ("last", "max")])
        place = np.full(hashing.rows, -1, np.int64)
        place[days["bucket"].to_numpy()] = np.arange(len(days))
        taken = pa.array(np.maximum(place, 0), mask=place < 0)
        totals_V = np.zeros(hashing.rows, np.int64)
        np.add.at(totals_V, bucket_V, count_V.astype(np.int64))  # not bincount: its weights are float64, exact up to 2^53 only
        return cls(name, hashing, totals_V, *(days[end].combine_chunks().take(taken) for end in ("first_min", "last_max")))


AnyVocabulary = Vocabulary | HashedVocabulary


def read_vocabulary(path: Path, hashing: HashFunction | None) -> AnyVocabulary:
    """Reads a vocabulary of a bundle: by ids, or by the hash that the manifest records for it."""
    return Vocabulary.read(path) if hashing is None else HashedVocabulary.read(path, hashing)


def crowding(hashing: HashFunction, ids: Vocabulary) -> dict[str, float]:
    """Tells how crowded the buckets are: what to choose `rows` by.

    Args:
        hashing: The hash.
        ids: Ids that were met, with their traffic.

    Returns:
        ``rows``; ``ids``; ``used`` buckets; ``shared``, the share of the ids' traffic whose row another id has too.
    """
    bucket_V = hashing.buckets(ids.keys)
    ids_B, traffic = np.bincount(bucket_V, minlength=hashing.rows), ids.count_V.astype(np.float64)
    shared = float(traffic[ids_B[bucket_V] > 1].sum() / max(traffic.sum(), 1.0))
    return {"rows": hashing.rows, "ids": len(ids.keys), "used": int((ids_B > 0).sum()), "shared": shared}
