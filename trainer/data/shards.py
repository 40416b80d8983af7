"""Shards on disk: encoded once a run, read by every pass, worker and rank."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainer.data.encode import Shard
from trainer.errors import DataError


@dataclass(frozen=True, order=True)
class ShardKey:
    """A shard is one (day, user bucket)."""

    day: str
    bucket: int

    @property
    def stem(self) -> str:
        return f"day={self.day}-bucket={self.bucket:02d}"


@dataclass(frozen=True)
class ShardStore:
    """A folder of encoded shards.

    Attributes:
        root: Folder; shards are ``<stem>.npz``, plain arrays.
    """

    root: Path

    def write(self, key: ShardKey, shard: Shard) -> None:
        """Writes a shard under a temporary name and renames it."""
        self.root.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **shard.arrays())  # type: ignore[arg-type]
        temporary = self.root / f".{key.stem}.{os.getpid()}.tmp"
        temporary.write_bytes(buffer.getvalue())
        temporary.rename(self._path(key))
        _read.cache_clear()  # another attempt in this process may have read a shard of that name

    def exists(self, key: ShardKey) -> bool:
        """Tells whether the shard has been written."""
        return self._path(key).exists()

    def read(self, key: ShardKey) -> Shard:
        """Reads a shard; the last few stay in memory.

        Raises:
            DataError: If the file is absent or damaged.
        """
        return _read(self._path(key))

    def lengths(self, key: ShardKey) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and targets of each unit (int64 [U] each)."""
        shard = self.read(key)
        return np.diff(shard.token_offsets_U1), np.diff(shard.target_offsets_U1)

    def _path(self, key: ShardKey) -> Path:
        return self.root / f"{key.stem}.npz"


@lru_cache(maxsize=4)
def _read(path: Path) -> Shard:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Shard(**{name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            "cannot read an encoded shard", where=path, got=str(error), remedy="delete the file; it is encoded again"
        ) from error
