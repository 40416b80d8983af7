"""The train stage: examples, and production or none, to a challenger bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning.pytorch.callbacks import Callback

import models
from models.ranker import ActionShape, Ranker, RankerShape
from trainer import __version__
from trainer.checkpoint import Bundle, read_bundle, write_bundle
from trainer.config import ModelConfig, RetrainConfig
from trainer.data import Encoder, ShardStore, plan_batches
from trainer.data.inputs import freeze_inputs, hashed_vocabulary, item_table, merge_vocabulary
from trainer.data.shards import ShardKey
from trainer.days import DayPlan
from trainer.errors import CheckpointError, ConfigError, DataError, nearest
from trainer.fit.account import Account, reconcile
from trainer.fit.begin import Probe, begin, merged, renamed_inputs, renamed_vocabularies
from trainer.fit.cost import Spent
from trainer.fit.distil import Scorer, Teacher, distilled_only
from trainer.fit.run import FitResult, fit
from trainer.fit.steps import StepLog
from trainer.schema.bundle import TRANSFER, BundleManifest
from trainer.schema.examples import ExamplesManifest, read_partition, read_tail, vocabulary_path
from trainer.schema.files import write_text
from trainer.schema.hashed import AnyVocabulary, HashedVocabulary, crowding
from trainer.schema.hashing import sha256_json
from trainer.schema.inputs import InputSpec
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.time import add_days, day_end_ms
from trainer.schema.vocabulary import Vocabulary

UNGATED_WEIGHT = 0.2  # an action that the gate does not judge helps the trunk, but must not lead it


@dataclass(frozen=True)
class TrainLog:
    """What training cost and how it went.

    Attributes:
        steps: Optimizer steps.
        skipped: Steps skipped as non-finite.
        seconds: Wall time of the loop.
        device: Where it ran.
        targets: Targets trained, each exactly once a pass.
        tokens: History tokens in one pass.
        passes: Passes over the new targets.
        parameters: Elements of the ranker.
        last_loss: Mean loss of the last tenth of the steps on new targets; replayed ones say nothing about progress.
        annealed: Steps that the annealed copy made beside them.
        account: What became of every planned row, by day.
        spent: Operations, positions and seconds of the loop.
        hashed: Hashed vocabulary -> how the new days' ids fill its buckets (`trainer.schema.hashed.crowding`).
    """

    steps: int
    skipped: int
    seconds: float
    device: str
    targets: int
    tokens: int
    passes: int
    parameters: int
    last_loss: float
    annealed: int = 0
    account: Account = field(default_factory=Account)
    spent: Spent = field(default_factory=Spent)
    hashed: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What the train stage hands over.

    Attributes:
        bundle: The challenger.
        transfer: Transfer report of a warm start: the plan, rows by vocabulary, measured parity; None for a cold run.
        log: What it cost.
    """

    bundle: Bundle
    transfer: dict[str, Any] | None
    log: TrainLog


def read_trained(out: Path) -> Trained:
    """Reads what an earlier attempt trained."""
    bundle = read_bundle(out)
    transfer = json.loads((out / TRANSFER).read_text()) if TRANSFER in bundle.manifest.files else None
    return Trained(bundle, transfer, from_plain(TrainLog, json.loads(_log_file(out).read_text())))


def _log_file(out: Path) -> Path:
    return out.parent / f"{out.name}-fit" / "train.json"


