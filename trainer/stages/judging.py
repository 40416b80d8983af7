"""Stages that judge: evaluate scores the holdout with every model, gate decides."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainer.checkpoint import Bundle
from trainer.config import RetrainConfig
from trainer.days import DayPlan
from trainer.job import Job
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest, read_partition, read_tail, vocabulary_path
from trainer.schema.plain import as_plain
from trainer.schema.policy import GatePolicy
from trainer.schema.predictions import CHALLENGER, PRODUCTION, VALUE_PRODUCTION, unscored
from trainer.schema.record import Recorded, read_record
from trainer.schema.suite import SUITES, SuiteCase
from trainer.schema.verdict import Check, Verdict
from trainer.schema.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest
    from trainer.suites import Model


def evaluate(job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, continued: Trained | None) -> Evaluation:
    """Scores the holdout with every model, on the same rows."""
    from trainer.evaluate import Holdout, RankerScorer, evaluate, fit_counting, read_evaluation, write_evaluation
    from trainer.fit.train import value_weights

    root, config = Path(job.config.rebuild.root), job.config

    def produce() -> Evaluation:
        earlier = [
            partial(read_partition, root, examples, day, bucket)
            for day in [*days.seen, *days.train]
            for bucket in range(examples.user_buckets)
        ]
        holdout = Holdout(
            [partial(_partition, root, examples, day, bucket) for day in days.holdout for bucket in range(examples.user_buckets)],
            job.known_until_ms,
            _known_ids(root, job, trained.bundle),
        )
        extra = _lightgbm(job, examples, days) if config.evaluation.lightgbm else None
        evaluation = evaluate(
            config.data,
            config.evaluation,
            holdout,
            RankerScorer(trained.bundle),
            production=RankerScorer(job.production) if job.production else None,
            counting=fit_counting(config.data, config.evaluation, earlier, job.known_until_ms),
            weights=value_weights(config),
            continued=RankerScorer(continued.bundle) if continued else None,
            extra=extra,
            reference=RankerScorer(job.reference) if job.reference else None,
            served_as=config.evaluation.served_as or job.live,
            seed=config.seed,
        )
        write_evaluation(evaluation, job.run.path)
        return evaluation

    key = [
        trained.bundle.sha256,
        continued.bundle.sha256 if continued else None,
        job.production.sha256 if job.production else None,
        job.live,  # the release's repair belongs to production's scores
        job.reference.sha256 if job.reference else None,
        as_plain(config.evaluation),
        as_plain(config.value),
        as_plain(examples),
        as_plain(days),
    ]
    return job.run.stage(
        "evaluate", key, produce, lambda: read_evaluation(job.run.path), lambda e: (len(e.predictions), _headline(e, config))
    )


def gate(
    job: Job,
    trained: Trained,
    evaluation: Evaluation,
    embeddings: EmbeddingManifest | None,
    downstream: DownstreamReport | None,
    serving: list[Check],
) -> Verdict:
    """Judges the challenger."""
    from trainer.evaluate import rescoring_checks
    from trainer.fit.train import value_weights
    from trainer.gate import judge_and_repair, write_verdict

    def produce() -> Verdict:
        live = job.registry.production_path()
        extra = rescoring_checks(evaluation.report.get("rescoring"), job.config.evaluation)
        if embeddings is not None and live is not None and (live / "embeddings").is_dir():
            from trainer.export import compare_exports

            extra += compare_exports(live / "embeddings", job.run.path / "embeddings")
        extra += downstream.replay if downstream is not None else []
        extra += serving
        policy = job.config.gate
        if policy.actions is None:
            policy = replace(policy, actions=job.config.data.gated_actions)
        if policy.slices is None:
            policy = replace(policy, slices=slice_columns_of(job, evaluation))
        verdict, repair = judge_and_repair(
            _judged(job, evaluation.predictions),
            policy,
            job.config.rules,
            value_weights=value_weights(job.config),
            extra_checks=extra,
            suites=_suites(job, trained.bundle),
            record=_record(policy, live),
            seed=job.config.seed,
        )
        write_verdict(verdict, job.run.path, repair)
        if embeddings is not None:
            from trainer.export import replace_pairs

            replace_pairs(job.run.path / "embeddings", evaluation.pair, repair, job.config.export.shard_rows)
        return verdict

    return job.run.stage("gate", None, produce, None, lambda v: (len(evaluation.predictions), f"{v.verdict}: {v.reason}"))


def _record(policy: GatePolicy, live: Path | None) -> dict[str, Recorded] | None:
    """Production's recorded calibration: the file that the policy names, else what was sealed with the live release."""
    if policy.production_record is not None:
        return read_record(Path(policy.production_record))
    return read_record(live) if live is not None and (live / "eval.json").is_file() else None


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


