"""Scores examples with a bundle: the one place where a ranker meets an examples partition outside training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from models.batch import Batch
from models.losses import expectations
from models.ranker import Ranker
from trainer.checkpoint import Bundle, build_ranker
from trainer.data import Encoder, take
from trainer.data.encode import Shard
from trainer.data.plan import cut
from trainer.errors import CheckpointError
from trainer.schema.bundle import SERVING
from trainer.schema.release import RECORD
from trainer.schema.repair import Repair, read_repair

_TARGETS, _TOKENS = 8192, 65536


@dataclass(frozen=True)
class ScoredPartition:
    """Scores of one partition, in the order of its examples.

    Attributes:
        score_N: Action -> float64 [N]: probability (binary) or expectation (count, seconds).
        dot_N: float32 [N]: product of the user's and the item's vector.
        user_ND: float32 [N, D]: the user's vector at each row's request time.
        item_ND: float32 [N, D]: the item's vector, if asked for.
    """

    score_N: dict[str, np.ndarray]
    dot_N: np.ndarray
    user_ND: np.ndarray
    item_ND: np.ndarray | None = None


class RankerScorer:
    """A bundle that scores, as it is served: the bundle of a release is followed by the release's repair.

    Attributes:
        bundle: The verified bundle.
        repair: Curves that its scores go through: those of its release, or those that it is about to be released with.
        ranker: Its ranker in evaluation mode.
        encoder: Turns examples into its inputs.
        device: Where it runs.
    """

    def __init__(self, bundle: Bundle, weights: str = SERVING, device: str = "cpu", repair: Repair | None = None) -> None:
        """Builds the ranker.

        Args:
            bundle: The verified bundle.
            weights: Which of its weights score.
            device: Where it runs.
            repair: Curves of a bundle that is in no release yet. A release has its own, which nobody may replace: there it must be None.

        Raises:
            CheckpointError: If the bundle is one of a release and a repair is given all the same, or its own cannot be understood.
        """
        released = (bundle.path.parent / RECORD).is_file()
        if released and repair is not None:
            raise CheckpointError(
                "a released bundle is scored behind its release's own repair", where=bundle.path, got=f"repair {repair.sha256[:12]}",
                expected="none beside it", remedy="hand no repair in, or score the run's own bundle",
            )  # fmt: skip
        self.bundle = bundle
        self.repair = sealed_repair(bundle.path) if released else repair
        self.ranker: Ranker = build_ranker(bundle, weights).to(device)
        self.encoder = Encoder(bundle.manifest.inputs, bundle.vocabularies)
        self.device = device

    def score(self, examples: pa.Table, tail: pa.Table, known_until_ms: int, items: bool = False) -> ScoredPartition:
        """Scores every row of a partition.

        Args:
            examples: Rows as `trainer.schema.examples` lays them out.
            tail: History tokens from before the day.
            known_until_ms: Knowledge cut-off (only labels depend on it).
            items: Whether item vectors are returned too.

        Returns:
            One score a row and action.
        """
        shard = self.encoder.encode(examples, tail, known_until_ms)
        scores, vectors = _empty_scores(self.ranker, shard), _empty_vectors(self.ranker, shard)
        for batch in batches_of(shard):
            _score_batch(self.ranker, batch, self.device, scores, vectors)
        if self.repair is not None:
            scores = self.repair.scores(scores)
        return ScoredPartition(scores, vectors.dot_N, vectors.user_ND, vectors.item_ND if items else None)

    def vectors(self, examples: pa.Table, tail: pa.Table, known_until_ms: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 [N, D] each: the user's vector at every row's request time, and the item's; as `score`, without scores."""
        shard = self.encoder.encode(examples, tail, known_until_ms)
        vectors = _empty_vectors(self.ranker, shard)
        for batch in batches_of(shard):
            on_device = batch.to(self.device)
            with torch.inference_mode():
                users_ND = self.ranker.user_vectors(on_device)
                vectors.put(batch, users_ND, self.ranker.item_vectors(on_device.target_item_N, on_device.target_item_features_NI))
        return vectors.user_ND, vectors.item_ND


@dataclass(frozen=True)
class _Vectors:
    """Vectors in the order of a shard's examples (`ScoredPartition`)."""

    user_ND: np.ndarray
    item_ND: np.ndarray
    dot_N: np.ndarray

    def put(self, batch: Batch, user_ND: torch.Tensor, item_ND: torch.Tensor) -> None:
        """Puts those of a batch in their places."""
        row_N = batch.row_N.numpy()
        for own, found in zip((self.user_ND, self.item_ND, self.dot_N), (user_ND, item_ND, (user_ND * item_ND).sum(-1)), strict=True):
            own[row_N] = found.float().cpu().numpy()


def _empty_vectors(ranker: Ranker, shard: Shard) -> _Vectors:
    rows, width = len(shard.row_N), ranker.shape.dim
    return _Vectors(*(np.full(shape, np.nan, np.float32) for shape in ((rows, width), (rows, width), rows)))


def _empty_scores(ranker: Ranker, shard: Shard) -> dict[str, np.ndarray]:
    return {action.name: np.full(len(shard.row_N), np.nan) for action in ranker.shape.actions}


def _score_batch(
    ranker: Ranker, batch: Batch, device: torch.device | str, scores: dict[str, np.ndarray], vectors: _Vectors | None = None
) -> None:
    """Puts a batch's scores, and the vectors that they were made of, in their places: one pass through the trunk makes both."""
    with torch.inference_mode():
        found = ranker(batch.to(device))
        expected_NA = expectations(found.output_NO.float(), ranker.shape.actions).double().cpu().numpy()
        if vectors is not None:
            vectors.put(batch, found.user_ND, found.item_ND)
    for column, score_N in zip(expected_NA.T, scores.values(), strict=True):
        score_N[batch.row_N.numpy()] = column


def sealed_repair(bundle: Path) -> Repair | None:
    """Reads the repair beside a sealed bundle; a run's own folder is no release, whatever an earlier attempt left in it.

    Raises:
        CheckpointError: If it cannot be understood.
    """
    return read_repair(bundle.parent) if (bundle.parent / RECORD).is_file() else None


def expected(ranker: Ranker, shard: Shard, device: torch.device | str = "cpu") -> dict[str, np.ndarray]:
    """Scores every target of a shard with a ranker in evaluation mode.

    Returns:
        Action -> float64 [N] in the order of the shard's examples: probability (binary) or expectation (count, seconds).
    """
    scores = _empty_scores(ranker, shard)
    for batch in batches_of(shard):
        _score_batch(ranker, batch, device, scores)
    return scores


def batches_of(shard: Shard) -> Iterator[Batch]:
    """Yields all units of a shard once, in batches of similar lengths; the order has no meaning."""
    tokens_U, targets_U = np.diff(shard.token_offsets_U1), np.diff(shard.target_offsets_U1)
    for units_B in cut(tokens_U, targets_U, _TARGETS, _TOKENS, np.random.default_rng(0)):
        yield take(shard, units_B)
