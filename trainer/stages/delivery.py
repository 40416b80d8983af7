"""The stage that judges the scores, and settles on which scale they are delivered.

One rule holds wherever a score leaves the ranker: `score_<action>` is the *delivered* score, behind the curves (`repair.json`) of the
release that delivers it. Thresholds were tuned on delivered scores and the live final model was trained on them. So pair files, the
history of past days (each day behind the curves of the release that scores it), training, replay and joint judgement of the final model,
and `scripts/score.py` all hold these; `repair` in a manifest names the curves. No curve changes `dot` or a vector.

Hence curves have to be known before anything is exported. They can be: what a curve mends shows in scores and labels alone. So scores are
judged first, repaired if that mends them, and judged again; whatever comes after is made, and judged, as it would go out, and `gate` puts
all findings together. The other order, export before repair, replays the live final model on a scale that it will never see, and a
replay that fails for its scale alone forbids the very map that mends it. Two columns a score, before and behind the curve, would not help:
a final model can consume one of them only, and it is the delivered one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainer.checkpoint import Bundle
from trainer.job import Job
from trainer.schema.embeddings import PAIR_DOT, PAIR_KEYS, PAIR_SCORE
from trainer.schema.predictions import CHALLENGER, PRODUCTION, VALUE_PRODUCTION
from trainer.schema.record import Recorded, read_record
from trainer.schema.repair import Repair
from trainer.schema.suite import SUITES, SuiteCase
from trainer.schema.verdict import Verdict
from trainer.stages.judging import slice_columns_of

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.suites import Model


@dataclass(frozen=True)
class Delivered:
    """The challenger's scores as its release would deliver them.

    Attributes:
        verdict: What they amount to, on their own.
        repair: The curves behind which they are delivered; None if they are delivered as the ranker gives them.
        pair: Holdout rows in the order of the predictions: user, item, time, dot, score_<action> (float32).
    """

    verdict: Verdict
    repair: Repair | None
    pair: pa.Table

    @property
    def identity(self) -> str | None:
        """Hash of the curves."""
        return self.repair.sha256 if self.repair is not None else None


def judge(job: Job, trained: Trained, evaluation: Evaluation) -> Delivered:
    """Judges the challenger's scores, and repairs them if the policy asks for that and it makes them pass."""
    from trainer.fit.train import value_weights
    from trainer.gate import judge_and_repair

    def produce() -> Delivered:
        policy, live = job.config.gate, job.registry.production_path()
        if policy.actions is None:
            policy = replace(policy, actions=job.config.data.gated_actions)
        if policy.slices is None:
            policy = replace(policy, slices=slice_columns_of(job, evaluation))
        verdict, repair = judge_and_repair(
            _judged(job, evaluation.predictions),
            policy,
            job.config.rules,
            value_weights=value_weights(job.config),
            suites=_suites(job, trained.bundle),
            record=_record(job, live),
            seed=job.config.seed,
        )
        return Delivered(verdict, repair, delivered_pairs(evaluation.predictions, evaluation.dot_N, repair))

    def tell(delivered: Delivered) -> tuple[int, str]:
        verdict = delivered.verdict
        tried = f"; {verdict.repair.sentence}" if verdict.repair is not None and delivered.repair is None else ""
        return len(evaluation.predictions), f"scores alone: {verdict.verdict}: {verdict.reason}{tried}"

    return job.run.stage("judge", None, produce, None, tell)


def delivered_pairs(predictions: pa.Table, dot_N: np.ndarray, repair: Repair | None) -> pa.Table:
    """Returns the challenger's pair scalars of the judged rows, its scores behind the curves of a repair.

    Args:
        predictions: user, item, time, challenger_<action> as the ranker gives them.
        dot_N: float32 [N], products of its vectors.
        repair: The curves, if there are any.
    """
    names = [name.removeprefix(CHALLENGER) for name in predictions.column_names if name.startswith(CHALLENGER)]
    scores: Mapping[str, np.ndarray] = {name: predictions[CHALLENGER + name].to_numpy() for name in names}
    if repair is not None:
        scores = repair.scores(scores)
    columns = {name: predictions[name] for name in PAIR_KEYS} | {PAIR_DOT: pa.array(dot_N, pa.float32())}
    return pa.table(columns | {PAIR_SCORE + name: pa.array(score_N.astype(np.float32)) for name, score_N in scores.items()})


def suite_models(challenger: Bundle, production: Bundle | None) -> dict[str, Model]:
    """Returns the models that golden rows are scored with, by the prefix of their scores."""
    from trainer.evaluate import RankerScorer
    from trainer.suites import Model

    def model(bundle: Bundle) -> Model:
        scorer = RankerScorer(bundle)
        return Model(lambda examples, tail, until_ms: scorer.score(examples, tail, until_ms).score_N, bundle.manifest.trained)

    bundles = {CHALLENGER: challenger, PRODUCTION: production}
    return {prefix: model(bundle) for prefix, bundle in bundles.items() if bundle is not None}


def _suites(job: Job, challenger: Bundle) -> list[SuiteCase]:
    from trainer.fit.train import value_weights
    from trainer.suites import SuiteStore, collect

    return collect(SuiteStore(job.registry.folder / SUITES), lambda: suite_models(challenger, job.production), value_weights(job.config))


def _record(job: Job, live: Path | None) -> dict[str, Recorded] | None:
    """Production's recorded calibration: the file that the policy names, else what was sealed with the live release."""
    if job.config.gate.production_record is not None:
        return read_record(Path(job.config.gate.production_record))
    return read_record(live) if live is not None and (live / "eval.json").is_file() else None


def _judged(job: Job, predictions: pa.Table) -> pa.Table:
    """Returns what is to be judged.

    ``gate.first=promote`` into an empty registry is the decision to take over from an incumbent that is not a rewarm bundle: the
    challenger then has to be sound by the labels, and its distance to the incumbent's logged scores is reported, not judged.
    """
    if job.live is not None or job.config.gate.first != "promote":
        return predictions
    return predictions.drop_columns([name for name in predictions.column_names if name.startswith(PRODUCTION) or name == VALUE_PRODUCTION])
