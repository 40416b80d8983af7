"""Reading a finished file back from the disk: what the kernel took is compared, byte by byte, with what the disk gives back."""

from __future__ import annotations

import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from trainer.errors import ExportError

WINDOW = 1 << 20  # bytes compared at a time; a multiple of every disk's block
AHEAD = 2  # windows that the disk fetches meanwhile


def reread(path: Path) -> tuple[int, str]:
    """Flushes a file, reads it back past the kernel's cache, and hashes what the disk gave.

    Where the file system has no direct reads, the kernel is asked to forget the file first.

    Returns:
        Size in bytes, hex SHA-256.

    Raises:
        ExportError: If the disk gives back other bytes than were written.
        OSError: If the disk cannot be flushed or read.
    """
    cached, direct = os.open(path, os.O_RDONLY), _open_direct(path)
    try:
        os.fsync(cached)
        return os.fstat(cached).st_size, _compared(path, cached, direct)
    finally:
        os.close(cached)
        if direct is not None:
            os.close(direct)


def _compared(path: Path, cached: int, direct: int | None) -> str:
    size, digest = os.fstat(cached).st_size, hashlib.sha256()

    def load(start: int, pair: _Pair) -> tuple[int, int]:
        return _read(cached, pair.taken, start), _from_disk(cached, direct, pair.given, start)

    with ExitStack() as closing:
        pairs = [closing.enter_context(_Pair()) for _ in range(AHEAD + 1)]
        disk = closing.enter_context(ThreadPoolExecutor(AHEAD, "disk"))
        starts = range(0, size, WINDOW)
        ahead = {start: disk.submit(load, start, pairs[index]) for index, start in enumerate(starts[:AHEAD])}
        for index, start in enumerate(starts):
            if index + AHEAD < len(starts):  # the disk fetches while this window is compared and hashed
                ahead[starts[index + AHEAD]] = disk.submit(load, starts[index + AHEAD], pairs[(index + AHEAD) % len(pairs)])
            read, pair, count = ahead.pop(start).result(), pairs[index % len(pairs)], min(WINDOW, size - start)
            if read != (count, count) or not pair.equal(count):
                raise ExportError(
                    "a shard read back from the disk differs from what was written", where=f"{path}, from byte {start}",
                    got=f"{read[1]} bytes" if read[1] != count else "other bytes", expected=f"the {count} bytes that were written",
                    remedy="the disk or its driver is faulty: choose another folder",
                )  # fmt: skip
            with memoryview(pair.given) as view:
                digest.update(view[:count])
    return digest.hexdigest()


class _Pair:
    """The same window twice: as the kernel took it, and as the disk gives it back. Aligned to pages, as direct reads ask for."""

    def __init__(self) -> None:
        self.taken, self.given = mmap.mmap(-1, WINDOW), mmap.mmap(-1, WINDOW)

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.taken.close()
        self.given.close()

    def equal(self, count: int) -> bool:
        """Whether the first `count` bytes agree."""
        words = count // 8
        return np.array_equal(np.frombuffer(self.taken, np.uint64, words), np.frombuffer(self.given, np.uint64, words)) and np.array_equal(
            np.frombuffer(self.taken, np.uint8, count - 8 * words, 8 * words),
            np.frombuffer(self.given, np.uint8, count - 8 * words, 8 * words),
        )


def _open_direct(path: Path) -> int | None:
    """Opens a file past the kernel's cache and tries one read; None where that cannot be done."""
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(handle, [page], 0)
    except (OSError, AttributeError):
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _from_disk(cached: int, direct: int | None, into: mmap.mmap, start: int) -> int:
    if direct is not None:
        return _read(direct, into, start)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(cached, start, WINDOW, os.POSIX_FADV_DONTNEED)
    return _read(cached, into, start)


def _read(handle: int, into: mmap.mmap, start: int) -> int:
    """Fills a window from a place of a file; returns the bytes read, fewer at the file's end."""
    filled = 0
    with memoryview(into) as view:
        while filled < WINDOW and (count := os.preadv(handle, [view[filled:]], start + filled)):
            filled += count
            if filled % mmap.PAGESIZE:
                break  # the end of the file: a direct read may not start here
    return filled
