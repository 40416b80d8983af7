"""What scans remember of files between nights: reports under the hash of all they depend on, so a night reads only new files.

    files/<log>.json     path, size and time of change of a file -> the content's hash and the columns' types
    reports/<key>.bin    one verified file: JSON, then the raw arrays, then the hash of both

A file counts as unchanged if its path, size and time of change (in nanoseconds) are; rebuild hashes whatever it reads in any case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.scan.verify import Expected, FileReport, Inspection
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_code, sha256_json
from trainer.schema.health import CellRule
from trainer.schema.logs import LogSpec
from trainer.schema.plain import as_plain, from_plain

_CODE = ("trainer/scan", "trainer/logs", "trainer/schema")  # decides what a report says: what other code remembered is not believed
_ARRAY = "@array"

Signature = tuple[int, int]


@dataclass(frozen=True)
class Known:
    """A file as it was when it was last verified."""

    sha256: str
    types: dict[str, str]


class Store:
    """Remembers files of one log.

    Args:
        root: Folder; None remembers nothing.
        spec: The log; what does not change the meaning of a file (root, side tables) does not change keys.
    """

    def __init__(self, root: str | None, spec: LogSpec) -> None:
        self._root = Path(root) if root else None
        declared = as_plain(spec)
        for name in ("root", "spec", "side_tables", "prior_history", "serving", "negatives"):
            declared.pop(name)
        self._declared = sha256_json([sha256_code(*_CODE), declared])
        self._index = self._root / "files" / f"{self._declared[:16]}.json" if self._root else None
        self._files = self._read_index()

    def inspection(self, path: str, signature: Signature | None) -> Inspection | None:
        """Returns what the footer said, if the file has not changed since."""
        known = self._files.get(_named(path, signature)) if signature else None
        return Inspection(dict(known.types)) if known else None

    def report(
        self, day: str, path: str, signature: Signature | None, expected: Expected, listed: dict[str, Any] | None, rules: Sequence[CellRule]
    ) -> FileReport | None:
        """Returns the report of an unchanged file under the same expectations; None if there is none, or it is damaged."""
        known = self._files.get(_named(path, signature)) if signature else None
        if self._root is None or known is None:
            return None
        try:
            return _unpacked((self._root / "reports" / f"{self._key(day, path, known.sha256, expected, listed, rules)}.bin").read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(
        self,
        day: str,
        signature: Signature | None,
        types: dict[str, str],
        expected: Expected,
        listed: dict[str, Any] | None,
        rules: Sequence[CellRule],
        report: FileReport,
    ) -> None:
        """Remembers a report; one of a file that could not be read is not worth it."""
        if self._root is None or signature is None or not report.file.sha256:
            return
        path = report.file.path
        self._files[_named(path, signature)] = Known(report.file.sha256, types)
        target = self._root / "reports" / f"{self._key(day, path, report.file.sha256, expected, listed, rules)}.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(_packed(report))
        partial.replace(target)

    def close(self) -> None:
        """Writes the index."""
        if self._index is not None:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._index, json.dumps({path: as_plain(known) for path, known in sorted(self._files.items())}))

    def _key(self, day: str, path: str, sha256: str, expected: Expected, listed: dict[str, Any] | None, rules: Sequence[CellRule]) -> str:
        return sha256_json([self._declared, day, path, sha256, as_plain(expected), listed, as_plain(list(rules))])

    def _read_index(self) -> dict[str, Known]:
        try:
            listed = json.loads(self._index.read_text()) if self._index else {}
            return {path: from_plain(Known, entry) for path, entry in listed.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # a damaged index costs a night's reading, nothing else


def _named(path: str, signature: Signature) -> str:
    return f"{path}|{signature[0]}|{signature[1]}"


def _packed(report: FileReport) -> bytes:
    arrays: list[np.ndarray] = []
    text = json.dumps([_without_arrays(as_plain(report), arrays), [[str(array.dtype), list(array.shape)] for array in arrays]]).encode()
    body = len(text).to_bytes(8, "little") + text + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return body + hashlib.sha256(body).digest()


def _unpacked(data: bytes) -> FileReport:
    body, digest = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("a remembered report is damaged")
    begin = 8 + int.from_bytes(body[:8], "little")
    plain, shapes = json.loads(body[8:begin])
    arrays = []
    for kind, shape in shapes:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays.append(np.frombuffer(body[begin : begin + size], kind).reshape(shape))
        begin += size
    return from_plain(FileReport, _with_arrays(plain, arrays))


def _without_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    """Replaces arrays by their numbers, in order."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, dict):
        return {key: _without_arrays(item, arrays) for key, item in value.items()}
    return [_without_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _with_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        return arrays[value[_ARRAY]] if set(value) == {_ARRAY} else {key: _with_arrays(item, arrays) for key, item in value.items()}
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value
