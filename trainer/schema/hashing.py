"""Hashes of files, of plain values and of our code; the same values give the same hash on every machine."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = Path(__file__).parents[2]  # the folder that holds trainer/ and models/


def sha256_file(path: Path) -> str:
    """Returns the hex SHA-256 of a file's bytes."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Returns JSON with sorted keys and no spaces: equal values, equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_json(value: Any) -> str:
    """Returns the hex SHA-256 of `canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@cache
def sha256_code(*names: str) -> str:
    """Hashes source files, so that what other code has left behind is recognised.

    Args:
        names: Packages and modules as paths, such as ``trainer/logs`` or ``trainer/schema/time.py``; what lies below counts too.

    Returns:
        The hex SHA-256 over paths and bytes, read once a process.
    """
    digest = hashlib.sha256()
    for place in (_PACKAGES / name for name in names):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{path.relative_to(_PACKAGES)}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()
