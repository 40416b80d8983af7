"""Readers of an export: nothing is handed out before its file's hash was checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import load
from trainer.errors import ConfigError, ExportError
from trainer.schema.embeddings import EMBEDDINGS_VERSION, MANIFEST, PAIR, EmbeddingManifest, Shard, VectorBlock, wide_names
from trainer.schema.hashing import sha256_file
from trainer.schema.ids import plain_ids

_RESTORE = "export again, or restore the folder from a release"


def read_manifest(folder: Path) -> EmbeddingManifest:
    """Reads the manifest of an export.

    Raises:
        ExportError: If there is none (an export without one is unfinished), or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError("not an export", where=folder, got=f"no {MANIFEST}", remedy="an export without one is unfinished: export again")
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict) and values.get("version") != EMBEDDINGS_VERSION:
            raise ExportError("written by another version of rewarm", where=path, got=values.get("version"), expected=EMBEDDINGS_VERSION)
        manifest = load(EmbeddingManifest, values)
    except (OSError, ValueError, ConfigError) as error:
        raise ExportError("the manifest of an export is damaged", where=path, got=str(error).splitlines()[0], remedy=_RESTORE) from error
    for shard in (shard for shards in manifest.shards.values() for shard in shards):
        if PurePosixPath(shard.path).is_absolute() or ".." in PurePosixPath(shard.path).parts:
            raise ExportError("a shard lies outside its export", where=path, got=shard.path, remedy=_RESTORE)
    return manifest


def read_embeddings(folder: Path, entity: str) -> Iterator[VectorBlock]:
    """Yields an entity's vectors in the order in which they were written, each file verified before its first block.

    Raises:
        ExportError: If the entity was not exported, or a file is missing or was altered.
    """
    yield from read_view(folder, read_manifest(folder), entity)


def read_view(folder: Path, manifest: EmbeddingManifest, view: str) -> Iterator[VectorBlock]:
    """Yields the vectors of a view: an entity's serving, wide, reference or delta vectors.

    Raises:
        ExportError: As `read_embeddings`.
    """
    for batch in _batches(folder, manifest, view):
        if "vector" in batch.schema.names:
            yield VectorBlock(batch.column("id"), vectors_of(batch.column("vector"), manifest.dim))
        else:
            columns = [batch.column(name).to_numpy() for name in wide_names(manifest.dim)]
            yield VectorBlock(batch.column("id"), np.stack(columns, axis=1))


def vectors_of(column: pa.Array, dim: int) -> np.ndarray:
    """Returns a vector column, of fixed-size lists or of packed bytes, as float32 [M, D]."""
    if pa.types.is_fixed_size_binary(column.type):
        start = column.offset * 4 * dim
        return np.frombuffer(column.buffers()[1], "<f4", count=len(column) * dim, offset=start).reshape(len(column), dim)
    return column.flatten().to_numpy().reshape(len(column), dim)


def read_pairs(folder: Path) -> pa.Table:
    """Returns the pair scalars of an export.

    Raises:
        ExportError: As `read_embeddings`.
    """
    return pa.Table.from_batches(list(_batches(folder, read_manifest(folder), PAIR)))


def lookup(folder: Path, entity: str, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns the serving vectors of `ids`: float32 [N, D], NaN where an id (or a null) has none.

    Raises:
        ExportError: As `read_embeddings`, or if the ids are of another type.
    """
    ids = plain_ids(ids)
    distinct = pc.unique(ids)
    vectors_UD = np.full((len(distinct), read_manifest(folder).dim), np.nan, np.float32)
    for block in read_embeddings(folder, entity):
        if block.ids.type != distinct.type:
            raise ExportError(f"{entity} ids are of another type", where=folder, got=distinct.type, expected=block.ids.type)
        place_M = pc.index_in(block.ids, value_set=distinct)
        known_M = np.asarray(place_M.is_valid())
        vectors_UD[place_M.drop_null().to_numpy()] = block.vectors_MD[known_M]
    return vectors_UD[pc.index_in(ids, value_set=distinct).to_numpy(zero_copy_only=False)]


def _batches(folder: Path, manifest: EmbeddingManifest, view: str) -> Iterator[pa.RecordBatch]:
    if view not in manifest.shards:
        raise ExportError("not part of this export", where=folder, got=view, expected=", ".join(sorted(manifest.shards)))
    for shard in manifest.shards[view]:
        check_shard(folder, shard)
        with pq.ParquetFile(folder / shard.path, page_checksum_verification=True, pre_buffer=False) as file:  # else it is held whole
            yield from file.iter_batches()


def check_shard(folder: Path, shard: Shard) -> None:
    """Raises an ExportError if a file of an export is missing or was altered."""
    path = folder / shard.path
    if not path.is_file():
        raise ExportError("a shard of an export is missing", where=path, remedy=_RESTORE)
    if (got := sha256_file(path)) != shard.sha256:
        raise ExportError(
            "a shard of an export was altered", where=path, got=f"sha256 {got}", expected=f"sha256 {shard.sha256}", remedy=_RESTORE
        )
