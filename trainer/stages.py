"""The stages as the pipeline calls them: what each reads, under which key it is kept, and the line it prints.

Nothing is computed here. A stage's own package does the work and knows neither the run's folder nor the configuration as a
whole; these functions hand it exactly what it needs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from trainer import __version__
from trainer.checkpoint import Bundle
from trainer.config import RetrainConfig
from trainer.days import DayPlan, plan_days
from trainer.job import Job
from trainer.logs.layout import day_folder
from trainer.rebuild import rebuild as rebuild_examples
from trainer.rebuild.leak_alarm import leak_alarm, refuse_leaks
from trainer.rebuild.plan import content_hash
from trainer.scan import check_budget, write_scan
from trainer.scan import scan as scan_days
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest, read_partition, read_tail, vocabulary_path
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_json
from trainer.schema.health import HealthMap
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.predictions import PRODUCTION, VALUE_PRODUCTION
from trainer.schema.summary import Summary
from trainer.schema.verdict import Check, Verdict
from trainer.schema.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.fit import Trained
    from trainer.schema.downstream import DownstreamReport
    from trainer.schema.embeddings import EmbeddingManifest

# Settings that change how a run looks or where it lies, but not what it computes.
_COSMETIC = ("run_dir", "registry", "tracking", "release")


def question(job: Job, health: HealthMap) -> str:
    """Returns the hash of everything the verdict depends on: as_of, configuration, and the bytes of the log.

    Production is left out on purpose: once this run's challenger is live, running it again is still the same question.
    """
    settings = {key: value for key, value in as_plain(job.config).items() if key not in _COSMETIC}
    settings["data"] = {**settings["data"], "root": None}
    settings["rebuild"] = {**settings["rebuild"], "root": None, "workers": None}
    settings["fit"] = {**settings["fit"], "progress": None}
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    return sha256_json([__version__, settings, contents])


def judged_before(job: Job, asked: str) -> bool:
    """Tells whether the same question already has a verdict in this registry."""
    return job.registry.judged(asked) is not None


def nothing_to_do(job: Job, asked: str) -> Summary:
    """Says what an earlier run decided. A summary that lies in the folder already is the better one and stays."""
    entry = job.registry.judged(asked)
    reason = f"the same day, configuration and data were judged {entry.verdict if entry else ''} before"
    print(f"nothing to do: {reason}", flush=True)
    summary = Summary(verdict=None, as_of=job.as_of, status="nothing to do", reason=reason, stages=job.run.records)
    return summary if job.run.summary() is not None else job.run.finish(summary)


def scan(job: Job) -> HealthMap:
    """Verifies every day up to as_of and decides what can be trusted."""
    file = job.run.path / "scan" / "health.json"

    def produce() -> HealthMap:
        health = scan_days(job.config.data, job.days, job.config.scan)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(as_plain(health)))
        write_scan(health, job.run.path)
        return health

    def tell(health: HealthMap) -> tuple[int, str]:
        states = [state.status for state in health.days.values()]
        return sum(
            state.rows for state in health.days.values()
        ), f"{len(states)} days, {states.count('masked')} masked, {states.count('refused')} refused"

    # A folder is scanned again when a file of it changed since: name, size or time of change.
    key = [as_plain(job.config.data), as_plain(job.config.scan), job.days, _listing(job)]
    health = job.run.stage("scan", key, produce, lambda: from_plain(HealthMap, json.loads(file.read_text())), tell)
    check_budget(health, job.config.scan)
    return health


def plan(job: Job, health: HealthMap) -> DayPlan:
    """Splits the days into holdout, training days and days production has seen."""
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    trained = job.parent.manifest.trained if job.parent else {}
    return plan_days(job.config.data, health, contents, trained, job.as_of, job.config.evaluation.holdout_days)


def rebuild(job: Job, health: HealthMap, days: DayPlan) -> ExamplesManifest:
    """Rebuilds features as they were known; keeps its own content-addressed tasks, so it is asked every time."""

    def produce() -> ExamplesManifest:
        manifest = rebuild_examples(
            job.config.data,
            job.features,
            health,
            days.usable,
            job.config.rebuild,
            max_history=job.max_history,
            as_of_ms=job.known_until_ms,
            vocabulary_days=days.train,
        )
        if job.config.rebuild.leak_alarm:
            refuse_leaks(leak_alarm(Path(job.config.rebuild.root), manifest, days.train, job.config.data, job.features))
        return manifest

    def tell(manifest: ExamplesManifest) -> tuple[int, str]:
        rows = sum(record.rows for record in manifest.partitions)
        return (
            rows,
            f"{len(manifest.numeric) + len(manifest.categorical)} features, {sum(manifest.duplicates.values()):,} duplicates removed",
        )

    return job.run.stage("rebuild", None, produce, None, tell)


def train(job: Job, examples: ExamplesManifest, days: DayPlan) -> Trained:
    """Trains the challenger."""
    return _train(job, examples, days, "challenger", job.parent, {})


def continue_production(job: Job, examples: ExamplesManifest, days: DayPlan) -> Trained | None:
    """At a launch, trains production's own shape on the same new days: the baseline that fresh data alone would give."""
    if job.production is None or job.config.gate.name != "launch":
        return None
    from trainer.config import ModelConfig

    model = from_plain(ModelConfig, job.production.manifest.config["model"])
    seen = job.production.manifest.trained
    new = [day for day in [*days.seen, *days.train] if seen.get(day) != examples.source_days[day]]
    return _train(job, examples, replace(days, train=sorted(new)), "continued", job.production, {"model": model})


