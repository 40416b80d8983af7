"""The folder of suites: written once, verified whenever read, removed only on purpose."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import load
from trainer.errors import ConfigError, RegistryError, nearest
from trainer.schema.files import sync_tree, write_text
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import as_plain
from trainer.schema.suite import POSITION, RECORD, ROWS, SUITE_VERSION, Suite

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TEMPORARY = ".writing-"
_REMEDY = "restore the folder from a backup, or remove the suite and add it again: scripts/suite.py action=remove"


@dataclass(frozen=True)
class GoldenRows:
    """The rows of a golden suite.

    Attributes:
        rows: Judged rows as `trainer.schema.predictions`: labels, slice columns, and the scores of the day.
        position_N: int64 [N]: row of each in the examples of all parts, one after the other.
        parts: (examples, tail) of each part.
    """

    rows: pa.Table
    position_N: pa.Array
    parts: Sequence[tuple[pa.Table, pa.Table]]


class SuiteStore:
    """All suites of a product.

    Args:
        folder: ``root/<product>/suites``; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def existing(cls, folder: Path) -> SuiteStore:
        """Returns the suites of a folder that somebody named.

        Raises:
            ConfigError: If there is no such folder: a gate without its suites would pass what they are kept for.
        """
        if not folder.is_dir():
            raise ConfigError("no such folder", where="suites", got=folder, expected="registry.root/<product>/suites")
        return cls(folder)

    def names(self) -> list[str]:
        """Returns the names of all suites, sorted; also of damaged ones.

        Raises:
            RegistryError: If the folder cannot be read.
        """
        with _guarded(self.folder):
            if not self.folder.exists():
                return []
            return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def read(self, name: str) -> Suite:
        """Reads what a suite demands.

        Raises:
            RegistryError: If there is no such suite, or its record is damaged or another version's.
        """
        path = self._path(name) / RECORD
        with _guarded(path):
            if not path.is_file():
                raise RegistryError("no such suite", where=self.folder, got=name, remedy=nearest(name, self.names()))
            text = path.read_bytes()
        try:
            values = json.loads(text)
            if (version := values.get("version")) != SUITE_VERSION:
                raise RegistryError("a suite of another version of rewarm", where=path, got=version, expected=SUITE_VERSION)
            suite = load(Suite, values)
        except (ValueError, AttributeError, ConfigError) as error:
            raise RegistryError("a suite is damaged", where=path, got=str(error).splitlines()[0], remedy=_REMEDY) from error
        if suite.name != name:
            raise RegistryError("a suite lies under another's name", where=path, got=suite.name, expected=name, remedy=_REMEDY)
        return suite

    def digests(self) -> dict[str, str]:
        """Returns the hash of every suite's record: with other suites, the same challenger is another question."""
        records = {name: self.folder / name / RECORD for name in self.names()}
        with _guarded(self.folder):
            return {name: sha256_file(path) if path.is_file() else "" for name, path in records.items()}

    def rows(self, suite: Suite) -> GoldenRows:
        """Reads and verifies golden rows.

        Raises:
            RegistryError: If a file is missing or was altered.
        """
        folder = self._path(suite.name)
        with _guarded(folder):
            for name, expected in sorted(suite.files.items()):
                if not (folder / name).is_file() or sha256_file(folder / name) != expected:
                    raise RegistryError("golden rows are missing or were altered", where=folder / name, remedy=_REMEDY)
            rows = pq.read_table(folder / ROWS)
            names = sorted(name for name in suite.files if name.endswith("/examples.parquet"))
            parts = [(pq.read_table(folder / name), pq.read_table((folder / name).with_name("tail.parquet"))) for name in names]
        return GoldenRows(rows.drop_columns([POSITION]), rows[POSITION].combine_chunks(), parts)

    def add(self, suite: Suite, golden: GoldenRows | None) -> Suite:
        """Writes a suite: visible as a whole or not at all.

        Returns:
            The suite with the hashes of its files.

        Raises:
            ConfigError: If the name cannot be a folder's, or is taken: a suite never changes.
            RegistryError: If the disk refuses.
        """
        final = self._path(suite.name)
        partial = self.folder / f"{_TEMPORARY}{suite.name}-{uuid.uuid4().hex[:12]}"
        with _guarded(self.folder):
            try:
                partial.mkdir(parents=True)
                if golden is not None:
                    _write_rows(partial, golden)
                files = {path.relative_to(partial).as_posix(): sha256_file(path) for path in sorted(partial.rglob("*.parquet"))}
                suite = replace(suite, files=files)
                write_text(partial / RECORD, json.dumps(as_plain(suite), indent=1) + "\n")
                sync_tree(partial)
                _move(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already if it was moved
        return suite

    def remove(self, name: str) -> None:
        """Removes a suite, also a damaged one.

        Raises:
            RegistryError: If there is no such suite, or the disk refuses.
        """
        with _guarded(self.folder):
            if name not in self.names():
                raise RegistryError("no such suite", where=self.folder, got=name, remedy=nearest(name, self.names()))
            gone = self.folder / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:12]}"
            (self.folder / name).rename(gone)  # at once: nobody sees half a suite
            shutil.rmtree(gone)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError("not a name", where="name", got=name, expected="letters, digits, _ and - (a letter or digit first)")
        return self.folder / name


def _write_rows(folder: Path, golden: GoldenRows) -> None:
    _write(golden.rows.append_column(POSITION, golden.position_N), folder / ROWS)
    for number, (examples, tail) in enumerate(golden.parts):
        _write(examples, folder / f"part-{number:02d}" / "examples.parquet")
        _write(tail, folder / f"part-{number:02d}" / "tail.parquet")


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _move(partial: Path, final: Path) -> None:
    """Renames a folder into place; a name that is taken, also by a process that was faster, is refused."""
    try:
        partial.rename(final)  # a folder that holds files is never replaced
    except OSError as error:
        if not final.exists():
            raise
        raise ConfigError(
            "a suite of this name exists: suites never change", where="name", got=final.name,
            remedy="choose another name, or remove it first: scripts/suite.py action=remove",
        ) from error  # fmt: skip


@contextmanager
def _guarded(where: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        words = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise RegistryError("the suites cannot be read or written", where=where, got=words, remedy=_REMEDY) from error
