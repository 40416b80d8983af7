"""Damage that happens while files are read or written: slow, hanging, failing and changing reads, killed readers, full disks.

A hazard lasts as long as its context. Reads are made slow or hanging by a named pipe in the place of the file, fed by a thread:
every reader meets it, in whatever process, without a hook in the reader.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import ConfigError, nearest
from trainer.inject.site import Site
from trainer.schema.injection import Planted

_POLL_S = 0.005
_PIECES = 40
_SLOW_S = 4.0  # of one slow read
_FAILURES = 2  # reads that fail before one succeeds

Feed = Callable[[Callable[[bytes], None], bytes, int], None]


@contextmanager
def hanging_read(site: Site) -> Iterator[list[Planted]]:
    """Lets every read of a file hang."""
    with _pipe(site, None):
        yield [site.planted(file=site.file, note="reads never return")]


@contextmanager
def slow_read(site: Site) -> Iterator[list[Planted]]:
    """Delivers a file drop by drop."""

    def feed(write: Callable[[bytes], None], data: bytes, turn: int) -> None:
        step = -(-len(data) // _PIECES)
        for begin in range(0, len(data), step):
            write(data[begin : begin + step])
            time.sleep(_SLOW_S / _PIECES)

    with _pipe(site, feed):
        yield [site.planted(file=site.file, note=f"{_SLOW_S:g} s a read")]


@contextmanager
def transient_error(site: Site) -> Iterator[list[Planted]]:
    """Breaks the first reads off half-way; later ones succeed."""

    def feed(write: Callable[[bytes], None], data: bytes, turn: int) -> None:
        write(data if turn >= _FAILURES else data[: len(data) // 2])

    with _pipe(site, feed):
        yield [site.planted(file=site.file, note=f"the first {_FAILURES} reads break off")]


@contextmanager
def worker_killed(site: Site) -> Iterator[list[Planted]]:
    """Kills the first process that opens the file, as the kernel does when memory runs out; then lets readers be."""
    place, stop = Path(site.spec.root) / site.file, threading.Event()
    data = place.read_bytes()

    def wait() -> None:
        while not stop.is_set():
            with _waiting(place) as readers:
                if readers:
                    partial = place.with_name(f".{place.name}.partial")  # the pipe becomes the file at once: at no time is there none
                    partial.write_bytes(data)
                    partial.replace(place)
                    os.kill(readers[0], signal.SIGKILL)
                    return
            time.sleep(_POLL_S)

    with _pipe(site, None, beside=wait, stop=stop):
        yield [site.planted(file=site.file, note="the first reader is killed")]


@contextmanager
def file_changed(site: Site) -> Iterator[list[Planted]]:
    """Rewrites a file again and again: other bytes, other times."""
    place, stop = Path(site.spec.root) / site.file, threading.Event()
    data = place.read_bytes()

    def rewrite() -> None:
        turn = 0
        while not stop.wait(_POLL_S):
            turn += 1
            partial = place.with_name(f".{place.name}.partial")
            partial.write_bytes(data[: len(data) - turn % 7 * 8])
            partial.replace(place)

    thread = threading.Thread(target=rewrite, daemon=True)
    thread.start()
    try:
        yield [site.planted(file=site.file, note="rewritten all the time")]
    finally:
        stop.set()
        thread.join()
        place.write_bytes(data)


@contextmanager
def disk_full(site: Site) -> Iterator[list[Planted]]:
    """Lets this process write no byte to any file: what a full disk looks like to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield [site.planted(note="no file may grow")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


HAZARDS = {
    "footer_hang": hanging_read, "hanging_read": hanging_read, "slow_read": slow_read, "transient_error": transient_error,
    "worker_killed": worker_killed, "file_changed": file_changed, "disk_full": disk_full,
}  # fmt: skip


@contextmanager
def hazard(site: Site) -> Iterator[list[Planted]]:
    """Holds the hazard that a site asks for.

    Args:
        site: Day and kind.

    Yields:
        What is going on.

    Raises:
        ConfigError: If the kind is no hazard.
    """
    if site.kind not in HAZARDS:
        raise ConfigError("not a hazard", where="faults", got=site.kind, remedy=nearest(site.kind, HAZARDS))
    with HAZARDS[site.kind](site) as planted:
        yield planted


@contextmanager
def _pipe(site: Site, feed: Feed | None, beside: Callable[[], None] | None = None, stop: threading.Event | None = None) -> Iterator[None]:
    """Puts a named pipe in the place of a file; without `feed` nobody ever writes to it."""
    place, over = Path(site.spec.root) / site.file, stop or threading.Event()
    data = place.read_bytes()
    place.unlink()
    os.mkfifo(place)
    task = beside or (lambda: _serve(place, data, feed, over) if feed else None)
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        place.unlink(missing_ok=True)
        place.write_bytes(data)


def _serve(place: Path, data: bytes, feed: Feed, over: threading.Event) -> None:
    """Feeds one reader after another."""
    turn = 0
    while not over.is_set():
        try:
            handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads
                raise
            time.sleep(_POLL_S)
            continue
        with suppress(BrokenPipeError):  # the reader has gone
            feed(lambda piece, handle=handle: _write(handle, piece, over), data, turn)  # type: ignore[misc]
        os.close(handle)
        turn += 1
        time.sleep(4 * _POLL_S)  # the reader must see the end before the next turn begins


def _write(handle: int, piece: bytes, over: threading.Event) -> None:
    view = memoryview(piece)
    while view and not over.is_set():
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:
            time.sleep(_POLL_S)


@contextmanager
def _waiting(place: Path) -> Iterator[list[int]]:
    """Holds the readers of a pipe: other processes of this user that have it open wait as long as this lasts.

    A reader that waits for a writer holds no descriptor yet, so it is found by becoming its writer for a moment.

    Yields:
        Their ids.
    """
    try:
        handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        yield []
        return
    try:
        time.sleep(_POLL_S)
        yield [process for process in _processes() if process != os.getpid() and _has_open(process, place)]
    finally:
        os.close(handle)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.stat().st_uid == os.getuid()]


def _has_open(process: int, place: Path) -> bool:
    with suppress(OSError):
        return any(link.readlink() == place.resolve() for link in Path(f"/proc/{process}/fd").iterdir())
    return False