def _partition(root: Path, examples: ExamplesManifest, day: str, bucket: int) -> tuple[pa.Table, pa.Table]:
    return read_partition(root, examples, day, bucket), read_tail(root, examples, day, bucket)


def _known_ids(root: Path, job: Job, challenger: Bundle) -> dict[str, pa.Array]:
    """Ids that some training day of the challenger (or of its ancestors) had: the others are new items and new users."""
    items = challenger.vocabularies[challenger.manifest.inputs.item_vocabulary].keys
    users = Vocabulary.read(vocabulary_path(root, "user")).keys
    return {"item": items, "user": users}


def concatenated(job: Job, examples: ExamplesManifest, days: list[str]) -> pa.Table:
    """Reads all partitions of some days, in the order in which evaluate reads them."""
    root = Path(job.config.rebuild.root)
    tables = [read_partition(root, examples, day, bucket) for day in days for bucket in range(examples.user_buckets)]
    return pa.concat_tables(tables, promote_options="default")


def _lightgbm(job: Job, examples: ExamplesManifest, days: DayPlan) -> dict[str, np.ndarray]:
    """LightGBM on the same earlier days and point-in-time features: what the ranker has to beat."""
    from trainer.downstream import baseline
    from trainer.evaluate.counting import ripe_labels

    spec = job.config.data
    actions = {name: "binary" for name in spec.gated_actions if spec.actions[name].kind == "binary"}
    train, holdout = concatenated(job, examples, sorted([*days.seen, *days.train])), concatenated(job, examples, days.holdout)
    for name, label_N in ripe_labels(train, {name: spec.actions[name].maturity_ms for name in actions}, job.known_until_ms).items():
        column = train.column_names.index(LABEL + name)
        train = train.set_column(column, LABEL + name, pa.array(label_N, pa.float64(), from_pandas=True))
    features = [name for name in train.column_names if name.startswith(FEATURE)]
    return baseline(train, holdout, actions, features, job.config.downstream, job.config.seed)


def _judged(job: Job, predictions: pa.Table) -> pa.Table:
    """Returns what the gate is to judge.

    ``gate.first=promote`` into an empty registry is the decision to take over from an incumbent that is not a rewarm bundle: the
    challenger then has to be sound by the labels, and its distance to the incumbent's logged scores is reported, not judged.
    """
    if job.live is not None or job.config.gate.first != "promote":
        return predictions
    return predictions.drop_columns([name for name in predictions.column_names if name.startswith(PRODUCTION) or name == VALUE_PRODUCTION])


def slice_columns_of(job: Job, evaluation: Evaluation) -> list[str]:
    """Returns the columns of the predictions that are slices."""
    from trainer.evaluate.run import slice_columns

    return slice_columns(evaluation.predictions, job.config.evaluation)


def _headline(evaluation: Evaluation, config: RetrainConfig) -> str:
    action = config.data.gated_actions[0]
    parts = []
    for model in ("challenger", "production", "counting"):
        entry = evaluation.report.get(model, {}).get(action)
        if entry and entry.get("ne") is not None:
            parts.append(f"{model} {entry['ne']:.4f}")
    left_out = int(unscored(evaluation.predictions).sum())
    words = f"; {left_out:,} rows that production did not score left out" if left_out else ""
    return f"NE of {action}: " + ", ".join(parts) + words
