from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import ExportConfig
from trainer.export import export
from trainer.schema.embeddings import EmbeddingManifest, VectorBlock


@dataclass
class Source:
    """Vectors held in memory, cut into blocks of any size."""

    users: tuple[pa.Array, np.ndarray]
    items: tuple[pa.Array, np.ndarray]
    block: int = 7

    @property
    def dim(self) -> int:
        return self.users[1].shape[1]

    def _cut(self, ids: pa.Array, vectors_MD: np.ndarray) -> Iterator[VectorBlock]:
        for start in range(0, len(ids), self.block):
            yield VectorBlock(ids.slice(start, self.block), vectors_MD[start : start + self.block])

    def user_vectors(self) -> Iterator[VectorBlock]:
        return self._cut(*self.users)

    def item_vectors(self) -> Iterator[VectorBlock]:
        return self._cut(*self.items)


@pytest.fixture
def source() -> Callable[..., Source]:
    def make(users: int = 100, items: int = 40, dim: int = 8, seed: int = 0, block: int = 7) -> Source:
        generator = np.random.default_rng(seed)
        return Source(
            (pa.array(np.arange(users) * 3), generator.normal(size=(users, dim)).astype(np.float32)),
            (pa.array([f"item-{index}" for index in range(items)]), generator.normal(size=(items, dim)).astype(np.float32)),
            block,
        )

    return make


@pytest.fixture
def write() -> Callable[..., EmbeddingManifest]:
    def run(source: Source, out: Path, config: ExportConfig | None = None, **fields) -> EmbeddingManifest:
        values = {"space_id": "space-1", "producer": "p", "parent": None, "as_of": "2022-05-01"} | fields
        return export(source, out, config or ExportConfig(shard_rows=30), **values)

    return run
