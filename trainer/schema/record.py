"""Production's recorded calibration: what it was worth when it was judged, to tell a fault of the labels from a fault of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError

_KEYS = ("ratio", "ne", "base_rate", "n")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One action of a record.

    Attributes:
        ratio: Sum p / sum y.
        ne: Normalised entropy (count, duration: normalised deviance).
        base_rate: Share of positives.
        n: Rows behind these numbers; null counts as many as they are compared with.
    """

    ratio: float | None = None
    ne: float | None = None
    base_rate: float | None = None
    n: int | None = None


def read_record(path: Path) -> dict[str, Recorded]:
    """Reads a record: action -> what was measured.

    Args:
        path: The ``eval.json`` that was sealed with production (where it was the challenger), a mapping {action: {ratio, ne,
            base_rate, n}}, or the folder of a release: its ``eval.json``, and where the release was repaired what its
            ``verdict.json`` measured after the repair.

    Raises:
        DataError: If there is no such file, or it is none of these.
    """
    if path.is_dir():
        found = read_record(path / "eval.json")
        return found | _repaired(path / "verdict.json")
    values = _mapping(path)
    entries = values.get("challenger", values)
    if not isinstance(entries, dict) or not entries or not all(isinstance(entry, dict) for entry in entries.values()):
        raise _unusable(path, "no actions")
    found = {action: _recorded(entry, path, action) for action, entry in entries.items()}
    if all(record.ratio is None and record.ne is None for record in found.values()):
        raise _unusable(path, "neither ratio nor ne of any action")
    return found


def _repaired(path: Path) -> dict[str, Recorded]:
    if not path.exists():
        return {}
    repair = _mapping(path).get("repair") or {}
    if repair.get("status") != "applied":
        return {}
    return {name: _recorded(entry["after"], path, name) for name, entry in repair.get("actions", {}).items() if entry.get("after")}


def _recorded(entry: Mapping[str, Any], path: Path, action: str) -> Recorded:
    """Picks the numbers of one action; the base rate of an ``eval.json`` follows from its counts."""
    values = {key: entry.get(key) for key in _KEYS}
    values["ne"] = entry.get("ne", entry.get("deviance"))
    if values["base_rate"] is None and entry.get("positives") is not None and entry.get("n"):
        values["base_rate"] = entry["positives"] / entry["n"]
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0):
            raise _unusable(path, f"{action}.{key} = {value!r}")
    return Recorded(**values)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(values, dict):
        raise _unusable(path, type(values).__name__)
    return values


def _unusable(path: Path, got: str) -> DataError:
    return DataError(
        "this is no record of production's calibration", where=path, got=got,
        expected="an eval.json, a mapping {action: {ratio, ne, base_rate, n}}, or the folder of a release",
        remedy="point gate.production_record at one of these, or leave it out",
    )  # fmt: skip