def _train(job: Job, examples: ExamplesManifest, days: DayPlan, name: str, parent: Bundle | None, options: dict[str, Any]) -> Trained:
    from trainer.fit import read_trained, train
    from trainer.tracking import logger

    out = job.run.path / name
    start = partial(
        train,
        job.config,
        Path(job.config.rebuild.root),
        examples,
        days,
        parent,
        out,
        logger=logger(job.config.tracking, job.run.path),
        **options,
    )

    def tell(trained: Trained) -> tuple[int, str]:
        log, how = trained.log, "cold" if parent is None else "warm"
        return log.targets, f"{how}, {log.steps} steps, last loss {log.last_loss:.4f}, {log.seconds:.0f} s in the loop"

    key = [
        as_plain(job.config.model),
        as_plain(job.config.optimizer),
        as_plain(job.config.schedule),
        as_plain(job.config.warm_start),
        as_plain(job.config.fit),
        job.config.seed,
        parent.sha256 if parent else None,
        as_plain(examples),
        as_plain(days),
    ]
    return job.run.stage("train" if name == "challenger" else "continue", key, start, lambda: read_trained(out), tell)


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
            seed=config.seed,
        )
        write_evaluation(evaluation, job.run.path)
        return evaluation

    key = [
        trained.bundle.sha256,
        continued.bundle.sha256 if continued else None,
        job.production.sha256 if job.production else None,
        as_plain(config.evaluation),
        as_plain(config.value),
        as_plain(examples),
        as_plain(days),
    ]
    return job.run.stage(
        "evaluate", key, produce, lambda: read_evaluation(job.run.path), lambda e: (len(e.predictions), _headline(e.report, config))
    )