def train(
    config: RetrainConfig,
    root: Path,
    manifest: ExamplesManifest,
    days: DayPlan,
    production: Bundle | None,
    out: Path,
    *,
    model: ModelConfig | None = None,
    logger: Any = None,
    watch: Callable[[Encoder], list[Callback]] | None = None,
    teacher: Scorer | None = None,
) -> Trained:
    """Trains a challenger.

    Args:
        config: The run.
        root: Folder of the examples.
        manifest: What rebuild wrote there.
        days: Which days are new.
        production: Parent, or None for a cold run.
        out: Folder of the bundle; scratch files lie beside it.
        model: Shape to train instead of ``config.model`` (production continued).
        logger: Lightning logger.
        watch: Builds observers of the training loop from the run's encoder (a backtest's meter).
        teacher: The live bundle as a scorer, for ``distill=production``.

    Returns:
        The verified bundle and what is to be said about it.

    Raises:
        CheckpointError: If the warm start is refused or not exact where it must be.
        TrainingError: If training diverges, or the rows trained and skipped are not the rows planned (`reconcile`).
        DataError: If there is nothing to train on.
    """
    if model is not None:
        config = replace(config, warm_start=config.warm_start.of_same_shape())
    model = model or config.model
    inputs, vocabularies = freeze(config, root, manifest, days, production, model)
    encoder = Encoder(inputs, vocabularies)
    known_until = day_end_ms(days.as_of, config.data.timezone)
    replay_days = days.seen if production and config.warm_start.replay_share > 0 else []
    source = Teacher(config.distill, config.data, inputs, teacher) if config.distill.source != "none" else None
    store, keys = ShardStore(out.parent / f"{out.name}-shards"), shard_keys(manifest, [*days.train, *replay_days])
    taught = encode_shards(store, root, manifest, keys, encoder, known_until, source)
    torch.manual_seed(config.seed)
    ranker = models.build(shape_of(model, inputs, vocabularies, production))
    items = items_of(root, manifest, days, inputs, vocabularies, production)
    start = begin(config, ranker, encoder, production, probe(root, manifest, days, known_until), items)
    start = replace(start, report=with_teacher(start.report, taught, ranker))
    passes = config.fit.warm_passes if production else config.fit.passes
    batches = plan_batches(
        shard_keys(manifest, days.train),
        store.lengths,
        batch_targets=config.fit.batch_targets,
        batch_tokens=config.fit.batch_tokens,
        passes=passes,
        seed=config.seed,
        ranks=config.fit.devices if config.fit.device == "ddp" else 1,
        replay=shard_keys(manifest, replay_days),
        replay_share=config.warm_start.replay_share if replay_days else 0.0,
        replay_beside=config.warm_start.replay_tables == "train",
        in_order=config.fit.day_weights,
    )
    result = fit(
        start.ranker,
        store,
        batches,
        action_weights=action_weights(config, inputs),
        optimizer=config.optimizer,
        schedule=config.schedule,
        config=config.fit,
        seed=config.seed,
        warm=production is not None,
        folder=out.parent / f"{out.name}-fit",
        moments=start.moments,
        fresh=start.fresh,
        distill=config.distill,
        replay=config.warm_start,
        logger=logger,
        callbacks=watch(encoder) if watch else (),
        peak_flops=config.cost.peak_flops,
    )
    rows = {day: sum(record.rows for record in manifest.partitions if record.day == day) for day in days.train}
    account = reconcile(batches, store.lengths, result.log, rows, passes)
    lengths = [store.lengths(key) for key in shard_keys(manifest, days.train)]
    log = TrainLog(
        steps=result.steps,
        annealed=result.annealed,
        skipped=result.skipped,
        seconds=result.seconds,
        device=result.device,
        targets=sum(int(targets.sum()) for _, targets in lengths),
        tokens=sum(int(tokens.sum()) for tokens, _ in lengths),
        passes=passes,
        parameters=sum(parameter.numel() for parameter in start.ranker.parameters()),
        last_loss=last_loss(result.log),
        account=account,
        spent=result.spent,
        hashed=crowded(root, vocabularies),
    )
    bundle = write_bundle(
        out,
        replace(
            describe(config, model, inputs, manifest, days, production, start.ranker, result),
            watermark_ms=watermark(root, manifest, days, production),
        ),
        trunk=result.trunk,
        serving=merged(start, result.serving, config.warm_start, production),
        days={day: merged(start, weights, config.warm_start, production) for day, weights in result.days.items()},
        optimizer=result.optimizer,
        vocabularies=vocabularies,
        transfer=start.report,
        items=items,
    )
    write_text(_log_file(out), json.dumps(as_plain(log)))
    if start.report is not None:
        write_text(out.parent / TRANSFER, json.dumps(start.report, indent=1))
    return Trained(bundle, start.report, log)


def encode_shards(
    store: ShardStore, root: Path, manifest: ExamplesManifest, keys: list[ShardKey], encoder: Encoder, known_until: int,
    teacher: Teacher | None,
) -> dict[str, Any] | None:  # fmt: skip
    """Encodes the partitions that an earlier attempt has not, with the teacher's scores beside them.

    Returns:
        What is to be said about the teacher; None without one.
    """
    for key in keys:
        if store.exists(key):
            continue
        rows = partition(root, manifest, key)
        shard = encoder.encode(*rows, known_until)
        if teacher is not None:
            shard = replace(shard, teacher_NA=teacher.scores(*rows, known_until)[shard.row_N])
        store.write(key, shard)
    return teacher.report(store, keys) if teacher is not None else None


def watermark(root: Path, manifest: ExamplesManifest, days: DayPlan, production: Bundle | None) -> int:
    """Returns the latest event time (ms) among the new targets and those of all ancestors."""
    times = [read_partition(root, manifest, key.day, key.bucket, ["event_time"]) for key in shard_keys(manifest, days.train)]
    latest = max((pc.max(table["event_time"]).as_py() for table in times), default=0)
    return max(latest, production.manifest.watermark_ms if production else 0)


