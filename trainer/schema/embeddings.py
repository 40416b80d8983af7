"""Exported embeddings: files, manifest, and the source that vectors come from.

A staged or released export is a folder::

    embeddings/manifest.json                  `EmbeddingManifest`, written last: a reader ignores a folder without it
    embeddings/user/part-00000.parquet        id, vector fixed_size_list<float32>[dim]
    embeddings/user_wide/part-00000.parquet   id, e000 .. e063: one float32 column a dimension (GBDT libraries need these)
    embeddings/item/..., embeddings/item_wide/...
    embeddings/pair/part-00000.parquet        user, item, time, dot, score_<action>: scalars that survive a change of space
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

EMBEDDINGS_VERSION = 1

MANIFEST = "manifest.json"
USER = "user"
ITEM = "item"
PAIR = "pair"
WIDE = "_wide"  # suffix of an entity's wide view

PAIR_KEYS = ("user", "item", "time")
PAIR_DOT = "dot"
PAIR_SCORE = "score_"


@dataclass(frozen=True)
class VectorBlock:
    """A block of entities: `ids` (Arrow int64 or string, length M) and `vectors_MD` (float32 [M, D])."""

    ids: pa.Array
    vectors_MD: np.ndarray


class VectorSource(Protocol):
    """A model as export sees it; streaming, so memory does not grow with the number of entities."""

    dim: int

    def user_vectors(self) -> Iterator[VectorBlock]:
        """Yields one vector a user who has any history as of the run's cut-off, sorted by id within a block; each user once."""
        ...

    def item_vectors(self) -> Iterator[VectorBlock]:
        """Yields one vector an item of the vocabulary; each item once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One verified file: path below the export folder, rows, bytes, sha256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingManifest:
    """What was exported.

    Attributes:
        space_id: Vectors are interchangeable exactly within a space; inherited from the parent by an exact warm start that keeps
            the axes, new otherwise.
        producer: Hash of the bundle that made the vectors.
        parent: Hash of the bundle it was warm-started from, if any.
        as_of: Cut-off day of the histories.
        dim: Width D.
        dtype: ``float32``.
        entities: Entity (and ``pair``, if pair scalars were written) -> number of rows.
        coverage: Entity -> share of the holdout's rows whose entity has a vector.
        shards: Entity (or view) -> files.
        norms: Entity -> {min, mean, max} Euclidean norm.
    """

    version: int = EMBEDDINGS_VERSION
    space_id: str
    producer: str
    parent: str | None
    as_of: str
    dim: int
    dtype: str = "float32"
    entities: dict[str, int]
    coverage: dict[str, float] = field(default_factory=dict)
    shards: dict[str, list[Shard]]
    norms: dict[str, dict[str, float]] = field(default_factory=dict)


def wide_names(dim: int, prefix: str = "") -> list[str]:
    """Returns the column names of a vector spread out: e000, e001, ...; as many digits as the last one needs, at least 3."""
    digits = max(3, len(str(dim - 1)))
    return [f"{prefix}e{index:0{digits}d}" for index in range(dim)]
