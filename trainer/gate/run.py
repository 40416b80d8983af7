"""`scripts/gate.py`: judges a predictions file and writes `verdict.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.config import GateRunConfig
from trainer.gate.judge import judge
from trainer.gate.present import present
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain
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
    verdict = judge(config.predictions, config.gate, config.rules, suites=suites, seed=config.seed)
    path = write_verdict(verdict, Path(config.run_dir))
    present(verdict, path)
    return verdict


def write_verdict(verdict: Verdict, run_dir: Path) -> Path:
    """Writes ``verdict.json``, as a whole, and returns its path."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE
    write_text(path, json.dumps(as_plain(verdict), indent=1, allow_nan=False) + "\n")
    return path
