"""Sealing: a staged folder becomes an immutable version, verified by re-reading what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

from trainer.errors import CheckpointError, RegistryError
from trainer.release.records import as_json, guarded, read_record
from trainer.schema.files import sync, sync_tree, write_text
from trainer.schema.hashing import sha256_file
from trainer.schema.release import RECORD, ReleaseRecord

_CHUNK = 1 << 20
_PARTIAL = ".sealing-"
_STALE_S = 86_400  # a temporary folder untouched for a day belongs to a process that was killed

_RESTORE = "restore the file from a backup, or roll back: scripts/release.py action=rollback"


def read_release(folder: Path) -> ReleaseRecord:
    """Reads the record of a sealed version, without looking at its files.

    Raises:
        RegistryError: If the version does not exist, was never sealed, or its record is damaged or another version's.
    """
    path = folder / RECORD
    if not path.is_file():
        have = "a folder without a release.json" if folder.is_dir() else "no such version"
        raise RegistryError("not a sealed release", where=folder, got=have, remedy="scripts/release.py action=status lists the versions")
    record = read_record(ReleaseRecord, path, _RESTORE)
    if record.id != folder.name:
        raise RegistryError("a release lies under another version's name", where=path, got=record.id, expected=folder.name, remedy=_RESTORE)
    return record


def verify_release(folder: Path) -> ReleaseRecord:
    """Reads the record of a sealed version and checks every file against it.

    Raises:
        RegistryError: As `read_release`.
        CheckpointError: If a file is missing, was altered, or was never sealed.
    """
    record = read_release(folder)
    with guarded(folder):
        present = set(_plain_files(folder)) - {RECORD}
        for name, expected in sorted(record.files.items()):
            if name not in present:
                raise CheckpointError("a file of a sealed release is missing", where=folder / name, remedy=_RESTORE)
            if (got := sha256_file(folder / name)) != expected:
                raise CheckpointError(
                    "a file of a sealed release was altered", where=folder / name, got=f"sha256 {got}", expected=f"sha256 {expected}",
                    remedy=_RESTORE,
                )  # fmt: skip
    if extra := sorted(present - set(record.files)):
        raise CheckpointError("a sealed release holds a file that was never sealed", where=folder / extra[0], remedy="remove the file")
    return record


def copy_staged(staged: Path, versions: Path, version_id: str) -> tuple[Path, dict[str, str]]:
    """Copies a staged folder next to the versions under a temporary name, flushed and verified by re-reading.

    Returns:
        The temporary folder, and the hash of each file by its path below the folder.

    Raises:
        RegistryError: If the staged folder is absent, empty, or holds anything but plain files.
        CheckpointError: If what was read back is not what was written.
        OSError: If the disk refuses; the temporary folder is gone then.
    """
    names = _staged_names(staged)
    partial = versions / f"{_PARTIAL}{version_id}-{uuid.uuid4().hex[:12]}"
    try:
        hashes = {name: _copy(staged / name, partial / name) for name in names}
        sync_tree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial, hashes


def publish(partial: Path, record: ReleaseRecord, final: Path) -> None:
    """Writes the record last and renames the folder into place; a version is visible as a whole or not at all."""
    write_text(partial / RECORD, as_json(record))
    for name in _plain_files(partial):
        (partial / name).chmod(0o444)  # a slip of the hand should not unseal a release
    partial.rename(final)


def remove_release(folder: Path) -> None:
    """Removes a version: out of sight at once, then file by file; what a killed process leaves, `sweep` removes."""
    gone = folder.with_name(f"{_PARTIAL}{folder.name}-{uuid.uuid4().hex[:12]}")
    folder.rename(gone)
    sync(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(versions: Path) -> None:
    """Removes temporary folders that killed processes left behind."""
    for leftover in versions.glob(f"{_PARTIAL}*"):
        if time.time() - leftover.stat().st_mtime > _STALE_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _staged_names(staged: Path) -> list[str]:
    if not staged.is_dir():
        raise RegistryError("nothing to seal", where=staged, got="no such folder", remedy="run the stages that fill it first")
    names = _plain_files(staged)
    if not names:
        raise RegistryError("nothing to seal", where=staged, got="an empty folder", remedy="run the stages that fill it first")
    if RECORD in names:
        raise RegistryError("a staged folder holds the record that sealing writes", where=staged / RECORD, remedy="stage another folder")
    return names


def _plain_files(folder: Path) -> list[str]:
    """Returns the paths of all files below `folder`, sorted.

    Raises:
        RegistryError: On a link or a device: a release that points elsewhere cannot be immutable.
    """
    names = []
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RegistryError("a release holds plain files only", where=path, got="a link or a device", remedy="copy the file itself")
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
    return sorted(names)


def _copy(source: Path, target: Path) -> str:
    """Copies one file and returns the hash of what was read; the copy is flushed, read back and compared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
        if hasattr(os, "posix_fadvise"):  # read back from the disk, not from the cache
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (got := sha256_file(target)) != digest.hexdigest():
        raise CheckpointError(
            "a file read back from the registry differs from what was written", where=target, got=got, expected=digest.hexdigest(),
            remedy="the disk or its driver is faulty: choose another registry.root",
        )  # fmt: skip
    return digest.hexdigest()
