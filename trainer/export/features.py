"""The feature product: serving vectors brought into the reference space, for models that split on single coordinates.

The reference is a sample of vectors that every export hands on to the next. Items anchor the space: what a ranker says of an item
changes only with its weights, while a user's vector also changes with every event. So a rotation is fitted on items, once for
both entities, and users add only their own shift. The items of the reference stay as they are for good (errors would add up
otherwise); only when half of them are gone are they topped up, with vectors that are already aligned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.align import IDENTITY, ROTATION, SHIFT, Alignment, Pairs, alignment_values, compare, fit
from trainer.align.agreement import MEAN_SHIFT_SD, agreement
from trainer.errors import ExportError
from trainer.export.read import read_view, vectors_of
from trainer.schema.embeddings import ALIGNMENT, ITEM, REFERENCE, USER, AlignmentRecord, EmbeddingManifest, Shard, VectorBlock
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_file
from trainer.schema.ids import hash_ids

REFERENCE_ENTITIES = 20_000
_SPARE = 5_000
_READ_BYTES = 1 << 20
REPAIRABLE = ("same", "shifted", "rotated")


@dataclass(frozen=True)
class Sample:
    """Ids and vectors (float32 [E, D]) of some entities, in the order of their ids' hashes."""

    ids: pa.Array
    vectors_ED: np.ndarray


class Anchors:
    """What alignment needs of an entity's vectors, picked while they stream by, so that they need not be read again.

    Args:
        entity: ``user`` or ``item``, for messages.
        dim: Width of the vectors.
        reference: Sample of the reference space, if there is one.
    """

    def __init__(self, entity: str, dim: int, reference: Sample | None) -> None:
        self._entity, self._reference = entity, reference
        # The smallest hashes are kept, and a few more until these are told apart; memory that is not needed is never touched.
        self._hash_S = np.empty(REFERENCE_ENTITIES + _SPARE, np.uint64)
        self._vectors_SD = np.empty((len(self._hash_S), dim), np.float32)
        self._ids: list[pa.Array] = []
        self._held, self._bound = 0, np.uint64(np.iinfo(np.uint64).max)
        self._matched_ED = np.full((0 if reference is None else len(reference.ids), dim), np.nan, np.float32)
        self._known_E = np.zeros(len(self._matched_ED), bool)

    def add(self, hash_M: np.ndarray, block: VectorBlock) -> None:
        """Picks from a block, given the hashes of its ids.

        Raises:
            ExportError: If the ids of the reference are of another type.
        """
        self._match(block)
        row_K = np.flatnonzero(hash_M <= self._bound)
        while len(row_K):
            taken_K, row_K = np.split(row_K, [len(self._hash_S) - self._held])
            place = slice(self._held, self._held + len(taken_K))
            self._hash_S[place], self._vectors_SD[place] = hash_M[taken_K], block.vectors_MD[taken_K]
            self._ids.append(block.ids.take(pa.array(taken_K)))
            self._held = place.stop
            if self._held == len(self._hash_S):
                self._keep_smallest()
                row_K = row_K[hash_M[row_K] <= self._bound]

    def drawn(self, alignment: Alignment) -> Sample:
        """Returns the entities with the smallest hashes, their vectors as features.

        Raises:
            ExportError: If there was no vector.
        """
        if not self._held:
            raise ExportError("an entity without vectors cannot be a reference", where=self._entity)
        order_E = np.argsort(self._hash_S[: self._held], kind="stable")[:REFERENCE_ENTITIES]
        return Sample(pa.concat_arrays(self._ids).take(pa.array(order_E)), alignment.apply(self._vectors_SD[order_E]))

    def _keep_smallest(self) -> None:
        """Moves the smallest hashes to the front, in place: a copy of all vectors would be the most that an export holds."""
        order_S = np.argsort(self._hash_S, kind="stable")
        kept_E, lost_S = order_S[:REFERENCE_ENTITIES], order_S[REFERENCE_ENTITIES:]
        free, moved = lost_S[lost_S < REFERENCE_ENTITIES], kept_E[kept_E >= REFERENCE_ENTITIES]
        self._hash_S[free], self._vectors_SD[free] = self._hash_S[moved], self._vectors_SD[moved]
        row_E = np.arange(REFERENCE_ENTITIES)
        row_E[free] = moved
        self._ids = [pa.concat_arrays(self._ids).take(pa.array(row_E))]
        self._held, self._bound = REFERENCE_ENTITIES, self._hash_S[:REFERENCE_ENTITIES].max()

    def pairs(self) -> Pairs:
        """Returns the reference's entities that have a vector now, both vectors of each."""
        if self._reference is None:
            raise ValueError("there is no reference to pair with")
        known_E = self._known_E
        half_E = np.arange(int(known_E.sum())) % 2 == 0  # rows are in the order of their hash, so every second one is a random half
        # That entities retire in time is no accident here: nothing is said to be lost.
        return Pairs(self._reference.vectors_ED[known_E], self._matched_ED[known_E], half_E)

    @property
    def reference(self) -> Sample | None:
        """Sample of the reference space, if there is one."""
        return self._reference

    def _match(self, block: VectorBlock) -> None:
        if self._reference is None:
            return
        if block.ids.type != self._reference.ids.type:
            raise ExportError(f"{self._entity} ids changed their type", got=block.ids.type, expected=self._reference.ids.type)
        place_M = pc.index_in(block.ids, value_set=self._reference.ids)
        row_K = place_M.drop_null().to_numpy()
        self._matched_ED[row_K] = block.vectors_MD[np.asarray(place_M.is_valid())]
        self._known_E[row_K] = True