def with_teacher(report: dict[str, Any] | None, taught: dict[str, Any] | None, ranker: Ranker) -> dict[str, Any] | None:
    """Adds what a teacher did to the transfer report; a cold challenger gets one that says only that."""
    if taught is None:
        return report
    if report is not None:
        return {**report, "distilled": taught}
    return distilled_only(taught, {name: list(tensor.shape) for name, tensor in ranker.state_dict().items()})


def last_loss(log: list[StepLog]) -> float:
    """Returns the mean loss of the last tenth of the steps on new targets, as it was before each step."""
    losses = [entry.loss for entry in log if entry.new]
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def plan_only(config: RetrainConfig, root: Path, manifest: ExamplesManifest, days: DayPlan, production: Bundle | None) -> dict[str, Any]:
    """Returns the transfer report of a warm start without training: what ``warm_start.dry_run=true`` prints.

    Raises:
        CheckpointError: If there is no production to start from, or the plan is refused.
    """
    if production is None:
        raise CheckpointError(
            "nothing to plan: there is no production to start from", remedy="promote a first release, or drop warm_start.dry_run"
        )
    inputs, vocabularies = freeze(config, root, manifest, days, production, config.model)
    torch.manual_seed(config.seed)
    ranker = models.build(shape_of(config.model, inputs, vocabularies, production))
    known_until = day_end_ms(days.as_of, config.data.timezone)
    items = items_of(root, manifest, days, inputs, vocabularies, production)
    start = begin(config, ranker, Encoder(inputs, vocabularies), production, probe(root, manifest, days, known_until), items)
    return start.report or {}


def freeze(
    config: RetrainConfig, root: Path, manifest: ExamplesManifest, days: DayPlan, production: Bundle | None, model: ModelConfig
) -> tuple[InputSpec, dict[str, AnyVocabulary]]:
    """Freezes the interface and the vocabularies of the challenger.

    Raises:
        ConfigError: If a vocabulary is to be hashed that the ranker does not have.
        DataError: If the training days hold no row.
    """

    def training() -> Iterator[pa.Table]:
        for key in shard_keys(manifest, days.train):
            yield partition(root, manifest, key)[0]

    tables = list(training())
    if not sum(len(table) for table in tables):
        raise DataError(
            "nothing to train on: the new days hold no row",
            got=", ".join(days.train) or "no new day",
            remedy="production has already seen every earlier day; wait for the next one",
        )
    weights = value_weights(config)
    known, rename = {*manifest.numeric, *manifest.categorical, *config.data.actions}, config.warm_start.rename
    parent = renamed_inputs(production.manifest.inputs, known, rename) if production else None
    inputs = freeze_inputs(config.data, manifest, weights, tables, user_id=model.user_id, parent=parent)
    inputs = replace(inputs, max_history=model.max_history)
    retire = config.warm_start.retire_after_days
    before = add_days(days.train[-1], -retire) if retire and production else None
    former = renamed_vocabularies(production.vocabularies, inputs.vocabularies, rename) if production else {}
    for name in model.hashed:
        if name not in inputs.vocabularies and model is config.model:  # production continued may have hashed what the log has lost
            raise ConfigError(
                "the ranker has no such vocabulary", where="model.hashed", got=name, remedy=nearest(name, inputs.vocabularies)
            )
    vocabularies: dict[str, AnyVocabulary] = {}
    for name in inputs.vocabularies:
        fresh, old, hashing = Vocabulary.read(vocabulary_path(root, name)), former.get(name), model.hash_of(name)
        if hashing is not None:
            vocabularies[name] = hashed_vocabulary(old, fresh, hashing)
        else:  # the ids that production hashed are not known: those of the new days begin the list
            vocabularies[name] = merge_vocabulary(old if isinstance(old, Vocabulary) else None, fresh, before)
    return inputs, vocabularies


def describe(
    config: RetrainConfig, model: ModelConfig, inputs: InputSpec, manifest: ExamplesManifest, days: DayPlan,
    production: Bundle | None, ranker: Ranker, result: FitResult,
) -> BundleManifest:  # fmt: skip
    """Returns the bundle's manifest, without file hashes."""
    trained = {day: manifest.source_days[day] for day in days.train}
    parent = production.manifest if production else None
    space = space_of(parent, ranker.shape) or sha256_json([config.seed, as_plain(ranker.shape), trained])[:16]
    return BundleManifest(
        code_version=__version__,
        shape=as_plain(ranker.shape),
        inputs=inputs,
        features=as_plain(config.features),
        labels={name: action.expression for name, action in config.data.actions.items()},
        value={"version": config.value.version, "weights": value_weights(config)},
        config={"model": as_plain(model), "optimizer": as_plain(config.optimizer), "schedule": as_plain(config.schedule)},
        axes={name: list(axes) for name, axes in ranker.axes().items()},
        trained={**(parent.trained if parent else {}), **trained},
        parent=production.sha256 if production else None,
        space_id=space,
        steps=(parent.steps if parent else 0) + result.steps - result.skipped,
        seed=config.seed,
    )


