"""Where training begins: a ranker with its own fresh weights, or with production's, carried over, verified and reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.checkpoint import Bundle, build_ranker
from trainer.config import RetrainConfig, WarmStartConfig
from trainer.data import Encoder, take
from trainer.errors import CheckpointError
from trainer.schema.bundle import OPTIMIZER, TRUNK
from trainer.schema.examples import FEATURE
from trainer.schema.hashed import AnyVocabulary, HashedVocabulary
from trainer.schema.inputs import InputSpec
from trainer.schema.plain import as_plain
from trainer.schema.transfer import AxisMove, Rules, TransferPlan, plan_sha256
from trainer.schema.vocabulary import RESERVED_ROWS
from trainer.warm_start import Parity, Side, carry_moments, merge, plan, verify
from trainer.warm_start.apply import new_entries
from trainer.warm_start.measure import measure_new_items, measure_removed
from trainer.warm_start.names import Renames
from trainer.warm_start.plan import refused
from trainer.warm_start.show import show
from trainer.warm_start.stream import load

PROBE_UNITS = 64
Probe = tuple[pa.Table, pa.Table, int]  # examples, tail, knowledge cut-off


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
        ranker: With its starting weights.
        moments: Carried optimizer state; empty where it starts afresh.
        report: Transfer report of a warm start.
        fresh: Parameter outside the tables -> bool, the entries that production did not have.
        origin: What a merge after training needs: plan, both sides and the starting weights; None unless one is asked for.
    """

    ranker: Ranker
    moments: dict[str, dict[str, Tensor]]
    report: dict[str, Any] | None
    fresh: dict[str, Tensor] = field(default_factory=dict)
    origin: tuple[TransferPlan, Side, Side, dict[str, Tensor]] | None = None


def begin(
    config: RetrainConfig, ranker: Ranker, encoder: Encoder, production: Bundle | None, probes: list[Probe], items: pa.Table
) -> Start:
    """Gives a freshly initialised ranker its starting weights.

    Args:
        config: The run.
        ranker: The challenger.
        encoder: Its encoder.
        production: Parent, or None for a cold run.
        probes: Rows on which the warm start is verified.
        items: Features of the challenger's items, in vocabulary order.

    Raises:
        CheckpointError: If the plan is refused, or production's outputs are not reproduced where they must be.
        ConfigError: If a rule of `warm_start` does not fit the two models.
    """
    if production is None:
        return Start(ranker, {}, None)
    settings, architecture = config.warm_start, production.manifest.shape["architecture"]
    if architecture != ranker.shape.architecture and not settings.approximate:
        raise CheckpointError(
            "production has another architecture: its trunk cannot be carried over exactly",
            where="model.name",
            got=ranker.shape.architecture,
            expected=architecture,
            remedy="warm_start=none distill=production learns from its scores; warm_start.approximate=true keeps tables and context",
        )
    parent = build_ranker(production, TRUNK).eval()
    with production.reader(TRUNK) as stored:
        source = Side.of(parent, production.vocabularies, production.sha256, stored=stored.tensors, items=production.items())
        target = Side.of(ranker, encoder.vocabularies, items=items)
        transfer = plan(source, target, rules_of(settings))
        _show_refused(transfer, settings, source, target)
        load(transfer, source, target, stored, ranker.state_dict(), seed=config.seed)
    old_encoder = Encoder(renamed_inputs(production.manifest.inputs, _names(encoder.inputs), settings.rename), production.vocabularies)
    pairs, absent = _probe_batches(old_encoder, encoder, probes)
    renames = Renames(settings.rename)
    parity = verify(
        parent, ranker.eval(), pairs, transfer.exact, {name: renames(name, ranker.shape.outputs) for name in parent.shape.outputs}
    )
    measured = {
        "removed": measure_removed(parent, [old for old, _ in pairs], source, target, transfer, absent),
        "new_items": measure_new_items(ranker, [new for _, new in pairs], source, target, *map(torch.from_numpy, encoder.item_rows(items))),
    }
    ranker.train()
    del parent  # a copy of every table, while moments are carried
    moments = {}
    if settings.optimizer == "carry":
        with production.reader(OPTIMIZER) as stored:
            moments = carry_moments(transfer, source, target, stored, new_rows=settings.new_rows)
    report = transfer_report(transfer, parity, source, target) | measured
    kept = {name: tensor.clone() for name, tensor in ranker.state_dict().items()} if settings.merge_alpha < 1 else {}
    fresh = new_entries(transfer, source, target)
    return Start(ranker, moments, report, fresh, (transfer, source, target, kept) if kept else None)


def _show_refused(transfer: TransferPlan, settings: WarmStartConfig, source: Side, target: Side) -> None:
    """Raises if the plan is refused; a dry run shows it first."""
    try:
        refused(transfer)
    except CheckpointError:
        if settings.dry_run:
            show(transfer_report(transfer, None, source, target))
        raise


def merged(start: Start, serving: dict[str, Tensor], config: WarmStartConfig, parent: Bundle | None) -> dict[str, Tensor]:
    """Averages what is to be served with where the run began (`warm_start.merge_alpha`)."""
    if start.origin is None or parent is None:
        return serving
    transfer, source, target, began = start.origin
    return merge(began, serving, config.merge_alpha, transfer, source, target, parent.sha256)


def rules_of(config: WarmStartConfig) -> Rules:
    """Returns a configuration's rules of transfer."""
    return Rules(
        new_ids=config.new_ids,
        new_ids_by=config.new_ids_by,
        noise=config.new_id_noise,
        rename=config.rename,
        insert=config.insert,
        insert_at=config.insert_at,
        approximate=config.approximate,
        shrink=config.shrink,
        perturb=config.perturb,
        coverage=config.coverage,
    )