@dataclass(frozen=True)
class Aligned:
    """What was found for one entity: the map, its record (without the hash of its file), and the reference for the next export."""

    alignment: Alignment
    record: AlignmentRecord
    reference: Sample


def reference_of(live: Path | None, live_manifest: EmbeddingManifest | None, entity: str, dim: int) -> Sample | None:
    """Reads the reference that an entity is aligned to; None without a live export of the same width that has one.

    Raises:
        ExportError: If a file of it is missing or was altered.
    """
    if live is None or live_manifest is None or live_manifest.dim != dim or entity + REFERENCE not in live_manifest.shards:
        return None
    blocks = list(read_view(live, live_manifest, entity + REFERENCE))
    return Sample(pa.concat_arrays([block.ids for block in blocks]), np.concatenate([block.vectors_MD for block in blocks]))


def align(anchors: Mapping[str, Anchors], dim: int) -> dict[str, Aligned]:
    """Finds the maps of all entities.

    Args:
        anchors: Entity -> what was picked from its vectors.
        dim: Width of the vectors.

    Returns:
        Entity -> map. Without a reference the map is the identity and the vectors themselves are the reference.
    """
    found: dict[str, Aligned] = {}
    frame: Aligned | None = None
    for entity in (entity for entity in (ITEM, USER) if entity in anchors):
        picked = anchors[entity]
        if picked.reference is None:
            found[entity] = _first(picked, dim)
            continue
        found[entity] = _against(picked, picked.reference, entity, frame)
        frame = frame or found[entity]
    return found


def apply(block: VectorBlock, alignment: Alignment) -> VectorBlock:
    """Returns a block of serving vectors as feature vectors."""
    return VectorBlock(block.ids, alignment.apply(block.vectors_MD))


def write_alignment(folder: Path, entity: str, found: Aligned) -> AlignmentRecord:
    """Writes a map as plain numbers and returns its record with the file's hash."""
    path = folder / f"{entity}{ALIGNMENT}"
    write_text(path, json.dumps(alignment_values(found.alignment), allow_nan=False) + "\n")
    return replace(found.record, sha256=sha256_file(path))


def read_alignment(folder: Path, manifest: EmbeddingManifest, entity: str) -> Alignment:
    """Reads the map of an export.

    Raises:
        ExportError: If the file is missing or was altered.
    """
    path = folder / f"{entity}{ALIGNMENT}"
    record = manifest.alignment.get(entity)
    if record is None or not path.is_file() or sha256_file(path) != record.sha256:
        raise ExportError("the alignment of an export is missing or was altered", where=path, remedy="export again")
    values = json.loads(path.read_text())
    source_D, rotation_DD, target_D = (np.asarray(values[name], np.float64) for name in ("source_mean", "rotation", "target_mean"))
    return Alignment(values["method"], source_D, rotation_DD, target_D, int(values["anchors"]))


