"""`scripts/diagnose.py`: hands the diagnosis what it needs of a finished run, its examples and its models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from trainer.config import DiagnoseRunConfig, RetrainConfig, load
from trainer.diagnose import ablate, cohorts, diagnose, drift, odd_cohorts
from trainer.errors import DataError, RewarmError
from trainer.schema.examples import FEATURE, ExamplesManifest, read_manifest, read_partition, read_tail
from trainer.schema.logs import whole_names
from trainer.schema.time import day_end_ms

if TYPE_CHECKING:
    from trainer.schema.diagnosis import Diagnosis


def explain(config: DiagnoseRunConfig) -> Diagnosis:
    """Diagnoses a finished run, with its examples where they are still there.

    Args:
        config: The run, and how far to look.

    Raises:
        DataError: If nothing was judged in the folder, or an ablation is asked for and its examples or bundles are gone.
    """
    from trainer.gate.table import read_table

    run_dir = Path(config.run_dir)
    predictions = read_table(config.predictions) if config.predictions else None
    run = _Run.open(run_dir)
    if run is None:
        if config.ablation:
            raise DataError(
                "an ablation needs the examples of the run", where=run_dir, got="a run of the gate alone, or examples that were rebuilt",
                expected="the run_dir of scripts/retrain.py whose rebuild.root still holds its days", remedy="leave ablation out",
            )  # fmt: skip
        return diagnose(run_dir, predictions, source=config.predictions)
    days = {day: run.examples(day) for day in [*run.earlier[-config.days :], *run.holdout]}
    before = pa.concat_tables([days[day] for day in run.earlier[-config.days :]], promote_options="default") if run.earlier else None
    after = pa.concat_tables([days[day] for day in run.holdout], promote_options="default")
    binary = [name for name in run.config.data.gated_actions if run.config.data.actions[name].kind == "binary"]
    aged = cohorts(days, binary, run.known_until_ms, run.config.data.timezone)
    moved = drift(before, after) if before is not None else []
    return diagnose(
        run_dir, predictions, source=config.predictions, cohorts=aged, odd=odd_cohorts(aged, run.holdout), drift=moved,
        ablation=_ablation(run, config.rows) if config.ablation else [],
    )  # fmt: skip


class _Run:
    """A finished run of the main job whose examples are still there."""

    def __init__(self, run_dir: Path, config: RetrainConfig, summary: dict[str, Any], manifest: ExamplesManifest) -> None:
        self.run_dir, self.config, self.summary, self.manifest = run_dir, config, summary, manifest
        self.holdout: list[str] = summary["data"]["holdout"]
        present = {record.day for record in manifest.partitions}
        self.earlier = [day for day in sorted({*summary["data"]["seen"], *summary["data"]["train"]}) if day in present]
        self.known_until_ms = day_end_ms(summary["as_of"], config.data.timezone)

    @classmethod
    def open(cls, run_dir: Path) -> _Run | None:
        """Reads a run; None where it has no examples (a run of the gate alone), or other days were rebuilt since."""
        try:
            config = load(RetrainConfig, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
            summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
            run = cls(run_dir, config, summary, read_manifest(Path(config.rebuild.root)))
        except (OSError, ValueError, KeyError, RewarmError):
            return None
        return run if set(run.holdout) <= {record.day for record in run.manifest.partitions} else None

    def parts(self, day: str) -> list[tuple[pa.Table, pa.Table]]:
        """Examples and tails of a day, by user bucket."""
        root = Path(self.config.rebuild.root)
        buckets = range(self.manifest.user_buckets)
        return [(read_partition(root, self.manifest, day, b), read_tail(root, self.manifest, day, b)) for b in buckets]

    def examples(self, day: str) -> pa.Table:
        """All examples of a day."""
        root = Path(self.config.rebuild.root)
        tables = [read_partition(root, self.manifest, day, bucket) for bucket in range(self.manifest.user_buckets)]
        return pa.concat_tables(tables, promote_options="default")


def _ablation(run: _Run, rows: int) -> list[dict[str, Any]]:
    """Scores the first partitions of the judged days without each feature that a model reads."""
    from trainer.checkpoint import read_bundle
    from trainer.evaluate import RankerScorer

    live = run.summary["versions"].get("production")
    registry = Path(run.config.registry.root) / run.config.registry.product / "versions"
    bundles = {"production": registry / live / "bundle"} if live else {}
    scorers = {name: RankerScorer(read_bundle(path)) for name, path in (bundles | {"challenger": run.run_dir / "challenger"}).items()}
    parts: list[tuple[pa.Table, pa.Table]] = []
    for day in run.holdout:
        for part in run.parts(day):
            if sum(len(examples) for examples, _ in parts) < rows and len(part[0]):
                parts.append(part)
    table = pa.concat_tables([examples for examples, _ in parts], promote_options="default")
    read = {name for scorer in scorers.values() for name in _features(scorer.bundle.manifest.inputs)}
    features = whole_names(name for name in sorted(read) if FEATURE + name in table.column_names)
    actions = {name: run.config.data.actions[name].kind for name in run.config.data.gated_actions}
    models = {name: _scores(scorer, parts, run.known_until_ms) for name, scorer in scorers.items()}
    return ablate(table, models, actions, features)


def _features(inputs: Any) -> list[str]:
    return [entry.name for entry in inputs.numeric] + list(inputs.categorical) + list(inputs.item_features)


def _scores(scorer: Any, parts: list[tuple[pa.Table, pa.Table]], known_until_ms: int) -> Callable[[pa.Table], dict[str, Any]]:
    """Returns a function that scores the concatenated partitions, each with its own tail."""
    import numpy as np

    def score(table: pa.Table) -> dict[str, Any]:
        found, start = [], 0
        for examples, tail in parts:
            found.append(scorer.score(table.slice(start, len(examples)), tail, known_until_ms).score_N)
            start += len(examples)
        return {name: np.concatenate([scores[name] for scores in found]) for name in found[0]}

    return score
