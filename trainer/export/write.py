"""The export stage: vectors and pair scalars become a verified folder, visible as a whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import ExportConfig
from trainer.errors import ExportError
from trainer.export.delta import write_delta
from trainer.export.digest import DIGEST_SCHEMA, Digest
from trainer.export.features import Aligned, Anchors, align, apply, feature_space, reference_of, staged_blocks, write_alignment
from trainer.export.progress import Progress
from trainer.export.read import read_manifest
from trainer.export.shards import ShardWriter, row_group_rows, vector_batch, vector_schema, wide_batches, wide_schema, write_shards
from trainer.export.vectors import Tally, checked_blocks, regrouped
from trainer.schema.embeddings import (
    DIGEST,
    ITEM,
    MANIFEST,
    PAIR,
    PAIR_DOT,
    PAIR_KEYS,
    PAIR_SCORE,
    REFERENCE,
    USER,
    WIDE,
    EmbeddingManifest,
    Shard,
    VectorBlock,
    VectorSource,
)  # fmt: skip
from trainer.schema.files import locked, sync_tree, write_text
from trainer.schema.ids import hash_ids

_HASHES = ".hashes"


def export(
    source: VectorSource,
    out: Path,
    config: ExportConfig,
    *,
    space_id: str,
    producer: str,
    parent: str | None,
    as_of: str,
    holdout: Mapping[str, pa.Array | pa.ChunkedArray] | None = None,
    pairs: pa.Table | None = None,
    repair: str | None = None,
    live: Path | None = None,
) -> EmbeddingManifest:
    """Writes embeddings to `out`; whatever was there stays until all of the new is written, read back and verified.

    Vectors are streamed: memory does not grow with the number of entities. The same vectors give the same bytes, however the source
    cuts them into blocks.

    Args:
        source: The model as export sees it.
        out: Export folder.
        config: Entities, views, shard size, floors.
        space_id: Space of the vectors.
        producer: Hash of the bundle that makes them.
        parent: Hash of the bundle it was warm-started from.
        as_of: Cut-off day of the histories.
        holdout: Entity -> ids of the holdout's rows, from which coverage is measured.
        pairs: Holdout rows with delivered scores: user, item, time, dot, score_<action>.
        repair: Hash of the curves behind which these scores are delivered, for the manifest.
        live: Folder of the export that consumers have now: feature vectors are aligned to its reference, and a delta is relative to it.

    Returns:
        The manifest, which was written last.

    Raises:
        ExportError: If a vector is not finite, an entity comes twice or has the wrong width, too many vectors are zero, too few
            holdout rows are covered, vectors left the live space and ``export.on_drift`` is ``refuse``, another export writes to
            `out`, or the disk refuses. `out` is as it was before.
    """
    if not config.entities and pairs is None:
        raise ExportError("nothing to export", where="export.entities", got="[]", remedy="name user, item or both")
    if strange := sorted(set(holdout or ()) - {USER, ITEM}):
        raise ExportError("coverage of something that has no vectors", where=strange[0], expected=f"{USER}, {ITEM}")
    if source.dim < 1:
        raise ExportError("vectors without a dimension", got=source.dim, expected="at least 1")
    before = read_manifest(live) if live is not None else None
    with _staging(out) as partial, ExitStack() as closing:
        manifest = EmbeddingManifest(
            space_id=space_id, feature_space=space_id, producer=producer, parent=parent, as_of=as_of, dim=source.dim, entities={},
            shards={}, repair=repair,
        )  # fmt: skip
        anchors, writers = {}, {}
        for entity in config.entities:
            blocks = source.user_vectors() if entity == USER else source.item_vectors()
            anchors[entity] = Anchors(entity, source.dim, reference_of(live, before, entity, source.dim))
            writers[entity] = _export_entity(
                partial, blocks, entity, manifest, config, (holdout or {}).get(entity), anchors[entity], closing
            )
        found = _aligned(partial, manifest, config, anchors)
        anchors.clear()  # their memory is for the wide view
        for entity, writer in writers.items():
            manifest.shards[entity] = writer.close()
        if config.wide:
            _export_wide(partial, manifest, config, found)
        manifest = dataclasses.replace(manifest, feature_space=feature_space(manifest.space_id, found, before))
        if config.delta:
            manifest = write_delta(partial, manifest, config, live, before)
        if pairs is not None:
            manifest.shards[PAIR] = _export_pairs(partial, pairs, config.shard_rows)
            manifest.entities[PAIR] = pairs.num_rows
        sync_tree(partial)
        _write_manifest(partial, manifest)
    return manifest


def _export_entity(
    partial: Path,
    blocks: Iterator[VectorBlock],
    entity: str,
    manifest: EmbeddingManifest,
    config: ExportConfig,
    holdout: pa.Array | pa.ChunkedArray | None,
    anchors: Anchors,
    closing: ExitStack,
) -> ShardWriter:
    """Writes an entity's serving vectors, enters what they are in the manifest and picks anchors.

    Returns:
        The writer, whose last shards are still being read back; `closing` lets go of it.
    """
    dim, packed = manifest.dim, config.layout == "packed"
    tally, told = Tally(entity, holdout), Progress(f"{entity} vectors")
    checked = checked_blocks(told.over(blocks), entity, dim)
    digest = Digest(partial / _HASHES, vectors=config.delta)
    writer: ShardWriter | None = None
    try:
        for block in regrouped(checked, row_group_rows(dim, config.shard_rows)):
            tally.add(block)
            hash_M = hash_ids(block.ids)
            digest.add(hash_M, block)
            anchors.add(hash_M, block)
            if writer is None:
                writer = ShardWriter(partial, entity, vector_schema(block.ids.type, dim, packed), config.shard_rows)
                closing.callback(writer.abandon)
            writer.write(vector_batch(writer.schema, block.ids, block.vectors_MD))
        if writer is not None:
            writer.finish()
        repeated = digest.repeated_hashes()
        if config.delta:
            manifest.shards[entity + DIGEST] = write_shards(partial, entity + DIGEST, DIGEST_SCHEMA, digest.batches(), config.shard_rows)
    finally:
        digest.close()
    tally.check(config.min_coverage, config.max_zero_share)
    if writer is None:
        raise ExportError(f"no {entity} has a vector", where="export.entities")  # what the check above has refused already
    if len(repeated):
        _refuse_repeats(partial, writer.close(), entity, repeated)
    manifest.entities[entity], manifest.norms[entity] = tally.rows, tally.norms
    if tally.coverage is not None:
        manifest.coverage[entity] = tally.coverage
    return writer


def _aligned(partial: Path, manifest: EmbeddingManifest, config: ExportConfig, anchors: Mapping[str, Anchors]) -> dict[str, Aligned]:
    """Aligns every entity to the live reference; writes the maps, and the reference for the next export."""
    found = align(anchors, manifest.dim)
    for entity, aligned in found.items():
        if config.on_drift == "refuse" and aligned.record.outcome in ("drifted", "broken"):
            raise ExportError(
                f"{entity} vectors left the live space: {aligned.record.sentence}", where="export.on_drift", got=aligned.record.outcome,
                expected="same, shifted or rotated", remedy="retrain the consumers with export.on_drift=new_space",
            )  # fmt: skip
        manifest.alignment[entity] = write_alignment(partial, entity, aligned)
        sample = aligned.reference
        schema, rows = vector_schema(sample.ids.type, manifest.dim), row_group_rows(4 * manifest.dim, config.shard_rows)
        whole = vector_batch(schema, sample.ids, sample.vectors_ED)
        batches = (whole.slice(start, rows) for start in range(0, whole.num_rows, rows))
        manifest.shards[entity + REFERENCE] = write_shards(partial, entity + REFERENCE, schema, batches, config.shard_rows)
    return found


def _export_wide(partial: Path, manifest: EmbeddingManifest, config: ExportConfig, found: Mapping[str, Aligned]) -> None:
    """Writes feature vectors: serving vectors read again, brought into the reference space, one column a dimension."""
    for entity, aligned in found.items():
        schema = wide_schema(aligned.reference.ids.type, manifest.dim)
        blocks = (apply(block, aligned.alignment) for block in staged_blocks(partial, manifest.shards[entity], manifest.dim))
        batches = wide_batches(schema, blocks, row_group_rows(manifest.dim, config.shard_rows))
        manifest.shards[entity + WIDE] = write_shards(partial, entity + WIDE, schema, batches, config.shard_rows)


def _refuse_repeats(root: Path, shards: list[Shard], entity: str, repeated: np.ndarray) -> None:
    """Raises an ExportError if among the ids with a repeated hash one truly comes twice."""
    suspects = []
    for shard in shards:
        for batch in pq.ParquetFile(root / shard.path, pre_buffer=False).iter_batches(columns=["id"]):
            ids = batch.column(0)
            suspects.append(ids.filter(pa.array(np.isin(hash_ids(ids), repeated))))
    counts = pc.value_counts(pa.concat_arrays(suspects))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()
        raise ExportError(
            f"a {entity} has several vectors", where=f"{entity} {first['values']}",
            got=f"{first['counts']} vectors of this one; {len(twice)} come more than once", expected="one vector each",
        )  # fmt: skip


def _export_pairs(partial: Path, pairs: pa.Table, shard_rows: int) -> list[Shard]:
    """Writes pair scalars: keys as they are, scalars as float32."""
    scalars = [name for name in pairs.column_names if name not in PAIR_KEYS]
    missing = [name for name in (*PAIR_KEYS, PAIR_DOT) if name not in pairs.column_names]
    strange = [name for name in scalars if name != PAIR_DOT and not name.startswith(PAIR_SCORE)]
    if missing or strange:
        raise ExportError(
            "pair scalars have the wrong columns", where=(missing or strange)[0], got="missing" if missing else "unknown",
            expected=f"{', '.join(PAIR_KEYS)}, {PAIR_DOT}, {PAIR_SCORE}<action>",
        )  # fmt: skip
    for name in PAIR_KEYS:
        if pairs[name].null_count:
            raise ExportError("a key of a scored pair is null", where=name, got=f"{pairs[name].null_count} of {pairs.num_rows} rows")
    columns = {name: pairs[name] for name in PAIR_KEYS} | {name: _finite(pairs, name) for name in scalars}
    table = pa.table(columns)
    batches = table.combine_chunks().to_batches(max_chunksize=row_group_rows(table.num_columns * 2, shard_rows))
    return write_shards(partial, PAIR, table.schema, iter(batches), shard_rows)


def _finite(pairs: pa.Table, name: str) -> pa.Array:
    value_N = np.asarray(pairs[name].to_numpy(), np.float32)  # a null becomes NaN
    bad_N = ~np.isfinite(value_N)
    if bad_N.any():
        row = {key: pairs[key][int(np.flatnonzero(bad_N)[0])].as_py() for key in PAIR_KEYS}
        raise ExportError("a pair scalar is not finite", where=f"{name} of {row}", got=f"{int(bad_N.sum())} of {len(value_N)} rows")
    return pa.array(value_N)


def _write_manifest(partial: Path, manifest: EmbeddingManifest) -> None:
    write_text(partial / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `out` when the block succeeds, and is removed when it does not."""
    partial, aside = (out.with_name(f".{out.name}.{word}") for word in ("partial", "replaced"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise ExportError("the export folder is a file", where=out, remedy="choose another folder")
        with locked(out.with_name(f".{out.name}.lock"), wait_s=0) as held:
            if not held:
                raise ExportError("another export is writing to this folder", where=out, remedy="wait for it, or choose another folder")
            if aside.exists() and not out.exists():
                aside.rename(out)  # a process was killed between the two renames below
            for leftover in (partial, aside):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                _replace(out, partial, aside)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ExportError(
            "the embeddings cannot be written", where=error.filename or out, got=error.strerror or error,
            remedy="free some space and start again" if full else "check the folder and its file system",
        ) from error  # fmt: skip


def _replace(out: Path, partial: Path, aside: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    out.rename(aside)
    try:
        partial.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
