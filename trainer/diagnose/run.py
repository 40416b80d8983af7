"""Puts a diagnosis together from what a run left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.diagnose.cause import Cause, most_likely
from trainer.diagnose.signals import findings, read_signals
from trainer.diagnose.worst import worst_slices
from trainer.errors import DataError
from trainer.schema.diagnosis import FILE, Diagnosis, Finding
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.verdict import NOT_ATTEMPTED, REFUSED, Verdict

PREDICTIONS = "predictions.parquet"
_SHOWN = 3


def diagnose(
    run_dir: Path,
    predictions: pa.Table | None = None,
    *,
    source: str | None = None,
    cohorts: Mapping[str, Any] | None = None,
    odd: Sequence[str] = (),
    drift: Sequence[Mapping[str, Any]] = (),
    ablation: Sequence[Mapping[str, Any]] = (),
) -> Diagnosis:
    """Says what most likely happened, and writes ``diagnosis.json``.

    Args:
        run_dir: Folder with ``verdict.json``; ``summary.json`` and ``scan.json`` are used where they are there.
        predictions: What was judged; default: the folder's ``predictions.parquet``, if there is one.
        source: Where the table lies, for the next command; default: in the folder.
        cohorts: As `trainer.diagnose.fresh.cohorts`.
        odd: As `trainer.diagnose.fresh.odd_cohorts`.
        drift: As `trainer.diagnose.fresh.drift`.
        ablation: As `trainer.diagnose.ablation.ablate`.

    Returns:
        The diagnosis.

    Raises:
        DataError: If nothing was judged in this folder, or its verdict cannot be read.
    """
    verdict = _verdict(run_dir / "verdict.json")
    summary, scan = _mapping(run_dir / "summary.json"), _mapping(run_dir / "scan.json")
    if predictions is None and (run_dir / PREDICTIONS).is_file():
        predictions = pq.read_table(run_dir / PREDICTIONS, page_checksum_verification=True)
    holdout = summary.get("data", {}).get("holdout", [])
    unfit = verdict.repair is not None and verdict.repair.status == REFUSED
    signals = replace(read_signals(verdict.checks, scan, holdout), unfit=unfit)
    first = any(check.name == "first" for check in verdict.checks)
    cause = most_likely(signals, verdict.verdict, first)
    slices = [asdict(worst) for worst in worst_slices(predictions)] if predictions is not None else []
    evidence = [
        *findings(verdict.checks, signals), *_changed(summary), *_odd(odd), *_drifted(drift), *_sliced(slices), *_repaired(verdict),
    ]  # fmt: skip
    command = cause.command.format(run=run_dir, predictions=source or run_dir / PREDICTIONS) if cause.command else None
    diagnosis = Diagnosis(
        verdict=verdict.verdict, cause=cause.name, paragraph=_paragraph(verdict, cause, evidence, command), next_command=command,
        signals=asdict(signals), findings=sorted(evidence, key=lambda finding: not finding.supports),
        changes=_differences(summary), cohorts=dict(cohorts or {}), drift=[dict(entry) for entry in drift],
        ablation=[dict(entry) for entry in ablation], slices=slices,
    )  # fmt: skip
    write_text(run_dir / FILE, json.dumps(as_plain(diagnosis), indent=1, allow_nan=False) + "\n")
    return diagnosis


def _paragraph(verdict: Verdict, cause: Cause, evidence: Sequence[Finding], command: str | None) -> str:
    """Verdict, most likely cause, the evidence for it, and the next command."""
    supporting = [finding.sentence.rstrip(".") for finding in evidence if finding.supports][:_SHOWN]
    because = f" Evidence: {'; '.join(supporting)}." if supporting else ""
    then = f" Next: python {command}" if command else ""
    if cause.name == "nothing":
        return f"{verdict.verdict}. {cause.meaning}{because}"
    return f"{verdict.verdict}. Most likely cause: {cause.name}. {cause.meaning}{because} {cause.remedy}{then}"


def _differences(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the parent; what does not is left out."""
    return {name: value for name, value in summary.get("changes", {}).items() if value}


def _changed(summary: Mapping[str, Any]) -> list[Finding]:
    """First place to look: a changed label expression moves a metric more surely than any bug of training."""
    found = []
    words = {"labels": "label expressions changed", "value": "the value function changed", "code_version": "the code version changed"}
    changes = _differences(summary)
    for name, sentence in words.items():
        if name in changes:
            detail = ", ".join(changes[name]) if isinstance(changes[name], dict) else " -> ".join(map(str, changes[name]))
            found.append(Finding(topic="changes", sentence=f"{sentence} against the parent: {detail}", supports=True))
    for name in ("features_added", "features_removed", "days_repaired", "days_refused"):
        if name in changes:
            found.append(Finding(topic="changes", sentence=f"{name.replace('_', ' ')}: {', '.join(map(str, changes[name]))}"))
    if "config" in changes:
        keys = list(changes["config"]) if isinstance(changes["config"], dict) else []
        found.append(Finding(topic="changes", sentence=f"{len(keys)} settings changed against the parent: {', '.join(keys[:8])}"))
    return found


def _odd(odd: Sequence[str]) -> list[Finding]:
    return [Finding(topic="labels at equal age", sentence=sentence, supports=True) for sentence in odd]


def _drifted(drift: Sequence[Mapping[str, Any]]) -> list[Finding]:
    found = []
    for entry in drift[:_SHOWN]:
        gone = abs(entry["nulls_after"] - entry["nulls_before"])
        if gone > 0.05 or entry["shift"] > 0.1:
            missing = f"missing {entry['nulls_before']:.1%} -> {entry['nulls_after']:.1%}"
            words = f"{entry['feature']}: {missing}, {entry['shift']:.0%} of its values moved"
            found.append(Finding(topic="drift", sentence=words, supports=gone > 0.2))
    return found


def _sliced(slices: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Confirmed slices only: one that was searched for proves nothing where it was found."""
    return [
        Finding(
            topic="worst slice",
            sentence=f"{entry['action']} loses most where {entry['slice']} ({entry['harm']:+.1%} of the loss, confirmed)",
        )
        for entry in slices
        if entry["confirmed"]
    ]


def _repaired(verdict: Verdict) -> list[Finding]:
    if verdict.repair is None or verdict.repair.status == NOT_ATTEMPTED:
        return []
    return [Finding(topic="repair", sentence=verdict.repair.sentence)]


def _verdict(path: Path) -> Verdict:
    try:
        return from_plain(Verdict, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            "there is no verdict to explain", where=path, got=str(error).splitlines()[0], expected="verdict.json of a finished run",
            remedy="point run_dir at a folder that scripts/retrain.py or scripts/gate.py wrote",
        ) from error  # fmt: skip


def _mapping(path: Path) -> dict[str, Any]:
    """Content of an optional file; one that is damaged is an error, not a gap."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            "a file of the run cannot be read", where=path, got=str(error), remedy="run the command that wrote it again"
        ) from error
    if not isinstance(values, dict):
        raise DataError("a file of the run is no mapping", where=path, got=type(values).__name__)
    return values
