"""Vectors of a bundle, streamed: what export reads (`trainer.schema.embeddings.VectorSource`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from trainer.evaluate.scorer import RankerScorer, batches_of
from trainer.schema.embeddings import VectorBlock

_ITEMS = 16384


class RankerVectors:
    """User and item vectors of a scorer's ranker.

    Attributes:
        dim: Width of the vectors.
    """

    def __init__(self, scorer: RankerScorer, tails: Sequence[Callable[[], pa.Table]], at_ms: int) -> None:
        """Args: scorer; readers of every user bucket's final tail; the instant at which histories are cut."""
        self._scorer = scorer
        self._tails = tails
        self._at_ms = at_ms
        self.dim: int = scorer.ranker.shape.dim

    def user_vectors(self) -> Iterator[VectorBlock]:
        """Yields the vectors of a bucket's users, sorted by id."""
        for number, read in enumerate(self._tails, start=1):
            shard, users = self._scorer.encoder.encode_histories(read(), self._at_ms)
            vectors_MD = np.zeros((len(users), self.dim), np.float32)
            for batch in batches_of(shard):
                with torch.inference_mode():
                    vectors = self._scorer.ranker.user_vectors(batch.to(self._scorer.device))
                vectors_MD[batch.row_N.numpy()] = vectors.float().cpu().numpy()
            if len(users):
                yield VectorBlock(users, vectors_MD, number / len(self._tails))

    def item_vectors(self) -> Iterator[VectorBlock]:
        """Yields the vectors of the vocabulary's items, in its order."""
        items = self._scorer.bundle.items()
        row_M, features_MI = self._scorer.encoder.item_rows(items)
        for start in range(0, len(items), _ITEMS):
            block = slice(start, start + _ITEMS)
            with torch.inference_mode():
                vectors = self._scorer.ranker.item_vectors(
                    torch.from_numpy(row_M[block]).to(self._scorer.device), torch.from_numpy(features_MI[block]).to(self._scorer.device)
                )
            done = min(1.0, block.stop / len(items))
            yield VectorBlock(items["item"].combine_chunks()[block], vectors.float().cpu().numpy(), done)
