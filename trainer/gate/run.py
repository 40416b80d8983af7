"""`scripts/gate.py`: judges a predictions file and writes `verdict.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.config import GateRunConfig
from trainer.gate.present import present
from trainer.gate.repair import judge_and_repair
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain
from trainer.schema.record import read_record
from trainer.schema.repair import FILE as CURVES
from trainer.schema.repair import Repair, write_repair
from trainer.schema.suite import SuiteCase
from trainer.schema.verdict import Verdict

FILE = "verdict.json"


def run(config: GateRunConfig, suites: Sequence[SuiteCase] = ()) -> Verdict:
    """Judges `config.predictions`, writes ``verdict.json`` into `config.run_dir`, prints a table, and returns the verdict.

    Args:
        config: Table, policy and rules.
        suites: Permanent validation sets to judge along.

    Raises:
        DataError: If the predictions cannot be read or judged.
        ConfigError: If a rule refers to a score that cannot exist.
    """
    named = config.gate.production_record
    record = read_record(Path(named)) if named else None
    verdict, repair = judge_and_repair(config.predictions, config.gate, config.rules, suites=suites, record=record, seed=config.seed)
    path = write_verdict(verdict, Path(config.run_dir), repair)
    present(verdict, path)
    return verdict


def write_verdict(verdict: Verdict, run_dir: Path, repair: Repair | None = None) -> Path:
    """Writes ``verdict.json``, as a whole, and the curves of a repaired challenger beside it; returns the verdict's path."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CURVES).unlink(missing_ok=True)  # of an earlier judgement
    if repair is not None:
        write_repair(repair, run_dir)
    path = run_dir / FILE
    write_text(path, json.dumps(as_plain(verdict), indent=1, allow_nan=False) + "\n")
    return path
