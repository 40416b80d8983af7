"""Work files: tables that only this rebuild reads, laid out for speed. Arrow streams one after the other, and a footer that finds them.

    stream of group 0 | stream of group 1 | ... | footer (JSON) | length of the footer (4 bytes, little endian)

The footer holds length and CRC-32 of every stream. Nothing is compressed or encoded: what is written is what lies in memory, and reading
a group is one read, one check and no copy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from trainer.errors import DataError
from trainer.rebuild.store import put

_SIZE = 4  # bytes that tell the footer's length


def write_work(path: Path, table: pa.Table, groups: Iterable[int] | None = None) -> str:
    """Writes a work file.

    A power loss may leave it torn, as nothing is flushed; its record then does not match, and the task runs again.

    Args:
        path: The file.
        table: The table.
        groups: Rows of each group; default all in one.

    Returns:
        SHA-256 of the file.

    Raises:
        DataError: If the disk refuses.
    """
    sink, marks, first = pa.BufferOutputStream(), [], 0
    for rows in [len(table)] if groups is None else groups:
        stream = _stream(table.slice(first, rows))
        marks.append([stream.size, zlib.crc32(stream)])
        sink.write(stream)
        first += rows
    footer = json.dumps(marks).encode()
    sink.write(footer)
    sink.write(len(footer).to_bytes(_SIZE, "little"))
    return put(path, sink.getvalue(), durable=False)


def read_work(path: Path, columns: Sequence[str] | None = None, group: int | None = None) -> pa.Table:
    """Reads a work file, or one group of it, and verifies what it reads.

    Raises:
        DataError: If it is absent or damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(size - _SIZE)
            length = int.from_bytes(file.read(_SIZE), "little")
            file.seek(size - _SIZE - length)
            marks = json.loads(file.read(length))
            chosen = range(len(marks)) if group is None else [group]
            tables = []
            for index in chosen:
                file.seek(sum(mark[0] for mark in marks[:index]))
                stream = file.read(marks[index][0])
                if zlib.crc32(stream) != marks[index][1]:
                    raise ValueError(f"the checksum of group {index} is another")
                tables.append(pa.ipc.open_stream(stream).read_all())
    except (OSError, ValueError, TypeError, IndexError) as error:  # pa.ArrowInvalid and JSONDecodeError are ValueErrors
        raise DataError("cannot read a file of the rebuild", where=path, got=str(error), remedy="start the same command again") from error
    table = pa.concat_tables(tables)
    return table if columns is None else table.select(list(columns))


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
