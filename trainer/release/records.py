"""The registry's small files, read strictly: a pointer file that cannot be understood is never guessed at."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from trainer.config import load
from trainer.errors import ConfigError, RegistryError
from trainer.schema.files import write_text
from trainer.schema.release import RELEASE_VERSION, Aliases, HistoryEntry, ReleaseRecord

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,127}")

_REMEDIES = {
    errno.ENOSPC: "free some space and start the same command again; the registry is as it was",
    errno.EDQUOT: "free some space and start the same command again; the registry is as it was",
    errno.EACCES: "give this user write access to registry.root, or choose another root",
    errno.EPERM: "give this user write access to registry.root, or choose another root",
    errno.EROFS: "registry.root lies on a read-only file system: choose another root",
    errno.ENOTDIR: "a part of the path is a file: registry.root must be a folder",
    errno.EEXIST: "a part of the path is a file: registry.root must be a folder",
}


def checked_name(name: str, where: str) -> str:
    """Returns `name` if it can be the name of a folder of the registry.

    Raises:
        ConfigError: If it could not, or would lead out of its parent folder.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("not a name", where=where, got=name, expected="letters, digits and . _ = + - (a letter or digit first)")
    return name


@contextmanager
def guarded(where: Path) -> Iterator[None]:
    """Turns any error of the file system into one RegistryError with a remedy."""
    try:
        yield
    except OSError as error:
        raise RegistryError(
            "the registry cannot be read or written", where=error.filename or where, got=error.strerror or error,
            remedy=_REMEDIES.get(error.errno or 0, "check registry.root and the file system below it"),
        ) from error  # fmt: skip


def read_record(kind: type[T], path: Path, remedy: str) -> T:
    """Reads a JSON file into the dataclass `kind`.

    Raises:
        RegistryError: If the file is no JSON, has unknown, missing or mistyped keys, or a version of a later rewarm.
    """
    with guarded(path):
        text = path.read_bytes()
    return _parse(kind, text, str(path), remedy)


def _parse(kind: type[T], text: bytes, where: str, remedy: str) -> T:
    try:
        values = json.loads(text)
        version = values.get("version", RELEASE_VERSION) if isinstance(values, dict) else RELEASE_VERSION
        if version != RELEASE_VERSION:
            raise RegistryError(
                "written by another version of rewarm", where=where, got=f"version {version}", expected=f"version {RELEASE_VERSION}",
                remedy="use the rewarm that wrote it",
            )  # fmt: skip
        return load(kind, values)
    except (ValueError, ConfigError) as error:
        raise RegistryError("a file of the registry is damaged", where=where, got=_first_line(error), remedy=remedy) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return error.what + (f": {error.where}" if error.where else "")
    return str(error).splitlines()[0]


def as_json(record: Aliases | ReleaseRecord) -> str:
    """Returns the text of a record: sorted keys, so that the same record is the same bytes."""
    return json.dumps(dataclasses.asdict(record), indent=2, sort_keys=True) + "\n"


class History:
    """The append-only history of a product.

    Only the last line can be doubtful: torn (the writer was killed), or telling of a revision that the aliases never reached
    (killed between history and aliases). Readers skip such a line; the next writer, who holds the lock, removes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self, revision: int) -> list[HistoryEntry]:
        """Returns the history, oldest first, as of `revision` of the aliases.

        Raises:
            RegistryError: If a line other than a torn last one cannot be understood.
        """
        return [entry for entry, _ in self._happened(revision)]

    def append(self, entry: HistoryEntry, revision: int) -> int:
        """Adds a line (the caller holds the lock); returns the size to `truncate` to if what it tells of fails.

        Raises:
            RegistryError: If an earlier line is damaged.
            OSError: If the disk refuses; the file is then as it was.
        """
        happened = self._happened(revision)
        size = happened[-1][1] if happened else 0
        values: dict[str, Any] = {key: value for key, value in dataclasses.asdict(entry).items() if value not in (None, {})}
        try:
            with self._path.open("ab") as file:
                file.truncate(size)
                file.write((json.dumps(values, sort_keys=True) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.truncate(size)
            raise
        return size

    def truncate(self, size: int) -> None:
        """Takes back what was written past `size`."""
        if self._path.exists():
            os.truncate(self._path, size)

    def _happened(self, revision: int) -> list[tuple[HistoryEntry, int]]:
        """Returns entries with the offset at which each ends."""
        with guarded(self._path):
            content = self._path.read_bytes() if self._path.exists() else b""
        found, end = [], 0
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            end += len(line) + 1
            remedy = "restore the line from a backup, or remove it: nothing but the record of the past depends on it"
            found.append((_parse(HistoryEntry, line, f"{self._path}:{number}", remedy), end))
        if found and (found[-1][0].revision or 0) > revision:
            found.pop()
        return found


def write_aliases(path: Path, aliases: Aliases) -> None:
    """Replaces the pointers as a whole."""
    write_text(path, as_json(aliases))
