"""Parquet shards, written row group by row group and read back before anybody may trust them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import ExportError
from trainer.export.reread import reread
from trainer.schema.embeddings import Shard, VectorBlock, wide_names

_READERS = 2  # while one waits for the disk the other hashes
_TURNED_ROWS = 256

_SYNC_FILE_RANGE_WRITE = 2
_BEGIN = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux only

ROW_GROUP_BYTES = 8 << 20  # what is held in memory at a time, whatever the number of entities


def row_group_rows(dim: int, shard_rows: int) -> int:
    """Returns the rows of a row group of vectors of width `dim`."""
    return max(1, min(shard_rows, ROW_GROUP_BYTES // (4 * dim)))


def vector_schema(id_type: pa.DataType, dim: int, packed: bool = False) -> pa.Schema:
    """Returns the schema of vector files: a fixed-size list an entity, or its little-endian bytes, which are written five times as fast."""
    element = pa.field("element", pa.float32(), nullable=False)  # without null levels lists are written and read in half the time
    kind = pa.binary(4 * dim) if packed else pa.list_(element, dim)
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


def wide_batches(schema: pa.Schema, blocks: Iterator[VectorBlock], rows: int) -> Iterator[pa.RecordBatch]:
    """Yields ids and vectors as batches of the wide schema, `rows` each but the last, in two pieces of memory by turns.

    A batch is good until the one after the next is asked for.
    """
    held_DR, spare_DR = (np.empty((len(schema) - 1, rows), np.float32) for _ in range(2))
    ids: list[pa.Array] = []
    held = 0
    for block in blocks:
        start = 0
        while start < len(block.ids):
            taken = min(rows - held, len(block.ids) - start, _TURNED_ROWS)  # what the cache holds: four times as fast as all at once
            held_DR[:, held : held + taken] = block.vectors_MD[start : start + taken].T
            ids.append(block.ids.slice(start, taken))
            held, start = held + taken, start + taken
            if held == rows:
                yield _wide_batch(schema, ids, held_DR)
                held_DR, spare_DR = spare_DR, held_DR
                ids, held = [], 0
    if held:
        yield _wide_batch(schema, ids, held_DR[:, :held])


def _wide_batch(schema: pa.Schema, ids: list[pa.Array], vectors_DR: np.ndarray) -> pa.RecordBatch:
    return pa.record_batch([pa.concat_arrays(ids), *(pa.array(column_R) for column_R in vectors_DR)], schema=schema)


# Floats neither repeat nor compress: dictionaries, statistics and codecs would cost time and save nothing.
FORMAT = {"compression": "none", "use_dictionary": False, "write_statistics": ["id"], "write_page_checksum": True}


class ShardWriter:
    """Writes one view (``user``, ``user_wide``, ...) as shards of `shard_rows` rows; the same batches give the same bytes.

    Three things go on at once: the caller makes a batch, the one before is written, and finished shards are read back from the disk,
    compared and hashed.

    Args:
        root: Export folder; shards go to ``root/<view>/part-00000.parquet`` and so on.
        view: Name of the view.
        schema: Columns.
        shard_rows: Rows a shard.
    """

    def __init__(self, root: Path, view: str, schema: pa.Schema, shard_rows: int) -> None:
        self.schema = schema
        self._root, self._view, self._shard_rows = root, view, shard_rows
        self._writer = ThreadPoolExecutor(1, f"write-{view}")
        self._writing: Future[None] | None = None
        self._readers = ThreadPoolExecutor(_READERS, f"reread-{view}")
        self._finished: list[Future[Shard]] = []
        self._open: _OpenShard | None = None
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows in the background; the memory of a batch must stay as it is until the next call of any kind.

        Raises:
            ExportError: If a finished shard does not read back as written.
            OSError: If the disk refuses.
        """
        self._wait()
        self._writing = self._writer.submit(self._write, batch)

    def finish(self) -> None:
        """Finishes the open shard, if there is one, and has it verified in the background.

        Raises:
            ExportError: If a shard before it does not read back as written.
            OSError: If the disk refuses.
        """
        self._wait()
        self._finish()

    def close(self) -> list[Shard]:
        """Finishes the last shard and returns all of them, verified.

        Raises:
            ExportError: If a shard does not read back as written.
            OSError: If the disk refuses.
        """
        self.finish()
        return [shard.result() for shard in self._finished]

    def abandon(self) -> None:
        """Lets go of an unfinished shard without writing any more; waits for what goes on in the background."""
        self._writer.shutdown(cancel_futures=True)
        if self._open is not None:
            self._open.abandon()
            self._open = None
        self._readers.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, batch: pa.RecordBatch) -> None:
        while batch.num_rows:
            piece = batch.slice(0, self._shard_rows - self._rows)
            shard = self._shard()
            shard.writer.write_batch(piece)
            shard.flush_soon()
            self._rows += piece.num_rows
            batch = batch.slice(piece.num_rows)
            if self._rows == self._shard_rows:
                self._finish()

    def _finish(self) -> None:
        if self._open is None:
            return
        path = self._open.path
        self._open.close()
        self._open = None
        if len(self._finished) >= _READERS:
            self._finished[-_READERS].result()  # fail early, and never run far ahead of the readers
        self._finished.append(self._readers.submit(_verified, self._root, path, self._rows))
        self._rows = 0

    def _shard(self) -> _OpenShard:
        if self._open is None:
            path = self._root / self._view / f"part-{len(self._finished):05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open = _OpenShard(path, self.schema)
        return self._open


class _OpenShard:
    """A file that is being written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._file = pa.OSFile(str(path), "wb")
        self._handle = os.open(path, os.O_RDONLY)
        self._flushed = 0
        self.writer = pq.ParquetWriter(self._file, schema, **FORMAT)

    def flush_soon(self) -> None:
        """Asks the kernel to begin with what was written, so that the disk does not stand idle until the flush at the end."""
        if _BEGIN is not None:  # nothing depends on it, and unlike posix_fadvise it forgets no page that is to be compared
            written = self._file.tell()
            _BEGIN(self._handle, ctypes.c_int64(self._flushed), ctypes.c_int64(written - self._flushed), _SYNC_FILE_RANGE_WRITE)
            self._flushed = written

    def close(self) -> None:
        """Writes the footer."""
        self.writer.close()
        self._file.close()
        os.close(self._handle)
        pa.default_memory_pool().release_unused()  # else an allocator may keep what the pages of this shard took

    def abandon(self) -> None:
        """Lets go without a footer."""
        self.writer.is_open = False  # or it would write one when it is collected
        with suppress(OSError):
            self._file.close()
        os.close(self._handle)


def _verified(root: Path, path: Path, written: int) -> Shard:
    size, digest = reread(path)
    rows = pq.read_metadata(path).num_rows
    if rows != written:
        raise ExportError("a shard holds another number of rows than were written", where=path, got=rows, expected=written)
    return Shard(path=path.relative_to(root).as_posix(), rows=rows, bytes=size, sha256=digest)


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
