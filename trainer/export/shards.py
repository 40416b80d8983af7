"""Parquet shards, written row group by row group and read back before anybody may trust them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import ExportError
from trainer.schema.embeddings import Shard, wide_names
from trainer.schema.hashing import sha256_file

ROW_GROUP_BYTES = 16 << 20  # what is held in memory at a time, whatever the number of entities


def row_group_rows(dim: int, shard_rows: int) -> int:
    """Returns the rows of a row group of vectors of width `dim`."""
    return max(1, min(shard_rows, ROW_GROUP_BYTES // (4 * dim)))


def vector_schema(id_type: pa.DataType, dim: int, packed: bool = False) -> pa.Schema:
    """Returns the schema of vector files: a fixed-size list an entity, or its little-endian bytes, which are written five times as fast."""
    kind = pa.binary(4 * dim) if packed else pa.list_(pa.float32(), dim)
    return pa.schema([pa.field("id", id_type, nullable=False), pa.field("vector", kind, nullable=False)])


def wide_schema(id_type: pa.DataType, dim: int) -> pa.Schema:
    """Returns the schema of the wide view: one float32 column a dimension."""
    fields = [pa.field(name, pa.float32(), nullable=False) for name in wide_names(dim)]
    return pa.schema([pa.field("id", id_type, nullable=False), *fields])


def vector_batch(schema: pa.Schema, ids: pa.Array, vectors_MD: np.ndarray) -> pa.RecordBatch:
    """Returns ids and vectors as one batch of a vector schema."""
    kind = schema.field("vector").type
    if pa.types.is_fixed_size_binary(kind):
        data = np.ascontiguousarray(vectors_MD, "<f4")
        return pa.record_batch([ids, pa.FixedSizeBinaryArray.from_buffers(kind, len(ids), [None, pa.py_buffer(data)])], schema=schema)
    flat = pa.array(np.ascontiguousarray(vectors_MD, np.float32).reshape(-1))
    return pa.record_batch([ids, pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)], schema=schema)


def wide_batch(schema: pa.Schema, ids: pa.Array, vectors_MD: np.ndarray) -> pa.RecordBatch:
    """Returns ids and vectors as one batch of the wide schema."""
    return pa.record_batch([ids, *(pa.array(column_M) for column_M in np.ascontiguousarray(vectors_MD.T))], schema=schema)


class _HashedFile:
    """A sink for Arrow that hashes what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


class ShardWriter:
    """Writes one view (``user``, ``user_wide``, ...) as shards of `shard_rows` rows; the same batches give the same bytes.

    Args:
        root: Export folder; shards go to ``root/<view>/part-00000.parquet`` and so on.
        view: Name of the view.
        schema: Columns.
        shard_rows: Rows a shard.
    """

    def __init__(self, root: Path, view: str, schema: pa.Schema, shard_rows: int) -> None:
        self.schema = schema
        self._root, self._view, self._shard_rows = root, view, shard_rows
        self._shards: list[Shard] = []
        self._open: tuple[Path, BinaryIO, _HashedFile, pq.ParquetWriter] | None = None
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; finishes shards as they fill up.

        Raises:
            ExportError: If a finished shard does not read back as written.
            OSError: If the disk refuses.
        """
        while batch.num_rows:
            piece = batch.slice(0, self._shard_rows - self._rows)
            self._writer().write_batch(piece)
            self._rows += piece.num_rows
            batch = batch.slice(piece.num_rows)
            if self._rows == self._shard_rows:
                self._finish()

    def close(self) -> list[Shard]:
        """Finishes the last shard and returns all of them, verified."""
        if self._open is not None:
            self._finish()
        return self._shards

    def abandon(self) -> None:
        """Lets go of an unfinished shard without writing any more."""
        if self._open is not None:
            _, file, _, writer = self._open
            writer.is_open = False  # or it would write a footer when it is collected
            with suppress(OSError):  # the disk may be full; what is buffered is not wanted any more
                file.close()
            self._open = None

    def _writer(self) -> pq.ParquetWriter:
        if self._open is None:
            path = self._root / self._view / f"part-{len(self._shards):05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb")
            sink = _HashedFile(file)
            # Floats neither repeat nor compress: dictionaries, statistics and codecs would cost time and save nothing.
            writer = pq.ParquetWriter(
                pa.PythonFile(sink, mode="w"), self.schema, compression="none", use_dictionary=False, write_statistics=["id"],
                write_page_checksum=True,
            )  # fmt: skip
            self._open = path, file, sink, writer
        return self._open[3]

    def _finish(self) -> None:
        if self._open is None:
            return
        path, file, sink, writer = self._open
        writer.close()
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # read back from the disk, not from the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.close()
        self._open = None
        self._shards.append(self._verified(path, sink.digest.hexdigest()))
        self._rows = 0

    def _verified(self, path: Path, written: str) -> Shard:
        if (got := sha256_file(path)) != written:
            raise ExportError(
                "a shard read back from the disk differs from what was written", where=path, got=got, expected=written,
                remedy="the disk or its driver is faulty: choose another folder",
            )  # fmt: skip
        rows = pq.read_metadata(path).num_rows
        if rows != self._rows:
            raise ExportError("a shard holds another number of rows than were written", where=path, got=rows, expected=self._rows)
        return Shard(path=path.relative_to(self._root).as_posix(), rows=rows, bytes=path.stat().st_size, sha256=written)


def write_shards(root: Path, view: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch], shard_rows: int) -> list[Shard]:
    """Writes a whole view and returns its verified shards.

    Raises:
        ExportError: If a shard does not read back as written.
        OSError: If the disk refuses.
    """
    writer = ShardWriter(root, view, schema, shard_rows)
    try:
        for batch in batches:
            writer.write(batch)
        return writer.close()
    finally:
        writer.abandon()
