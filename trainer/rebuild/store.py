"""Files of a rebuild: written so that a kill at any instant leaves either the whole file or none, and found again by key.

A task has a content-addressed key and writes files and then one record. A record whose key matches and whose files still
have the recorded hashes is a task that need not run again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import DataError
from trainer.schema.examples import TIMES
from trainer.schema.files import locked, sync
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import as_plain, from_plain

TEMPORARY = ".tmp"  # ends the name of a file that is being written
PATIENCE_S = 4 * 3600.0  # runs of a sweep that share a folder take turns


@dataclass(frozen=True)
class Record:
    """A finished task.

    Attributes:
        key: Content-addressed key: hash of everything the result depends on.
        files: Path below the rebuild root -> SHA-256.
        facts: Numbers that later steps need without reading the files.
    """

    key: str
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


def write_table(path: Path, table: pa.Table, compression: str) -> str:
    """Writes a table that others read: temporary name, flush, verify by reading back, rename.

    Returns:
        SHA-256 of the file.

    Raises:
        DataError: If the disk refuses, or does not hold what was written.
    """
    instants = {name: "DELTA_BINARY_PACKED" for name in table.column_names if name in TIMES}
    # Real numbers and instants seldom repeat: a dictionary of them is built in vain.
    repeating = [field.name for field in table.schema if not pa.types.is_floating(field.type) and field.name not in instants]
    encoding = {"use_dictionary": repeating, "column_encoding": instants or None}
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, compression=compression, write_statistics=False, **encoding)
    return put(path, sink.getvalue(), durable=True)


def put(path: Path, content: pa.Buffer, *, durable: bool) -> str:
    """Puts a file in its place as a whole.

    Args:
        path: The file.
        content: What it shall hold.
        durable: Whether to flush it and to verify by reading back.

    Returns:
        SHA-256 of the file.

    Raises:
        DataError: If the disk refuses, or does not hold what was written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        if durable:
            sync(temporary)
            if not content.equals(pa.py_buffer(temporary.read_bytes())):
                raise OSError("the file does not hold the bytes that were written")
        digest = hashlib.sha256(content).hexdigest()
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            "cannot write a file of the rebuild",
            where=path,
            got=str(error),
            remedy="free space or repair the disk, then start the same command: finished tasks are kept",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def finish(root: Path, name: str, record: Record) -> Record:
    """Writes the record of a task, last of all its files."""
    path = _record_path(root, name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(as_plain(record), sort_keys=True))  # not flushed: a torn record is a task to run again
        temporary.replace(path)
    except OSError as error:
        raise DataError("cannot write a record of the rebuild", where=path, got=str(error), remedy="free space, start again") from error
    return record


def finished(root: Path, name: str, key: str) -> Record | None:
    """Returns the record of a task if it has this key and its files are the bytes that were written, else None."""
    try:
        record = from_plain(Record, json.loads(_record_path(root, name).read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if record.key != key or any(not _intact(root / path, digest) for path, digest in record.files.items()):
        return None
    return record


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Keeps other rebuilds out of a folder while one works there, and removes what killed ones were writing.

    Raises:
        DataError: If the folder cannot be used, or another rebuild does not leave it.
    """
    lock = root / ".lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise DataError("cannot write to the folder of the rebuild", where=root, got=str(error), remedy="check rebuild.root") from error
    for wait_s in (0.0, PATIENCE_S):
        with locked(lock, wait_s) as held:
            if held:
                for orphan in root.rglob(f".*{TEMPORARY}"):
                    orphan.unlink(missing_ok=True)
                yield
                return
        print(f"{'rebuild':<11}another rebuild works in {root}: waiting for it", flush=True)
    raise DataError("another rebuild works in this folder", where=root, remedy="wait for it, or give rebuild.root=ANOTHER_FOLDER")


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a published file of the rebuild with its page checksums verified.

    Raises:
        DataError: If it is absent or damaged.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(path.read_bytes()), page_checksum_verification=True)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read a file of the rebuild", where=path, got=str(error), remedy="start the same command again") from error


def _intact(path: Path, digest: str) -> bool:
    return path.exists() and sha256_file(path) == digest


def _record_path(root: Path, name: str) -> Path:
    return root / "records" / f"{name}.json"
