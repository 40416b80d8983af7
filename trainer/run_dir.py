"""A run's folder: which stages are done, under which key, and one line a stage on the console.

A stage is kept when an earlier attempt with the same key finished it and its artefacts are still there; anything else is done
again. So a run that was stopped at any stage goes on with the same command. What another version of the code finished is kept too,
because a mended report must not cost the training before it, but the stage's line says so.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainer.errors import DataError, ExportError, RewarmError
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_code, sha256_json
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.summary import StageRecord, Summary

T = TypeVar("T")
_CODE = ("trainer", "models")


class RunDir:
    """Book-keeping of one run.

    Attributes:
        path: The folder.
        records: Stage -> record, in order.
    """

    def __init__(self, path: str | Path, config: Any) -> None:
        self.path = Path(path)
        with _disk_errors(self.path, reads=False):
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "config.yaml", yaml.safe_dump(as_plain(config), sort_keys=False))
        self.records: dict[str, StageRecord] = {}

    def stage(
        self,
        name: str,
        key: Any,
        produce: Callable[[], T],
        keep: Callable[[], T] | None = None,
        tell: Callable[[T], tuple[int, str]] | None = None,
    ) -> T:
        """Runs a stage, or takes what an earlier attempt left.

        Args:
            name: Name of the stage.
            key: Everything its result depends on; plain values.
            produce: Does the work and writes the artefacts.
            keep: Reads the artefacts of an earlier attempt; None for a stage that has none or keeps its own.
            tell: Rows and a few words for the console and the summary.

        Returns:
            The stage's result.

        Raises:
            ExportError: If the disk is full or refuses a write.
        """
        done = self.path / "stages" / f"{name}.json"
        mark = {"key": sha256_json(as_plain(key)), "code": sha256_code(*_CODE)}
        begin = time.perf_counter()
        earlier = _mark(done)
        result, status = self._kept(keep) if earlier["key"] == mark["key"] else None, "kept"
        if result is None:
            earlier = mark
            done.unlink(missing_ok=True)
            with _disk_errors(self.path):
                result, status = produce(), "done"
                done.parent.mkdir(exist_ok=True)
                write_text(done, json.dumps(mark))
        rows, detail = tell(result) if tell else (0, "")
        if earlier["code"] not in ("", mark["code"]):
            detail = f"{detail}; made by another version of the code: without {done} it is done again".lstrip("; ")
        self.records[name] = StageRecord(seconds=round(time.perf_counter() - begin, 2), rows=rows, status=status, detail=detail)
        say(name, self.records[name])
        return result

    def _kept(self, keep: Callable[[], T] | None) -> T | None:
        try:
            return keep() if keep else None
        except (OSError, ValueError, KeyError, RewarmError):
            return None  # a damaged leftover is no result: the stage is done again

    def finish(self, summary: Summary) -> Summary:
        """Writes `summary.json`."""
        with _disk_errors(self.path):
            write_text(self.path / "summary.json", json.dumps(_finite(as_plain(summary)), indent=1, allow_nan=False))
        return summary

    def summary(self) -> Summary | None:
        """Reads the summary of a finished attempt, if there is one."""
        try:
            return from_plain(Summary, json.loads((self.path / "summary.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _mark(done: Path) -> dict[str, str]:
    """Reads which key an earlier attempt finished a stage under, and by which code; empty where it did not or that is unreadable."""
    try:
        mark = json.loads(done.read_text())
    except (OSError, ValueError):
        mark = None
    return {name: str(mark.get(name, "")) if isinstance(mark, dict) else "" for name in ("key", "code")}


def say(name: str, record: StageRecord) -> None:
    """Prints the line of a stage."""
    kept = " (kept)" if record.status == "kept" else ""
    print(f"{name:<11}{record.seconds:>8.1f} s  {record.rows:>10,} rows  {record.detail}{kept}", flush=True)


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities by null: JSON has no word for them."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


class _disk_errors:
    """Turns a full or refusing disk into one message; where files are read as well, one that is gone is another matter."""

    def __init__(self, where: Path, reads: bool = True) -> None:
        self.where = where
        self.reads = reads

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError) and self.reads:
            raise DataError("a file that the run needs is gone", where=error.filename, remedy="was it moved during the run?") from error
        if isinstance(error, OSError):
            name = os.strerror(error.errno) if error.errno else str(error)
            raise ExportError(
                "the run's files cannot be written",
                where=error.filename or self.where,
                got=name,
                remedy="free some space or choose another run_dir, then start the same command again: finished stages are kept",
            ) from error
