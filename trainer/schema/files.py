"""How artefacts reach the disk: flushed, then renamed into place; never half a file under a final name."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.02


def sync(path: Path) -> None:
    """Flushes a file or a folder (its entries) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder below `folder`, itself included."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole: temporary name, flush, rename, flush of the folder.

    Raises:
        OSError: If the disk refuses; the old file is untouched and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[bool]:
    """Holds an exclusive lock on the file `path`, created if absent; the kernel frees it when the process dies.

    Yields:
        Whether the lock was had within `wait_s` seconds. The caller must not write when it was not.
    """
    deadline = time.monotonic() + wait_s
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not (held := _try_lock(handle)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield held
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    # flock, not lockf: a POSIX record lock would not exclude two threads of one process.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
