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
REPAIRABLE = ("same", "shifted", "rotated")


@dataclass(frozen=True)
class Sample:
    """Ids and vectors (float32 [E, D]) of some entities, in the order of their ids' hashes."""

    ids: pa.Array
    vectors_ED: np.ndarray


@dataclass(frozen=True)
class Aligned:
    """What was found for one entity: the map, its record (without the hash of its file), and the reference for the next export."""

    alignment: Alignment
    record: AlignmentRecord
    reference: Sample


def align(folder: Path, manifest: EmbeddingManifest, live: Path | None, live_manifest: EmbeddingManifest | None) -> dict[str, Aligned]:
    """Finds the maps of all entities.

    Args:
        folder: Staged export; its serving shards are written and verified.
        manifest: Its manifest so far: entities, shards, dim.
        live: Folder of the live export, if there is one.
        live_manifest: Its manifest.

    Returns:
        Entity -> map. Without a live export of the same width the maps are identities and the vectors themselves the reference.
    """
    entities = [entity for entity in (ITEM, USER) if entity in manifest.entities]
    if live is None or live_manifest is None or live_manifest.dim != manifest.dim:
        return {entity: _first(folder, manifest, entity) for entity in entities}
    found: dict[str, Aligned] = {}
    frame: Aligned | None = None
    for entity in entities:
        if entity + REFERENCE not in live_manifest.shards:
            found[entity] = _first(folder, manifest, entity)
            continue
        reference = _read_reference(live, live_manifest, entity)
        found[entity] = _against(folder, manifest, entity, reference, frame)
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


def _first(folder: Path, manifest: EmbeddingManifest, entity: str) -> Aligned:
    identity = Alignment(IDENTITY, np.zeros(manifest.dim), np.eye(manifest.dim), np.zeros(manifest.dim), 0)
    record = AlignmentRecord(
        method=IDENTITY, outcome="first", anchors=0, sentence="the first vectors of this space: they are the reference", sha256=""
    )
    return Aligned(identity, record, _draw(folder, manifest, entity, identity))


def _against(folder: Path, manifest: EmbeddingManifest, entity: str, reference: Sample, frame: Aligned | None) -> Aligned:
    pairs = _pairs(folder, manifest, entity, reference)
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
    return Aligned(alignment, record, _handed_on(folder, manifest, entity, reference, alignment, outcome, len(pairs.old_ED)))


def _own_shift(pairs: Pairs, frame: Aligned) -> Alignment:
    """Keeps the frame's rotation and fits the entity's own means; no shift at all if the means agree already."""
    if frame.record.outcome not in REPAIRABLE or len(pairs.old_ED) < 2:
        return fit(pairs.old_ED, pairs.new_ED, IDENTITY)
    turned = frame.alignment.method == ROTATION
    if not turned and agreement(pairs.old_ED, pairs.new_ED).mean_shift_sd <= MEAN_SHIFT_SD:
        return fit(pairs.old_ED, pairs.new_ED, IDENTITY)
    shift = fit(pairs.old_ED, pairs.new_ED, SHIFT)
    return replace(shift, method=ROTATION, rotation_DD=frame.alignment.rotation_DD) if turned else shift


def _handed_on(
    folder: Path, manifest: EmbeddingManifest, entity: str, reference: Sample, alignment: Alignment, outcome: str, common: int
) -> Sample:
    """Returns the reference of the next export."""
    if outcome not in REPAIRABLE or entity == USER:
        return _draw(folder, manifest, entity, alignment)  # a new space starts here; users are compared with their last vectors
    if 2 * common >= len(reference.ids):
        return reference
    drawn = _draw(folder, manifest, entity, alignment)
    new_E = np.asarray(pc.invert(pc.is_in(drawn.ids, value_set=reference.ids)))
    known_E = np.asarray(pc.is_in(reference.ids, value_set=drawn.ids))
    ids = pa.concat_arrays([reference.ids.filter(pa.array(known_E)), drawn.ids.filter(pa.array(new_E))])
    vectors_ED = np.concatenate([reference.vectors_ED[known_E], drawn.vectors_ED[new_E]])
    order_E = np.argsort(hash_ids(ids), kind="stable")[:REFERENCE_ENTITIES]
    return Sample(ids.take(pa.array(order_E)), vectors_ED[order_E])


def _draw(folder: Path, manifest: EmbeddingManifest, entity: str, alignment: Alignment) -> Sample:
    """Draws the entities with the smallest hashes, block by block."""
    ids: pa.Array | None = None
    vectors_ED = np.zeros((0, manifest.dim), np.float32)
    for block in staged_blocks(folder, manifest.shards[entity], manifest.dim):
        both = block.ids if ids is None else pa.concat_arrays([ids, block.ids])
        both_ED = np.concatenate([vectors_ED, block.vectors_MD])
        order_E = np.argsort(hash_ids(both), kind="stable")[:REFERENCE_ENTITIES]
        ids, vectors_ED = both.take(pa.array(order_E)), both_ED[order_E]
    if ids is None:
        raise ExportError("an entity without vectors cannot be a reference", where=entity)
    return Sample(ids, alignment.apply(vectors_ED))


def _pairs(folder: Path, manifest: EmbeddingManifest, entity: str, reference: Sample) -> Pairs:
    new_ED = np.full((len(reference.ids), manifest.dim), np.nan, np.float32)
    known_E = np.zeros(len(reference.ids), bool)
    for block in staged_blocks(folder, manifest.shards[entity], manifest.dim):
        if block.ids.type != reference.ids.type:
            raise ExportError(f"{entity} ids changed their type", where=folder, got=block.ids.type, expected=reference.ids.type)
        place_M = pc.index_in(block.ids, value_set=reference.ids)
        rows = place_M.drop_null().to_numpy()
        new_ED[rows] = block.vectors_MD[np.asarray(place_M.is_valid())]
        known_E[rows] = True
    half_E = np.arange(int(known_E.sum())) % 2 == 0  # rows are in the order of their hash, so every second one is a random half
    return Pairs(reference.vectors_ED[known_E], new_ED[known_E], half_E)  # that entities retire in time is no accident here


def _read_reference(live: Path, manifest: EmbeddingManifest, entity: str) -> Sample:
    blocks = list(read_view(live, manifest, entity + REFERENCE))
    return Sample(pa.concat_arrays([block.ids for block in blocks]), np.concatenate([block.vectors_MD for block in blocks]))


def staged_blocks(folder: Path, shards: list[Shard], dim: int) -> Iterator[VectorBlock]:
    """Yields vectors of shards that this process has just verified."""
    for shard in shards:
        with pq.ParquetFile(folder / shard.path) as file:
            for batch in file.iter_batches():
                yield VectorBlock(batch.column("id"), vectors_of(batch.column("vector"), dim))


def feature_space(space_id: str, found: Mapping[str, Aligned], live_manifest: EmbeddingManifest | None) -> str:
    """Returns the space of the feature product: the live one's as long as every map onto it holds."""
    outcomes = {aligned.record.outcome for aligned in found.values()}
    if live_manifest is None or not outcomes <= set(REPAIRABLE):
        return space_id
    return live_manifest.feature_space