def export(job: Job, examples: ExamplesManifest, days: DayPlan, trained: Trained, evaluation: Evaluation) -> EmbeddingManifest | None:
    """Writes embeddings beside the run: staged, visible to nobody before the release."""
    if not job.config.export.enabled:
        return None
    from trainer.evaluate import RankerScorer, RankerVectors
    from trainer.export import export, read_manifest

    root, out = Path(job.config.rebuild.root), job.run.path / "embeddings"

    def produce() -> EmbeddingManifest:
        tails = [partial(read_tail, root, examples, examples.final_tail_day, bucket) for bucket in range(examples.user_buckets)]
        manifest = trained.bundle.manifest
        return export(
            RankerVectors(RankerScorer(trained.bundle), tails, job.known_until_ms),
            out,
            job.config.export,
            space_id=manifest.space_id,
            producer=trained.bundle.sha256,
            parent=manifest.parent,
            as_of=job.as_of,
            holdout={"user": evaluation.predictions["user"], "item": evaluation.predictions["item"]},
            pairs=evaluation.pair,
        )

    key = [trained.bundle.sha256, as_plain(job.config.export), as_plain(days)]
    return job.run.stage(
        "export",
        key,
        produce,
        lambda: read_manifest(out),
        lambda m: (
            sum(m.entities.values()),
            ", ".join(f"{count:,} {entity} rows" for entity, count in m.entities.items()) + f", dim {m.dim}",
        ),
    )


def downstream(
    job: Job, examples: ExamplesManifest, days: DayPlan, evaluation: Evaluation, embeddings: EmbeddingManifest | None
) -> DownstreamReport | None:
    """Trains the model behind the embeddings with and without them, on rows whose labels the weights have not seen."""
    if embeddings is None or not job.config.downstream.enabled:
        return None
    from trainer.downstream import assemble, lift
    from trainer.export import lookup
    from trainer.schema.downstream import DownstreamReport

    out = job.run.path / "downstream.json"
    binary = [name for name in job.config.data.gated_actions if job.config.data.actions[name].kind == "binary"]
    action = job.config.downstream.action or binary[0]

    def produce() -> DownstreamReport:
        holdout = _concatenated(job, examples, days.holdout).take(pa.array(evaluation.order_N))
        item_ND = lookup(job.run.path / "embeddings", "item", holdout["item"])
        table, features, exported = assemble(holdout, evaluation.predictions, evaluation.pair, evaluation.user_ND, item_ND, action)
        report = lift(table, action, features, exported, job.config.downstream, job.config.seed)
        write_text(out, json.dumps(as_plain(report), indent=1))
        return report

    def tell(report: DownstreamReport) -> tuple[int, str]:
        if not report.lift:
            return report.rows, f"{report.status}: {report.reason}"
        ne = report.lift["ne"]
        return report.rows, f"NE of {action} with embeddings {ne.value:+.4f} [{ne.low:+.4f}, {ne.high:+.4f}] against without"

    def keep() -> DownstreamReport:
        return from_plain(DownstreamReport, json.loads(out.read_text()))

    key = [as_plain(job.config.downstream), as_plain(embeddings), action, as_plain(days)]
    return job.run.stage("downstream", key, produce, keep, tell)


def gate(
    job: Job, trained: Trained, evaluation: Evaluation, embeddings: EmbeddingManifest | None, downstream: DownstreamReport | None
) -> Verdict:
    """Judges the challenger."""
    from trainer.fit.train import value_weights
    from trainer.gate import judge, write_verdict

    def produce() -> Verdict:
        live = job.registry.production_path()
        extra: list[Check] = []
        if embeddings is not None and live is not None and (live / "embeddings").is_dir():
            from trainer.export import compare

            extra += compare(live / "embeddings", job.run.path / "embeddings")
        policy = job.config.gate
        if policy.actions is None:
            policy = replace(policy, actions=job.config.data.gated_actions)
        if policy.slices is None:
            policy = replace(policy, slices=_slices(job, evaluation))
        verdict = judge(
            _judged(job, evaluation.predictions),
            policy,
            job.config.rules,
            value_weights=value_weights(job.config),
            extra_checks=extra,
            seed=job.config.seed,
        )
        write_verdict(verdict, job.run.path)
        return verdict

    return job.run.stage("gate", None, produce, None, lambda v: (len(evaluation.predictions), f"{v.verdict}: {v.reason}"))


