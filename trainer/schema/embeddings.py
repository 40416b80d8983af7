"""Exported embeddings: files, manifest, and the source that vectors come from.

A staged or released export is a folder of two products and what belongs to them::

    embeddings/manifest.json                  `EmbeddingManifest`, written last: a reader ignores a folder without it
    embeddings/user/part-00000.parquet        serving product: id, vector; dot products are the ranker's (lists or packed binary)
    embeddings/user_wide/part-00000.parquet   feature product: id, e000 .. e063, aligned to the reference space; one float32 column a
                                              dimension, which GBDT libraries need
    embeddings/item/..., embeddings/item_wide/...
    embeddings/pair/part-00000.parquet        user, item, time, dot, score_<action>: scalars that survive a change of space; scores as they
                                              are delivered, behind the curves of the release
    embeddings/user_reference/...             a sample of vectors in the reference space: what the next export is aligned to
    embeddings/user_alignment.json            the map from serving to feature vectors, as plain numbers
    embeddings/user_digest/...                hashes of ids and vectors: what the next delta is compared with
    embeddings/user_delta/..., user_gone/...  with ``export.delta=true``: vectors that are new or changed, and ids that are no more
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

EMBEDDINGS_VERSION = 2

MANIFEST = "manifest.json"
USER = "user"
ITEM = "item"
PAIR = "pair"
WIDE = "_wide"  # suffixes of an entity's views
REFERENCE = "_reference"
DIGEST = "_digest"
DELTA = "_delta"
GONE = "_gone"
ALIGNMENT = "_alignment.json"

PAIR_KEYS = ("user", "item", "time")
PAIR_DOT = "dot"
PAIR_SCORE = "score_"


@dataclass(frozen=True)
class VectorBlock:
    """A block of entities: `ids` (Arrow int64 or string, length M) and `vectors_MD` (float32 [M, D]).

    `done` is the share of the source's blocks that have come with this one, where the source can tell: for the time that is left.
    """

    ids: pa.Array
    vectors_MD: np.ndarray
    done: float | None = None


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
class AlignmentRecord:
    """How an entity's feature vectors follow from its serving vectors.

    Attributes:
        method: ``identity``, ``shift`` or ``rotation``.
        outcome: What was found against the reference: ``same``, ``shifted``, ``rotated``, ``drifted``, ``broken``, or ``first``.
        anchors: Entities that the map was fitted on.
        residual: Share of the reference's variance that is left on entities that it was not fitted on; null for the first export.
        sentence: The finding in words.
        sha256: Hash of ``<entity>_alignment.json``.
    """

    method: str
    outcome: str
    anchors: int
    residual: float | None = None
    sentence: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingManifest:
    """What was exported.

    Attributes:
        space_id: Vectors are interchangeable exactly within a space; inherited from the parent by an exact warm start that keeps
            the axes, new otherwise.
        feature_space: Space of the feature product: it outlives a change of `space_id` that a rigid map repairs.
        producer: Hash of the bundle that made the vectors.
        parent: Hash of the bundle it was warm-started from, if any.
        as_of: Cut-off day of the histories.
        dim: Width D.
        dtype: ``float32``.
        entities: Entity (and ``pair``, if pair scalars were written) -> number of rows.
        coverage: Entity -> share of the holdout's rows whose entity has a vector.
        shards: Entity (or view) -> files.
        norms: Entity -> {min, mean, max} Euclidean norm.
        repair: Hash of the curves (`repair.json` of the release) behind which the pairs' scores are delivered; null if they are delivered
            as the ranker gives them.
        alignment: Entity -> how feature vectors follow from serving vectors.
        delta_of: Producer and day of the export that the delta is relative to, if one was written.
        changed: Entity -> rows of the delta.
        tombstones: Entity -> ids that have no vector any more.
    """

    version: int = EMBEDDINGS_VERSION
    space_id: str
    feature_space: str
    producer: str
    parent: str | None
    as_of: str
    dim: int
    dtype: str = "float32"
    entities: dict[str, int]
    coverage: dict[str, float] = field(default_factory=dict)
    shards: dict[str, list[Shard]]
    norms: dict[str, dict[str, float]] = field(default_factory=dict)
    repair: str | None = None
    alignment: dict[str, AlignmentRecord] = field(default_factory=dict)
    delta_of: dict[str, str] | None = None
    changed: dict[str, int] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)


def wide_names(dim: int, prefix: str = "") -> list[str]:
    """Returns the column names of a vector spread out: e000, e001, ...; as many digits as the last one needs, at least 3."""
    digits = max(3, len(str(dim - 1)))
    return [f"{prefix}e{index:0{digits}d}" for index in range(dim)]
