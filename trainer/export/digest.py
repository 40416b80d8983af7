"""Digests of exports: a hash of the id and one of the vector an entity, in 64 parts by the id's hash.

Within an export they find ids that came twice; between exports they tell which vectors are new or changed and which ids are no more.
Memory holds one part, whatever the number of entities.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.export.read import check_shard
from trainer.schema.embeddings import Shard, VectorBlock
from trainer.schema.ids import splitmix64

PARTS = 64
_HELD_ROWS = 1 << 17  # rows that go to the disk at a time: 64 writes of 16 kB and more
DIGEST_SCHEMA = pa.schema([pa.field("id", pa.uint64(), nullable=False), pa.field("vector", pa.uint64(), nullable=False)])


class Digest:
    """Collects hashes on disk while vectors stream by; finds ids that came twice.

    Args:
        folder: Where they are kept meanwhile; created and, by `close`, removed.
        vectors: Whether vectors are hashed too, or ids alone.
    """

    def __init__(self, folder: Path, vectors: bool) -> None:
        folder.mkdir()
        self._folder, self._vectors = folder, vectors
        self._files = [(folder / f"{part:02d}").open("w+b") for part in range(PARTS)]
        self._held: list[np.ndarray] = []
        self._rows = 0

    def add(self, hash_M: np.ndarray, block: VectorBlock) -> None:
        """Remembers a block, given the hashes of its ids."""
        columns = [hash_M, hash_vectors(block.vectors_MD)] if self._vectors else [hash_M]
        self._held.append(np.stack(columns, axis=1))
        self._rows += len(hash_M)
        if self._rows >= _HELD_ROWS:
            self._spill()

    def _spill(self) -> None:
        if not self._held:
            return
        pair_M2 = np.concatenate(self._held)
        self._held, self._rows = [], 0
        part_M = part_of(pair_M2[:, 0])
        pair_M2 = pair_M2[np.argsort(part_M, kind="stable")]
        ends = np.cumsum(np.bincount(part_M, minlength=PARTS)).tolist()
        for file, start, end in zip(self._files, [0, *ends[:-1]], ends, strict=True):
            file.write(pair_M2[start:end].tobytes())

    def repeated_hashes(self) -> np.ndarray:
        """Returns hashes of ids that came twice: every repeated id's, and by rare chance those of two strings that share a hash."""
        found = []
        for pair_M2 in self._parts():
            hash_M = np.sort(pair_M2[:, 0])
            found.append(np.unique(hash_M[1:][hash_M[1:] == hash_M[:-1]]))
        return np.concatenate(found)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the digest, one batch a part, sorted by the id's hash."""
        for pair_M2 in self._parts():
            pair_M2 = pair_M2[np.argsort(pair_M2[:, 0], kind="stable")]
            yield pa.record_batch([pa.array(pair_M2[:, 0].copy()), pa.array(pair_M2[:, 1].copy())], schema=DIGEST_SCHEMA)

    def close(self) -> None:
        """Removes the files."""
        for part, file in enumerate(self._files):
            with suppress(OSError):  # the disk may be full; the hashes are not wanted any more
                file.close()
            (self._folder / f"{part:02d}").unlink(missing_ok=True)
        self._folder.rmdir()

    def _parts(self) -> Iterator[np.ndarray]:
        self._spill()
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), np.uint64).reshape(-1, 1 + self._vectors)


def hash_vectors(vectors_MD: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes [M] of the bits of float32 vectors.

    Multilinear: a sum of 32-bit words times fixed 64-bit keys, mixed (Lemire and Kaser, "Strongly universal string hashing is fast",
    The Computer Journal 57, 2014, section 2).
    """
    bits_MD = np.ascontiguousarray(vectors_MD, np.float32).view(np.uint32)
    key_D = splitmix64(np.arange(bits_MD.shape[1], dtype=np.uint64)) | np.uint64(1)
    return splitmix64(bits_MD.astype(np.uint64) @ key_D)


def part_of(hash_M: np.ndarray) -> np.ndarray:
    """Returns the part [M] of each id's hash: its highest bits."""
    return (hash_M >> np.uint64(64 - (PARTS.bit_length() - 1))).astype(np.uint8)


def digest_parts(folder: Path, shards: list[Shard]) -> Iterator[np.ndarray]:
    """Yields uint64 [M, 2] for each part of a written digest.

    Raises:
        ExportError: If a file is missing or was altered.
    """
    groups: list[list[np.ndarray]] = [[] for _ in range(PARTS)]
    part = 0
    for shard in shards:
        check_shard(folder, shard)
        for batch in pq.ParquetFile(folder / shard.path, pre_buffer=False).iter_batches():
            pair_M2 = np.stack([batch.column(0).to_numpy(), batch.column(1).to_numpy()], axis=1)
            for here in np.unique(part_of(pair_M2[:, 0])):
                while part < here:
                    yield _joined(groups[part])
                    groups[part] = []
                    part += 1
                groups[here].append(pair_M2[part_of(pair_M2[:, 0]) == here])
    for rest in groups[part:]:
        yield _joined(rest)


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks) if blocks else np.zeros((0, 2), np.uint64)


def changed_and_gone(old: Iterator[np.ndarray], new: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compares two digests.

    Returns:
        Sorted uint64 hashes of the ids whose vector is new or changed, and of those that have none any more.
    """
    changed, gone = [], []
    for old_M2, new_M2 in zip(old, new, strict=True):
        place_M = np.searchsorted(old_M2[:, 0], new_M2[:, 0])
        inside_M = place_M < len(old_M2)
        same_M = np.zeros(len(new_M2), bool)
        same_M[inside_M] = (old_M2[place_M[inside_M]] == new_M2[inside_M]).all(axis=1)
        changed.append(new_M2[~same_M, 0])
        gone.append(np.setdiff1d(old_M2[:, 0], new_M2[:, 0]))
    return np.concatenate(changed), np.concatenate(gone)