def release(job: Job, asked: str, trained: Trained, verdict: Verdict) -> dict[str, Any]:
    """Seals a challenger that may go live, records the verdict, and moves the pointer if the verdict says so."""
    from trainer.release.stage import stage_release

    def produce() -> dict[str, Any]:
        return stage_release(
            job.registry,
            job.run.path,
            verdict,
            as_of=job.as_of,
            inputs_sha256=asked,
            bundle_sha256=trained.bundle.sha256,
            parent=job.live,
            expected_revision=job.revision,
            auto=job.config.release.auto,
        )

    return job.run.stage("release", None, produce, None, lambda done: (0, done["sentence"]))


def report(
    job: Job, health: HealthMap, days: DayPlan, examples: ExamplesManifest, trained: Trained, evaluation: Evaluation,
    embeddings: EmbeddingManifest | None = None, downstream: DownstreamReport | None = None, verdict: Verdict | None = None,
    release: dict[str, Any] | None = None,
) -> Summary:  # fmt: skip
    """Writes `summary.json` and `report.html`."""
    from trainer.report import render
    from trainer.summarise import summarise

    summary = summarise(
        job.config,
        as_of=job.as_of,
        stages=job.run.records,
        health=health,
        days=days,
        examples=examples,
        trained=trained,
        report=evaluation.report,
        production=job.production,
        live=job.live,
        embeddings=embeddings,
        downstream=downstream,
        verdict=verdict,
        release=release,
    )
    job.run.finish(summary)
    page = render(job.run.path)
    print(f"{'report':<11}{page}", flush=True)
    return summary


def dry_run(job: Job, examples: ExamplesManifest, days: DayPlan) -> Summary:
    """Prints the transfer plan and stops before the first step."""
    from trainer.fit.train import plan_only
    from trainer.warm_start.show import show

    transfer = plan_only(job.config, Path(job.config.rebuild.root), examples, days, job.parent)
    show(transfer)
    (job.run.path / "transfer.json").write_text(json.dumps(transfer, indent=1))
    return job.run.finish(Summary(verdict=None, as_of=job.as_of, status="dry run", transfer=transfer, stages=job.run.records))


def _listing(job: Job) -> list[list[Any]]:
    root = Path(job.config.data.root)
    files = [root / name for day in job.days for name in day_folder(job.config.data, day).files]
    return [[str(file), (state := file.stat()).st_size, state.st_mtime_ns] for file in files]


def _partition(root: Path, examples: ExamplesManifest, day: str, bucket: int) -> tuple[pa.Table, pa.Table]:
    return read_partition(root, examples, day, bucket), read_tail(root, examples, day, bucket)


def _known_ids(root: Path, job: Job, challenger: Bundle) -> dict[str, pa.Array]:
    """Ids that some training day of the challenger (or of its ancestors) had: the others are new items and new users."""
    items = challenger.vocabularies[challenger.manifest.inputs.item_vocabulary].keys
    users = Vocabulary.read(vocabulary_path(root, "user")).keys
    return {"item": items, "user": users}


def _concatenated(job: Job, examples: ExamplesManifest, days: list[str]) -> pa.Table:
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
    train, holdout = _concatenated(job, examples, sorted([*days.seen, *days.train])), _concatenated(job, examples, days.holdout)
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


def _slices(job: Job, evaluation: Evaluation) -> list[str]:
    from trainer.evaluate.run import slice_columns

    return slice_columns(evaluation.predictions, job.config.evaluation)


def _headline(report: dict[str, Any], config: RetrainConfig) -> str:
    action = config.data.gated_actions[0]
    parts = []
    for model in ("challenger", "production", "counting"):
        entry = report.get(model, {}).get(action)
        if entry and entry.get("ne") is not None:
            parts.append(f"{model} {entry['ne']:.4f}")
    return f"NE of {action}: " + ", ".join(parts)
