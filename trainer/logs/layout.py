"""Where the files of a day lie: day folders, hour folders, links, markers, manifests, names that are not data."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.schema.logs import LogSpec

SUCCESS_MARKER = "_SUCCESS"
_HOUR = "hour="
_SILENT = (SUCCESS_MARKER, "_metadata", "_common_metadata")  # legitimate companions that hold no rows


@dataclass(frozen=True)
class DayFolder:
    """Files of one business day.

    Attributes:
        day: ISO date.
        files: Data files, as paths below the data root, sorted.
        ignored: Other files (temporary names, foreign formats), as paths below the data root.
        finished: Whether the marker that the layout asks for is there.
        manifest: File path below the data root -> what the day's manifest says about it (``sha256``, ``rows``, ``bytes``); None
            if there is no manifest.
        manifest_error: Why the manifest cannot be read, if there is one that cannot: nothing in the folder can then be trusted.
    """

    day: str
    files: list[str]
    ignored: list[str] = field(default_factory=list)
    finished: bool = True
    manifest: dict[str, dict[str, Any]] | None = None
    manifest_error: str | None = None


def discover_days(spec: LogSpec) -> list[str]:
    """Lists the days that have a folder, in order.

    Raises:
        DataError: If the folder is absent or holds no day folder.
    """
    folder = log_folder(spec)
    prefix = f"{spec.layout.partition}="
    if not folder.is_dir():
        raise DataError(
            "no logs: the folder does not exist",
            where="data.root",
            got=folder,
            expected=f"{prefix}YYYY-MM-DD folders in it",
            remedy="point data.root at the folder that holds the log",
        )
    days = sorted(entry.name.removeprefix(prefix) for entry in folder.iterdir() if entry.name.startswith(prefix) and entry.is_dir())
    days = [day for day in days if _is_day(day)]
    if not days:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise DataError(
            "no logs: no day folder",
            where=folder,
            got=found,
            expected=f"{prefix}YYYY-MM-DD",
            remedy="set data.layout.partition to the key of your day folders; flat files can be linked into such folders, a day each",
        )
    return days


def day_folder(spec: LogSpec, day: str) -> DayFolder:
    """Lists the files of a day; a day without a folder has none."""
    folder = log_folder(spec) / f"{spec.layout.partition}={day}"
    if not folder.is_dir():
        return DayFolder(day, [], finished=False)
    root = Path(spec.root)
    silent = {*_SILENT, *([spec.layout.manifest] if spec.layout.manifest else [])}
    hours = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name.startswith(_HOUR))
    entries = sorted(entry for place in (folder, *hours) for entry in place.iterdir() if not entry.is_dir())
    entries = [entry for entry in entries if entry.name not in silent]
    data = [entry for entry in entries if _is_data(entry.name, spec.layout.format)]
    manifest, error = _manifest(spec, folder)
    return DayFolder(
        day,
        files=[str(entry.relative_to(root)) for entry in data],
        ignored=[str(entry.relative_to(root)) for entry in entries if entry not in data],
        finished=not spec.layout.success_marker or (folder / SUCCESS_MARKER).exists(),
        manifest=manifest,
        manifest_error=error,
    )


def log_folder(spec: LogSpec) -> Path:
    """Returns the folder that holds the day folders."""
    return Path(spec.root) / spec.layout.path


def _is_day(text: str) -> bool:
    try:
        return dt.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_data(name: str, suffix: str) -> bool:
    """Writers give unfinished files a leading dot, underscore or hash, or a second suffix (``part.parquet.tmp``)."""
    return not name.startswith((".", "_", "#")) and name.endswith(f".{suffix}")


def _manifest(spec: LogSpec, folder: Path) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """Reads the day's manifest: (what it says, None), or (None, why it cannot be read)."""
    if not spec.layout.manifest or not (path := folder / spec.layout.manifest).exists():
        return None, None
    try:
        listed = json.loads(path.read_text())["files"]
        return {str((folder / name).relative_to(spec.root)): _entry(entry) for name, entry in listed.items()}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f'{path.name}: {type(error).__name__}: {error}; expected {{"files": {{name: {{"sha256", "rows", "bytes"}}}}}}'


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Checks what a manifest says about a file; a hash that is none could never match."""
    return {**entry, "rows": int(entry.get("rows", 0))} if "rows" in entry else dict(entry)