def _first(anchors: Anchors, dim: int) -> Aligned:
    identity = Alignment.identity(dim)
    record = AlignmentRecord(
        method=IDENTITY, outcome="first", anchors=0, sentence="the first vectors of this space: they are the reference", sha256=""
    )
    return Aligned(identity, record, anchors.drawn(identity))


def _against(anchors: Anchors, reference: Sample, entity: str, frame: Aligned | None) -> Aligned:
    pairs = anchors.pairs()
    if frame is None:
        found = compare(pairs, f"entity={entity}")
        alignment, outcome, sentence = found.alignment, found.outcome, found.sentence
    else:
        alignment, outcome = _own_shift(pairs, frame), frame.record.outcome
        sentence = f"turned as the items are ({frame.alignment.method}), with {alignment.method} of its own"
    judge_E = ~pairs.half_E
    residual = None
    if judge_E.sum() >= 2 and pairs.old_ED.shape == pairs.new_ED.shape:
        residual = agreement(pairs.old_ED[judge_E], alignment.apply(pairs.new_ED[judge_E])).residual
    record = AlignmentRecord(
        method=alignment.method, outcome=outcome, anchors=alignment.anchors, residual=residual, sentence=sentence, sha256=""
    )
    return Aligned(alignment, record, _handed_on(anchors, reference, entity, alignment, outcome, len(pairs.old_ED)))


def _own_shift(pairs: Pairs, frame: Aligned) -> Alignment:
    """Keeps the frame's rotation and fits the entity's own means; no shift at all if the means agree already."""
    if frame.record.outcome not in REPAIRABLE or len(pairs.old_ED) < 2:
        return fit(pairs.old_ED, pairs.new_ED, IDENTITY)
    turned = frame.alignment.method == ROTATION
    if not turned and agreement(pairs.old_ED, pairs.new_ED).mean_shift_sd <= MEAN_SHIFT_SD:
        return fit(pairs.old_ED, pairs.new_ED, IDENTITY)
    shift = fit(pairs.old_ED, pairs.new_ED, SHIFT)
    return replace(shift, method=ROTATION, rotation_DD=frame.alignment.rotation_DD) if turned else shift


def _handed_on(anchors: Anchors, reference: Sample, entity: str, alignment: Alignment, outcome: str, common: int) -> Sample:
    """Returns the reference of the next export."""
    if outcome not in REPAIRABLE or entity == USER:
        return anchors.drawn(alignment)  # a new space starts here; users are compared with their last vectors
    if 2 * common >= len(reference.ids):
        return reference
    drawn = anchors.drawn(alignment)
    new_E = np.asarray(pc.invert(pc.is_in(drawn.ids, value_set=reference.ids)))
    known_E = np.asarray(pc.is_in(reference.ids, value_set=drawn.ids))
    ids = pa.concat_arrays([reference.ids.filter(pa.array(known_E)), drawn.ids.filter(pa.array(new_E))])
    vectors_ED = np.concatenate([reference.vectors_ED[known_E], drawn.vectors_ED[new_E]])
    order_E = np.argsort(hash_ids(ids), kind="stable")[:REFERENCE_ENTITIES]
    return Sample(ids.take(pa.array(order_E)), vectors_ED[order_E])


def staged_blocks(folder: Path, shards: list[Shard], dim: int) -> Iterator[VectorBlock]:
    """Yields vectors of shards that this process has just verified, in blocks that are small beside a row group."""
    rows = max(1, _READ_BYTES // (4 * dim))
    for shard in shards:
        with pq.ParquetFile(folder / shard.path, pre_buffer=False, buffer_size=_READ_BYTES) as file:  # else the whole shard is held
            for batch in file.iter_batches(rows):
                yield VectorBlock(batch.column("id"), vectors_of(batch.column("vector"), dim))
        pa.default_memory_pool().release_unused()  # else an allocator may keep what this thread decoded


def feature_space(space_id: str, found: Mapping[str, Aligned], live_manifest: EmbeddingManifest | None) -> str:
    """Returns the space of the feature product: the live one's as long as every map onto it holds."""
    outcomes = {aligned.record.outcome for aligned in found.values()}
    if live_manifest is None or not outcomes <= set(REPAIRABLE):
        return space_id
    return live_manifest.feature_space
