"""The delta of an export: vectors that are new or changed since the live one, and ids that are no more, for consumers that upsert.

The full export is always written as well, because a release must be able to stand, and to roll back, alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.config import ExportConfig
from trainer.export.digest import changed_and_gone, digest_parts
from trainer.export.features import staged_blocks
from trainer.export.read import read_view
from trainer.export.shards import row_group_rows, vector_batch, vector_schema, write_shards
from trainer.export.vectors import regrouped
from trainer.schema.embeddings import DELTA, DIGEST, GONE, ITEM, USER, EmbeddingManifest, VectorBlock
from trainer.schema.ids import hash_ids


def write_delta(
    partial: Path, manifest: EmbeddingManifest, config: ExportConfig, live: Path | None, before: EmbeddingManifest | None
) -> EmbeddingManifest:
    """Writes the delta of every entity.

    Without a live export of the same space, width and with digests, every vector is new to the consumer: no delta is written and
    ``delta_of`` stays null, which tells consumers to take the full export.

    Returns:
        The manifest with ``delta_of``, ``changed`` and ``tombstones``.
    """
    entities = [entity for entity in (USER, ITEM) if entity in manifest.entities]
    if live is None or before is None or (before.space_id, before.dim) != (manifest.space_id, manifest.dim):
        return manifest
    if any(entity + DIGEST not in before.shards for entity in entities):
        return manifest
    for entity in entities:
        old, new = digest_parts(live, before.shards[entity + DIGEST]), digest_parts(partial, manifest.shards[entity + DIGEST])
        changed, gone = changed_and_gone(old, new)
        _write(partial, manifest, config, entity, changed)
        _write_gone(partial, live, before, manifest, config, entity, gone)
    return dataclasses.replace(manifest, delta_of={"producer": before.producer, "as_of": before.as_of})


def _write(partial: Path, manifest: EmbeddingManifest, config: ExportConfig, entity: str, changed: np.ndarray) -> None:
    first = next(staged_blocks(partial, manifest.shards[entity], manifest.dim))
    schema = vector_schema(first.ids.type, manifest.dim, config.layout == "packed")

    def kept() -> Iterator[VectorBlock]:
        for block in staged_blocks(partial, manifest.shards[entity], manifest.dim):
            keep_M = _among(hash_ids(block.ids), changed)
            if keep_M.any():
                yield VectorBlock(block.ids.filter(pa.array(keep_M)), block.vectors_MD[keep_M])

    blocks = regrouped(kept(), row_group_rows(manifest.dim, config.shard_rows))
    batches = (vector_batch(schema, block.ids, block.vectors_MD) for block in blocks)
    shards = write_shards(partial, entity + DELTA, schema, batches, config.shard_rows)
    manifest.shards[entity + DELTA] = shards
    manifest.changed[entity] = sum(shard.rows for shard in shards)


def _write_gone(
    partial: Path, live: Path, before: EmbeddingManifest, manifest: EmbeddingManifest, config: ExportConfig, entity: str, gone: np.ndarray
) -> None:
    manifest.tombstones[entity] = len(gone)
    if not len(gone):
        return
    lost = pa.concat_arrays([_ids_among(block, gone) for block in read_view(live, before, entity)])
    batch = pa.record_batch([lost], schema=pa.schema([pa.field("id", lost.type, nullable=False)]))
    manifest.shards[entity + GONE] = write_shards(partial, entity + GONE, batch.schema, iter([batch]), config.shard_rows)


def _ids_among(block: VectorBlock, hashes: np.ndarray) -> pa.Array:
    return block.ids.filter(pa.array(_among(hash_ids(block.ids), hashes)))


def _among(hash_M: np.ndarray, sorted_K: np.ndarray) -> np.ndarray:
    """Returns bool [M]: which hashes are among sorted ones."""
    place_M = np.searchsorted(sorted_K, hash_M)
    found_M = place_M < len(sorted_K)
    found_M[found_M] = sorted_K[place_M[found_M]] == hash_M[found_M]
    return found_M