def space_of(parent: BundleManifest | None, shape: RankerShape) -> str:
    """Returns the space that the vectors stay in: the parent's, where its architecture and their width stay; else empty."""
    same = parent is not None and (parent.shape["architecture"], parent.shape["dim"]) == (shape.architecture, shape.dim)
    return parent.space_id if parent is not None and same else ""


def crowded(root: Path, vocabularies: Mapping[str, AnyVocabulary]) -> dict[str, dict[str, float]]:
    """Tells how the ids of the new days fill the buckets of every hashed vocabulary."""
    hashed = {name: vocabulary.hash for name, vocabulary in vocabularies.items() if isinstance(vocabulary, HashedVocabulary)}
    return {name: crowding(hashing, Vocabulary.read(vocabulary_path(root, name))) for name, hashing in hashed.items()}


def shape_of(
    model: ModelConfig, inputs: InputSpec, vocabularies: Mapping[str, AnyVocabulary], production: Bundle | None = None
) -> RankerShape:
    """Returns the ranker's shape for a configuration and its frozen inputs.

    A warm start keeps production's norms: at another width RMSNorm has the same function only if eps x dim stays.
    """
    values = model.shape_values()
    if production is not None:
        old = production.shape
        values["norm_eps"] = old.norm_eps if old.norm == "layer" else old.norm_eps * old.dim / model.dim
    return RankerShape(
        architecture=model.name,
        actions=tuple(ActionShape(name=a.name, kind=a.kind, base_rate=a.base_rate) for a in inputs.actions),
        history_actions=tuple(inputs.history_actions),
        vocabularies={name: vocabulary.rows for name, vocabulary in vocabularies.items()},
        item_vocabulary=inputs.item_vocabulary,
        item_features=inputs.item_features,
        token_features=inputs.token_features,
        categorical=inputs.categorical,
        numeric=tuple(entry.name for entry in inputs.numeric),
        **values,
    )


def items_of(
    root: Path, manifest: ExamplesManifest, days: DayPlan, inputs: InputSpec, vocabularies: Mapping[str, AnyVocabulary],
    production: Bundle | None,
) -> pa.Table:  # fmt: skip
    """Lists the challenger's items with their features (`trainer.data.inputs.item_table`)."""
    tables = (partition(root, manifest, key)[0] for key in shard_keys(manifest, days.train))
    ids = vocabularies[inputs.item_vocabulary]
    assert isinstance(ids, Vocabulary)  # a configuration cannot hash the items
    return item_table(ids, inputs.item_features, tables, production.items() if production else None)


def action_weights(config: RetrainConfig, inputs: InputSpec) -> dict[str, float]:
    """Returns action -> weight of its loss."""
    return {a.name: 1.0 if config.data.actions[a.name].gated else UNGATED_WEIGHT for a in inputs.actions}


def value_weights(config: RetrainConfig) -> dict[str, float]:
    """Returns action -> weight of the value function: the configured ones, or those of the log specification."""
    if config.value.weights is not None:
        return config.value.weights
    return {name: action.weight for name, action in config.data.actions.items()}


def partition(root: Path, manifest: ExamplesManifest, key: ShardKey) -> tuple[pa.Table, pa.Table]:
    """Reads the examples and the tail of one (day, user bucket)."""
    return read_partition(root, manifest, key.day, key.bucket), read_tail(root, manifest, key.day, key.bucket)


def probe(root: Path, manifest: ExamplesManifest, days: DayPlan, known_until: int) -> list[Probe]:
    """Reads the rows on which a warm start is verified: one bucket of the newest training day."""
    keys = shard_keys(manifest, days.train[-1:])[:1]
    return [(*partition(root, manifest, key), known_until) for key in keys]


def shard_keys(manifest: ExamplesManifest, days: list[str]) -> list[ShardKey]:
    """Returns the partitions of some days that hold a row, in order."""
    wanted = set(days)
    return sorted(ShardKey(record.day, record.bucket) for record in manifest.partitions if record.day in wanted and record.rows)
