"""The files of a run folder, read once. Only what was decided must be there; everything else may be missing, and the page says so."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainer.errors import CheckpointError, DataError
from trainer.schema.diagnosis import FILE as DIAGNOSIS
from trainer.schema.diagnosis import Diagnosis
from trainer.schema.plain import from_plain
from trainer.schema.repair import FILE as CURVES
from trainer.schema.repair import Repair, read_repair
from trainer.schema.summary import Summary
from trainer.schema.verdict import ALL, Check, Verdict

T = TypeVar("T")

STEPS = Path("challenger-fit") / "steps.jsonl"
BUNDLED_TRANSFER = Path("challenger") / "transfer.json"
MANIFEST = Path("embeddings") / "manifest.json"
_STEP_NUMBERS = ("step", "loss", "lr", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """What a run left behind.

    Attributes:
        run_dir: Its folder.
        summary: ``summary.json``; of a run of the gate alone, made from its verdict.
        verdict: ``verdict.json``, if anything was judged.
        config_text: ``config.yaml`` as written, empty if there is none.
        config: The same as values.
        evaluation: ``eval.json``: model -> action -> metrics.
        scan: ``scan.json``.
        transfer: ``transfer.json``, else the one in the challenger's bundle.
        steps: Lines of ``steps.jsonl`` by step; a step that was done again after a stop counts once.
        downstream: ``downstream.json``.
        embeddings: ``embeddings/manifest.json``.
        diagnosis: ``diagnosis.json``.
        repair: ``repair.json``: the curves of a repaired challenger.
        predictions: Path of the predictions, if they are there.
        damaged: File -> why it could not be read.
    """

    run_dir: Path
    summary: Summary
    verdict: Verdict | None = None
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    scan: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    downstream: dict[str, Any] = field(default_factory=dict)
    embeddings: dict[str, Any] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    repair: Repair | None = None
    predictions: Path | None = None
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        """Every check of the verdict, the deciding ones first."""
        return self.verdict.checks if self.verdict else []

    @property
    def confidence(self) -> str:
        """Level of the intervals in words, say ``95 %``."""
        return f"{100 * self.setting('gate', 'confidence', default=0.95):g}\u00a0%"

    def setting(self, *keys: str, default: Any = None) -> Any:
        """Returns a value of the configuration, or `default` where the run had no such key."""
        value: Any = self.config
        for key in keys:
            if not isinstance(value, dict) or value.get(key) is None:
                return default
            value = value[key]
        return value

    def missing(self, name: str, otherwise: str) -> str:
        """Says why a part is not on the page: its file is damaged, or `otherwise`."""
        return f"{name} cannot be read: {self.damaged[name]}" if name in self.damaged else otherwise

    def global_check(self, name: str, action: str) -> Check | None:
        """Returns the check on all rows, if the gate made it."""
        return next((c for c in self.checks if c.name == name and c.action == action and c.slice == ALL), None)


def read_artefacts(run_dir: Path, predictions: Path | None = None) -> Artefacts:
    """Reads a run folder.

    Args:
        run_dir: The folder.
        predictions: The table that was judged; default: the folder's own, else the one that ``config.yaml`` names.

    Raises:
        DataError: If neither a summary nor a verdict is there, or one of them is damaged: a report that guessed what was decided
            would be worse than none.
    """
    damaged: dict[str, str] = {}
    summary = _record(Summary, run_dir / "summary.json")
    verdict = _record(Verdict, run_dir / "verdict.json")
    config_text, config = _config(run_dir / "config.yaml", damaged)
    if summary is None and verdict is None:
        raise DataError(
            "there is no run to report on", where=run_dir, got="neither summary.json nor verdict.json",
            remedy="point at the run_dir of a finished run of retrain, train or gate",
        )  # fmt: skip
    return Artefacts(
        run_dir=run_dir,
        summary=summary or _summary_of(verdict, config),
        verdict=verdict,
        config_text=config_text,
        config=config,
        evaluation=_mapping(run_dir, Path("eval.json"), damaged),
        scan=_mapping(run_dir, Path("scan.json"), damaged),
        transfer=_mapping(run_dir, Path("transfer.json"), damaged) or _mapping(run_dir, BUNDLED_TRANSFER, damaged),
        steps=_steps(run_dir / STEPS, damaged),
        downstream=_mapping(run_dir, Path("downstream.json"), damaged),
        embeddings=_mapping(run_dir, MANIFEST, damaged),
        diagnosis=_diagnosis(run_dir / DIAGNOSIS, damaged),
        repair=_repair(run_dir, damaged),
        predictions=predictions or _predictions(run_dir, config),
        damaged=damaged,
    )


def _record(kind: type[T], path: Path) -> T | None:
    """Reads a dataclass; None where the file is absent."""
    if not path.exists():
        return None
    try:
        return from_plain(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            "cannot read what a run decided", where=path, got=str(error), expected=f"the fields of {kind.__name__}",
            remedy="it was altered or written by another version of rewarm; run the command that made it again",
        ) from error  # fmt: skip


def _summary_of(verdict: Verdict | None, config: dict[str, Any]) -> Summary:
    """The gate alone writes no summary: its verdict says all there is."""
    decided = (verdict.verdict, verdict.reason) if verdict else (None, "")
    return Summary(verdict=decided[0], as_of=str(config.get("as_of") or ""), status="done", reason=decided[1])


def _mapping(run_dir: Path, name: Path, damaged: dict[str, str]) -> dict[str, Any]:
    try:
        value = json.loads((run_dir / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        damaged[str(name)] = str(error)
        return {}
    if not isinstance(value, dict):
        damaged[str(name)] = f"a mapping was expected, not {type(value).__name__}"
        return {}
    return value


def _config(path: Path, damaged: dict[str, str]) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        damaged[path.name] = str(error)
        return "", {}
    return text, value if isinstance(value, dict) else {}


def _steps(path: Path, damaged: dict[str, str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.strip()]
        by_step = {
            int(entry["step"]): {name: float(entry[name] if entry[name] is not None else "nan") for name in _STEP_NUMBERS}
            | {"skipped": bool(entry["skipped"])}
            for entry in found
        }
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged[STEPS.name] = f"{type(error).__name__}: {error}"
        return []
    return [by_step[step] for step in sorted(by_step)]


def _diagnosis(path: Path, damaged: dict[str, str]) -> Diagnosis | None:
    try:
        return _record(Diagnosis, path)
    except DataError as error:
        damaged[path.name] = str(error.got)
        return None


def _repair(run_dir: Path, damaged: dict[str, str]) -> Repair | None:
    try:
        return read_repair(run_dir)
    except CheckpointError as error:
        damaged[CURVES] = f"{error.what}: {error.got}"
        return None


def _predictions(run_dir: Path, config: dict[str, Any]) -> Path | None:
    """The run's own predictions, or the file that the gate was pointed at."""
    named = config.get("predictions")
    candidates = [run_dir / "predictions.parquet", *([Path(named)] if isinstance(named, str) else [])]
    return next((path for path in candidates if path.is_file()), None)
