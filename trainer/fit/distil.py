"""Distillation: a teacher's scores as a column of the shards, and what is said about it.

Teacher and challenger share nothing but the names of their actions: the teacher reads the examples with its own inputs and
vocabularies, and what passes over is one number a row and action. A teacher that is only known by its logged scores is read
from the examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.checkpoint import Bundle
from trainer.config import DistillConfig
from trainer.data import ShardStore
from trainer.data.shards import ShardKey
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.schema.examples import LOGGED
from trainer.schema.inputs import Action, InputSpec
from trainer.schema.logs import LogSpec
from trainer.schema.plain import as_plain
from trainer.schema.transfer import TensorFate

MOST_STRAY = 0.01  # share of a partition's logged scores that may be garbage


class Scored(Protocol):
    """Scores of one partition, in the order of its examples."""

    @property
    def score_N(self) -> Mapping[str, np.ndarray]:
        """Action -> float64 [N]."""
        ...


class Scorer(Protocol):
    """A live teacher (`trainer.evaluate.RankerScorer`)."""

    bundle: Bundle

    def score(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> Scored:
        """Scores every row of a partition."""
        ...


class Teacher:
    """Gives every training row a score an action, or none.

    Attributes:
        name: Who teaches: a bundle's hash, or ``logged scores``.
        actions: Actions it has a say on.
        left_out: Action of the challenger -> why it has none.

    Args:
        config: The configuration.
        spec: The log.
        inputs: The challenger's inputs.
        scorer: The live teacher, for ``distill=production``.

    Raises:
        CheckpointError: If nothing is live that could teach.
        ConfigError: If the log has no logged scores, or the teacher shares no action with the challenger.
    """

    def __init__(self, config: DistillConfig, spec: LogSpec, inputs: InputSpec, scorer: Scorer | None) -> None:
        self.config = config
        self.inputs = inputs
        self.scorer = scorer if config.source == "production" else None
        self.left_out: dict[str, str] = {}
        if config.source == "production":
            if scorer is None:
                raise CheckpointError(
                    "there is no production that could teach", where="distill.source", remedy="distill=logged, or promote a release first"
                )
            manifest = scorer.bundle.manifest
            self.name = scorer.bundle.sha256
            kinds = {action.name: action.kind for action in manifest.inputs.actions}
            for action in inputs.actions:
                if action.name not in kinds:
                    self.left_out[action.name] = "production does not predict it"
                elif kinds[action.name] != action.kind or manifest.labels.get(action.name) != spec.actions[action.name].expression:
                    self.left_out[action.name] = "production learned it with another definition"
        else:
            if not spec.logged_scores:
                raise ConfigError(
                    "the log declares no scores of production", where="data.logged_scores", remedy="map them: {action: column}"
                )
            self.name = "logged scores"
            self.left_out = {a.name: "no logged score is declared" for a in inputs.actions if a.name not in spec.logged_scores}
        self.actions = [action.name for action in inputs.actions if action.name not in self.left_out]
        if not self.actions:
            raise ConfigError(
                "the teacher shares no action with the challenger", where="distill.source",
                got="; ".join(f"{name}: {why}" for name, why in self.left_out.items()), remedy="distill=none, or name them alike",
            )  # fmt: skip

    def scores(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> np.ndarray:
        """Returns float32 [N, A] in the order of `examples` and of the challenger's actions; NaN where the teacher is silent."""
        if self.scorer is not None:
            given = self.scorer.score(examples, tail, known_until_ms).score_N
        else:
            given = {action.name: _logged(examples, action) for action in self.inputs.actions if action.name in self.actions}
        silent_N = np.full(len(examples), np.nan)
        return np.stack([given[a.name] if a.name in self.actions else silent_N for a in self.inputs.actions], 1).astype(np.float32)

    def report(self, store: ShardStore, keys: Iterable[ShardKey]) -> dict[str, Any]:
        """Says who taught what, on how many rows: the block `distilled` of `transfer.json`.

        Raises:
            DataError: If no training row has a score: the setting would have no effect.
        """
        rows, scored_A = 0, np.zeros(len(self.inputs.actions), np.int64)
        for key in keys:
            teacher_NA = store.read(key).teacher_NA
            if teacher_NA is not None:
                rows += len(teacher_NA)
                scored_A += np.isfinite(teacher_NA).sum(0)
        if not scored_A.any():
            raise DataError(
                "no training row has a score of the teacher", where=self.name, got=f"{rows:,} rows without one",
                remedy="distill=production where a bundle is live, else distill=none",
            )  # fmt: skip
        return {
            "teacher": self.name, **as_plain(self.config), "rows": rows,
            "scored": {action.name: int(count) for action, count in zip(self.inputs.actions, scored_A, strict=True)},
            "left_out": self.left_out,
        }  # fmt: skip


def distilled_only(report: dict[str, Any], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Returns the transfer report of a challenger that starts fresh and is taught: every tensor has the fate ``distilled``.

    Args:
        report: What `Teacher.report` returned.
        shapes: Tensor -> shape.
    """
    elements = sum(int(np.prod(shape)) for shape in shapes.values())
    reason = f"starts fresh; taught by {report['teacher']} through a head that is not served"
    fates = [as_plain(TensorFate(target=name, source=None, fate="distilled", shape=shape, reason=reason)) for name, shape in shapes.items()]
    return {
        "exact": False, "source": report["teacher"], "elements": {"distilled": elements}, "vocabularies": {}, "parity": None,
        "fates": fates, "distilled": report,
    }  # fmt: skip


def _logged(examples: pa.Table, action: Action) -> np.ndarray:
    """Reads logged scores, float64 [N]; NaN where there is none, or where a stray one cannot be a score of this kind.

    Raises:
        DataError: If more than a few cannot: the column then holds something else, such as logits, and would teach nonsense.
    """
    if LOGGED + action.name not in examples.column_names:
        return np.full(len(examples), np.nan)
    score_N = np.asarray(pc.fill_null(examples[LOGGED + action.name].cast(pa.float64()), np.nan), np.float64)
    known_N = np.isfinite(score_N)
    wrong_N = known_N & ((score_N < 0) | ((score_N > 1) & (action.kind == "binary")))
    if wrong_N.sum() > MOST_STRAY * known_N.sum():
        raise DataError(
            "logged scores are not what their action's kind says", where=f"data.logged_scores.{action.name}",
            got=f"{wrong_N.sum():,} of {known_N.sum():,} such as {score_N[wrong_N][0]:g}",
            expected="probabilities from 0 to 1" if action.kind == "binary" else "values from 0",
            remedy="map a column that holds what production expected of the action, not its logit, or leave the action out",
        )  # fmt: skip
    return np.where(known_N & ~wrong_N, score_N, np.nan)