def transfer_report(transfer: TransferPlan, parity: Parity | None, source: Side, target: Side) -> dict[str, Any]:
    """Returns the report of a warm start: totals, rows by vocabulary, measured parity, and every tensor's fate."""
    vocabularies, had = {}, renamed_vocabularies(source.vocabularies, target.vocabularies, transfer.rules.rename)
    for name in target.vocabularies:
        move = next((m for fate in transfer.fates for m in fate.moves if m.axis == f"vocab:{name}"), None)
        vocabularies[name] = _rows_of(name, had.get(name), target, move)
    return {
        "exact": transfer.exact, "inexact": transfer.inexact, "source": transfer.source, "sha256": plan_sha256(transfer),
        "elements": transfer.elements, "source_elements": transfer.source_elements, "coverage": transfer.coverage,
        "rules": as_plain(transfer.rules), "vocabularies": vocabularies, "parity": as_plain(parity), "fates": as_plain(transfer.fates),
    }  # fmt: skip


def _rows_of(name: str, old: AnyVocabulary | None, target: Side, move: AxisMove | None) -> dict[str, Any]:
    """Counts what becomes of a vocabulary's ids; of buckets, where production or the challenger hashes them."""
    new = target.vocabularies[name]
    size, hashing = new.rows - RESERVED_ROWS, {"hash": as_plain(new.hash)} if isinstance(new, HashedVocabulary) else {}
    if move is not None:
        copied = move.fill == "bucket"
        kept, fresh = (size, 0) if copied else (move.kept - RESERVED_ROWS, move.new)
        return {"kept": kept, "new": fresh, "dropped": move.dropped, "traffic_kept": move.coverage, **hashing}
    if old is None:
        return {"kept": 0, "new": size, "dropped": 0, "traffic_kept": 1.0, **hashing}
    if target.match(old, name).stranger:
        return {"kept": 0, "new": size, "dropped": len(old.count_V), "traffic_kept": 0.0, **hashing}
    return {"kept": size, "new": 0, "dropped": 0, "traffic_kept": 1.0, **hashing}


def renamed_inputs(inputs: InputSpec, known: Collection[str], rules: Mapping[str, str]) -> InputSpec:
    """Returns production's inputs under the challenger's names of features and actions: renamed columns keep their meaning.

    Args:
        inputs: Production's inputs.
        known: Names that the challenger has.
        rules: Rename rules.
    """
    if not rules:
        return inputs
    renames = Renames(rules)

    def keys(values: Mapping[str, str]) -> dict[str, str]:
        return {renames(name, known): vocabulary for name, vocabulary in values.items()}

    return replace(
        inputs,
        actions=[replace(action, name=renames(action.name, known)) for action in inputs.actions],
        history_actions=[renames(name, known) for name in inputs.history_actions],
        numeric=[replace(entry, name=renames(entry.name, known)) for entry in inputs.numeric],
        categorical=keys(inputs.categorical),
        item_features=keys(inputs.item_features),
        token_features=keys(inputs.token_features),
    )


def renamed_vocabularies(
    vocabularies: Mapping[str, AnyVocabulary], known: Collection[str], rules: Mapping[str, str]
) -> dict[str, AnyVocabulary]:
    """Returns production's vocabularies under the challenger's names."""
    renames = Renames(rules)
    return {renames(name, known): vocabulary for name, vocabulary in vocabularies.items()}


def _names(inputs: InputSpec) -> set[str]:
    features = (inputs.categorical, inputs.item_features, inputs.token_features)
    return {
        *(a.name for a in inputs.actions),
        *inputs.history_actions,
        *(n.name for n in inputs.numeric),
        *(name for f in features for name in f),
    }


def _probe_batches(old: Encoder, new: Encoder, probes: list[Probe]) -> tuple[list[tuple[Batch, Batch]], set[str]]:
    """Encodes the same rows for both sides, with histories as long as both read.

    Returns:
        (production's batch, challenger's batch) of each probe; and production's features that the rows no longer hold: it reads
        them as missing.
    """
    length = min(old.inputs.max_history, new.inputs.max_history)
    old, new = (Encoder(replace(side.inputs, max_history=length), side.vocabularies) for side in (old, new))
    pairs, absent = [], set()
    for examples, tail, known_until in probes:
        (old_examples, missing), (old_tail, _) = (_with_missing(table, old.inputs) for table in (examples, tail))
        absent |= missing
        shards = old.encode(old_examples, old_tail, known_until), new.encode(examples, tail, known_until)
        old_batch, new_batch = (take(shard, np.arange(min(PROBE_UNITS, shard.units))) for shard in shards)
        pairs.append((old_batch, new_batch))
    return pairs, absent


def _with_missing(table: pa.Table, inputs: InputSpec) -> tuple[pa.Table, set[str]]:
    """Adds null columns for features that production had and the examples no longer hold."""
    numeric = {entry.name for entry in inputs.numeric}
    context = {*numeric, *inputs.categorical} - {"user"}
    wanted = context | {*inputs.item_features, *inputs.token_features}
    if "request_time" not in table.column_names:  # a tail holds tokens only
        wanted -= context - {*inputs.item_features, *inputs.token_features}
    absent = {name for name in wanted if FEATURE + name not in table.column_names}
    for name in sorted(absent):
        kind = pa.float32() if name in numeric else pa.string()
        table = table.append_column(FEATURE + name, pa.nulls(len(table), kind))
    return table, absent
