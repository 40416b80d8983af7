"""The proof of an import: inputs, and the scores that the checkpoint's own code gave them.

Two kinds of probe files:

- Parquet or JSON with columns ``history`` (list of item ids, oldest first) and ``scores`` (list of numbers: the score of every item
  of the vocabulary, in its order), for models that rank a catalogue after a history.
- NPZ with the fields of `models.batch.Batch` (rows of the imported vocabularies) and ``output_NO``, for rankers with actions.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.batch import Batch
from models.ranker import Ranker, RankerShape
from trainer.errors import CheckpointError
from trainer.schema.vocabulary import OOV_ROW, RESERVED_ROWS, Vocabulary

BOUND = 1e-5  # times the largest expected score: other kernels add in another order
FEWEST = 8  # probes; fewer prove little
_NO_CLOCK = -1


@dataclass(frozen=True)
class Probe:
    """Inputs and what they must give.

    Attributes:
        batch: The inputs; one target a history.
        expected: float32 [N, V] scores of all items, or [N, O] outputs.
        catalogue: Whether `expected` holds scores of all items.
    """

    batch: Batch
    expected: Tensor
    catalogue: bool


@dataclass(frozen=True)
class Proof:
    """What was measured.

    Attributes:
        rows: Probes.
        values: Scores compared.
        max_difference: Largest difference of any score.
        max_score: Largest magnitude of an expected score.
        bound: What the difference must stay within.
    """

    rows: int
    values: int
    max_difference: float
    max_score: float
    bound: float


def read_probe(file: Path, shape: RankerShape, items: Vocabulary) -> Probe:
    """Reads a probe file.

    Raises:
        CheckpointError: If it cannot be read, does not fit the ranker or the vocabulary, or proves nothing.
    """
    probe = _read_batch(file) if file.suffix == ".npz" else _read_histories(file, shape, items)
    if len(probe.expected) < FEWEST:
        raise CheckpointError("too few probes to prove anything", where=file, got=len(probe.expected), expected=f"at least {FEWEST}")
    if not torch.isfinite(probe.expected).all() or not probe.expected.any():
        raise CheckpointError(
            "the probe's scores are not finite, or all zero", where=file, remedy="write them again with the model in eval()"
        )
    return probe


def prove(ranker: Ranker, probe: Probe, where: Path) -> Proof:
    """Compares the imported ranker with the checkpoint's own code.

    Args:
        ranker: The imported ranker, evaluation mode.
        probe: Inputs and expected scores.
        where: The probe's file, for messages.

    Returns:
        What was measured.

    Raises:
        CheckpointError: If the difference exceeds `BOUND` times the largest expected score: the import is not the same function.
    """
    try:
        with torch.inference_mode():
            got = _scores(ranker, probe)
    except (ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError("the ranker cannot read the probe", where=where, got=str(error).splitlines()[0]) from error
    if got.shape != probe.expected.shape:
        raise CheckpointError(
            "the probe has other scores than the ranker", where=where, got=tuple(probe.expected.shape), expected=tuple(got.shape)
        )
    difference, largest = float((got - probe.expected).abs().max()), float(probe.expected.abs().max())
    proof = Proof(len(got), got.numel(), difference, largest, BOUND * largest)
    if not difference <= proof.bound:
        row, column = divmod(int((got - probe.expected).abs().nan_to_num(torch.inf).argmax()), got.shape[1])
        raise CheckpointError(
            "the imported ranker is another function than the checkpoint: nothing was written",
            where=f"{where}, probe {row}, score {column}",
            got=f"{float(got[row, column]):.7g}, a difference of {difference:.3g}",
            expected=f"{float(probe.expected[row, column]):.7g} within {proof.bound:.3g} on {proof.rows} probes",
            remedy="the model's options, the rows of the vocabulary or a name are wrong; see `model`, `rows` and `tensors` of the names",
        )
    return proof


def _scores(ranker: Ranker, probe: Probe) -> Tensor:
    if not probe.catalogue:
        return ranker(probe.batch).output_NO
    rows = torch.arange(RESERVED_ROWS, ranker.shape.vocabularies[ranker.shape.item_vocabulary])
    return ranker.user_vectors(probe.batch) @ ranker.item_vectors(rows, rows.new_zeros(len(rows), 0)).T


def _read_histories(file: Path, shape: RankerShape, items: Vocabulary) -> Probe:
    features = [*shape.item_features, *shape.token_features, *shape.categorical, *shape.numeric, *shape.history_actions]
    if features:
        raise CheckpointError(
            "histories alone are no input for this ranker", where=file, got=f"it reads {features[0]}", expected="an NPZ probe"
        )
    try:
        table = _table(file)
        history, scores = (table[name].combine_chunks() for name in ("history", "scores"))
        lengths = history.value_lengths().to_numpy(zero_copy_only=False)
        row_T = items.lookup(history.flatten())
        expected = scores.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    except (OSError, KeyError, AttributeError, ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CheckpointError(
            "cannot read a probe", where=file, got=str(error), expected="columns history (list of ids) and scores (list of numbers)"
        ) from error
    if (row_T == OOV_ROW).any():
        unknown = history.flatten()[int(np.flatnonzero(row_T == OOV_ROW)[0])]
        raise CheckpointError("a probe's history has an id that the vocabulary does not know", where=file, got=unknown)
    if (scores.value_lengths().to_numpy(zero_copy_only=False) != len(items.keys)).any():
        raise CheckpointError("a probe needs one score an item of the vocabulary", where=file, expected=f"{len(items.keys)} scores")
    return Probe(histories(lengths, row_T), torch.from_numpy(expected).view(len(lengths), -1), catalogue=True)


def _table(file: Path) -> pa.Table:
    if file.suffix == ".json":
        values = json.loads(file.read_text())
        return pa.table({name: values[name] for name in ("history", "scores")}).combine_chunks()
    return pq.read_table(file, page_checksum_verification=True)


def histories(lengths_N: np.ndarray, row_T: np.ndarray) -> Batch:
    """Returns a batch without a clock and without features: every history is a sequence with one target at its end."""
    count, tokens = len(lengths_N), len(row_T)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64))

    def none(rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(rows, 0, dtype=dtype)

    return Batch(
        offsets_S1=offsets, token_item_T=torch.from_numpy(row_T.astype(np.int64)), token_item_features_TI=none(tokens),
        token_features_TK=none(tokens), token_action_TH=none(tokens, torch.float32), token_action_known_TH=none(tokens, torch.bool),
        token_time_T=torch.full((tokens,), _NO_CLOCK), target_sequence_N=torch.arange(count), target_position_N=offsets.diff(),
        target_time_N=torch.full((count,), _NO_CLOCK), target_item_N=torch.full((count,), OOV_ROW), target_item_features_NI=none(count),
        target_token_features_NK=none(count), categorical_NC=none(count), numeric_NF=none(count, torch.float32),
        present_NF=none(count, torch.bool), label_NA=none(count, torch.float32), known_NA=none(count, torch.bool),
        weight_N=torch.ones(count), row_N=torch.arange(count),
    )  # fmt: skip


def _read_batch(file: Path) -> Probe:
    required = [f.name for f in dataclasses.fields(Batch) if f.default is dataclasses.MISSING]
    try:
        with np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in [*required, "output_NO"] if name not in arrays]
            if missing:
                raise CheckpointError("a probe lacks an array", where=file, got=missing[0], expected="the fields of a batch and output_NO")
            batch = Batch(**{name: torch.from_numpy(arrays[name]) for name in required}, lengths=None)
            expected = torch.from_numpy(arrays["output_NO"]).float()
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError("cannot read a probe", where=file, got=str(error)) from error
    return Probe(batch, expected, catalogue=False)
