"""Starts a next-item ranker from production: the catalogue grows, the weights are carried over and verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker
from trainer.checkpoint import Bundle, build_ranker
from trainer.config import WarmStartConfig
from trainer.data import take
from trainer.data.inputs import merge_vocabulary
from trainer.errors import CheckpointError
from trainer.fit.begin import rules_of
from trainer.next_item.sequences import Sequences
from trainer.next_item.units import VALIDATION, questions
from trainer.schema.bundle import OPTIMIZER, TRUNK
from trainer.schema.plain import as_plain
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary
from trainer.warm_start import Side, carry_moments, plan, verify
from trainer.warm_start.stream import load

PROBE_USERS = 256
_UNDATED = "0001-01-01"  # sequences have no clock


@dataclass(frozen=True)
class Start:
    """Where training begins: carried moments, and what is to be said about the transfer (None for a cold run)."""

    moments: dict[str, dict[str, Tensor]]
    report: dict[str, Any] | None


def vocabulary_of(sequences: Sequences) -> Vocabulary:
    """Returns the catalogue as a vocabulary: its ids in order, and how often each occurs among the training events."""
    trains_E = np.arange(sequences.events) < np.repeat(sequences.training_end_U, np.diff(sequences.offsets_U1))
    count_V = np.bincount(sequences.item_E[trains_E], minlength=sequences.items)
    days = pa.array([_UNDATED] * sequences.items, pa.string())
    return Vocabulary("item", sequences.item_ids, count_V, days, days)


def with_catalogue(sequences: Sequences, production: Bundle) -> Sequences:
    """Adds production's items to the catalogue: a log in which an item does not occur does not retire it."""
    known = production.item_ids
    merged = merge_vocabulary(known, vocabulary_of(sequences))
    place_V = np.asarray(pc.index_in(sequences.item_ids, value_set=merged.keys), np.int64)
    return replace(sequences, item_ids=merged.keys, item_E=place_V[sequences.item_E])


def begin(config: WarmStartConfig, ranker: Ranker, sequences: Sequences, production: Bundle, max_history: int, seed: int) -> Start:
    """Gives a freshly initialised ranker production's weights, carried over and verified.

    Args:
        config: How.
        ranker: The challenger.
        sequences: Events, with production's items in the catalogue.
        production: Parent.
        max_history: L.
        seed: Seed of noise on new rows.

    Raises:
        CheckpointError: If production is no next-item ranker, the plan is refused, or its scores are not reproduced.
    """
    if production.shape.actions:
        raise CheckpointError(
            "production predicts actions: it is no next-item ranker", where=production.path, got=production.shape.outputs,
            remedy="start scripts/retrain.py, or give the registry of a next-item product",
        )  # fmt: skip
    parent, vocabulary = build_ranker(production, TRUNK), vocabulary_of(sequences)
    with production.reader(TRUNK) as stored:
        source = Side.of(parent, production.vocabularies, production.sha256, stored=stored.tensors)
        target = Side.of(ranker, {ranker.shape.item_vocabulary: vocabulary})
        transfer = plan(source, target, rules_of(config))
        load(transfer, source, target, stored, ranker.state_dict(), seed=seed)
    new = _probe(sequences, max_history)
    parity = verify(parent, ranker.eval(), [(_in_rows_of(production, vocabulary, new), new)], transfer.exact)
    ranker.train()
    del parent  # a copy of every table, while moments are carried
    moments = {}
    if config.optimizer == "carry":
        with production.reader(OPTIMIZER) as stored:
            moments = carry_moments(transfer, source, target, stored, new_rows=config.new_rows)
    parts = {"parity": as_plain(parity), "fates": as_plain(transfer.fates)}
    return Start(moments, {"exact": transfer.exact, "source": production.sha256, **parts})


def _probe(sequences: Sequences, max_history: int) -> Batch:
    asked = questions(sequences, VALIDATION, max_history)
    return take(asked, np.arange(min(asked.units, PROBE_USERS)))


def _in_rows_of(production: Bundle, vocabulary: Vocabulary, batch: Batch) -> Batch:
    """The same batch in production's rows; ids that it does not know are its OOV row."""
    known = production.item_ids
    old_row = torch.from_numpy(np.concatenate([np.arange(RESERVED_ROWS), known.lookup(vocabulary.keys)]))
    return replace(batch, token_item_T=old_row[batch.token_item_T], target_item_N=old_row[batch.target_item_N])
