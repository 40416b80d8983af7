"""The export stage: vectors and pair scalars become a verified folder, visible as a whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import ExportConfig
from trainer.errors import ExportError
from trainer.export.shards import ShardWriter, row_group_rows, vector_batch, vector_schema, wide_batch, wide_schema
from trainer.export.vectors import RepeatFinder, Tally, checked_blocks, regrouped
from trainer.schema.embeddings import (
    ITEM,
    MANIFEST,
    PAIR,
    PAIR_DOT,
    PAIR_KEYS,
    PAIR_SCORE,
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
        pairs: Scored holdout rows: user, item, time, dot, score_<action>.

    Returns:
        The manifest, which was written last.

    Raises:
        ExportError: If a vector is not finite, an entity comes twice or has the wrong width, too many vectors are zero, too few
            holdout rows are covered, another export writes to `out`, or the disk refuses. `out` is as it was before.
    """
    if not config.entities and pairs is None:
        raise ExportError("nothing to export", where="export.entities", got="[]", remedy="name user, item or both")
    if strange := sorted(set(holdout or ()) - {USER, ITEM}):
        raise ExportError("coverage of something that has no vectors", where=strange[0], expected=f"{USER}, {ITEM}")
    if source.dim < 1:
        raise ExportError("vectors without a dimension", got=source.dim, expected="at least 1")
    with _staging(out) as partial:
        manifest = EmbeddingManifest(
            space_id=space_id, producer=producer, parent=parent, as_of=as_of, dim=source.dim, entities={}, shards={}
        )
        for entity in config.entities:
            blocks = source.user_vectors() if entity == USER else source.item_vectors()
            _export_entity(partial, blocks, entity, manifest, config, (holdout or {}).get(entity))
        if pairs is not None:
            manifest.shards[PAIR] = _export_pairs(partial, pairs, config.shard_rows)
            manifest.entities[PAIR] = pairs.num_rows
        sync_tree(partial)
        write_text(partial / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n")
    return manifest


def _export_entity(
    partial: Path,
    blocks: Iterator[VectorBlock],
    entity: str,
    manifest: EmbeddingManifest,
    config: ExportConfig,
    holdout: pa.Array | pa.ChunkedArray | None,
) -> None:
    """Writes one entity and enters it in the manifest."""
    dim = manifest.dim
    tally, writers = Tally(entity, holdout), _Views(partial, entity, dim, config)
    repeats = RepeatFinder(partial / _HASHES)
    try:
        for block in regrouped(checked_blocks(blocks, entity, dim), row_group_rows(dim, config.shard_rows)):
            tally.add(block)
            repeats.add(block.ids)
            writers.write(block)
        shards = writers.close()
        repeated = repeats.repeated_hashes()
    finally:
        writers.abandon()
        repeats.close()
    tally.check(config.min_coverage, config.max_zero_share)
    if len(repeated):
        _refuse_repeats(partial, shards[entity], entity, repeated)
    manifest.entities[entity], manifest.norms[entity] = tally.rows, tally.norms
    manifest.shards.update(shards)
    if tally.coverage is not None:
        manifest.coverage[entity] = tally.coverage


class _Views:
    """The vector view of an entity and, if wanted, the wide one, written side by side."""

    def __init__(self, root: Path, entity: str, dim: int, config: ExportConfig) -> None:
        self._root, self._entity, self._dim, self._config = root, entity, dim, config
        self._writers: dict[str, ShardWriter] = {}
        self._schemas: dict[str, pa.Schema] = {}

    def write(self, block: VectorBlock) -> None:
        if not self._writers:
            self._start(block.ids.type)
        for view, writer in self._writers.items():
            make = vector_batch if view == self._entity else wide_batch
            writer.write(make(self._schemas[view], block.ids, block.vectors_MD))

    def close(self) -> dict[str, list[Shard]]:
        return {view: writer.close() for view, writer in self._writers.items()}

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def _start(self, id_type: pa.DataType) -> None:
        self._schemas = {self._entity: vector_schema(id_type, self._dim)}
        if self._config.wide:
            self._schemas[self._entity + WIDE] = wide_schema(id_type, self._dim)
        for view, schema in self._schemas.items():
            self._writers[view] = ShardWriter(self._root, view, schema, self._config.shard_rows)


def _refuse_repeats(root: Path, shards: list[Shard], entity: str, repeated: np.ndarray) -> None:
    """Raises an ExportError if among the ids with a repeated hash one truly comes twice."""
    suspects = []
    for shard in shards:
        for batch in pq.ParquetFile(root / shard.path).iter_batches(columns=["id"]):
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
    writer = ShardWriter(partial, PAIR, table.schema, shard_rows)
    try:
        for batch in table.combine_chunks().to_batches(max_chunksize=row_group_rows(table.num_columns * 2, shard_rows)):
            writer.write(batch)
        return writer.close()
    finally:
        writer.abandon()


def _finite(pairs: pa.Table, name: str) -> pa.Array:
    value_N = np.asarray(pairs[name].to_numpy(), np.float32)  # a null becomes NaN
    bad_N = ~np.isfinite(value_N)
    if bad_N.any():
        row = {key: pairs[key][int(np.flatnonzero(bad_N)[0])].as_py() for key in PAIR_KEYS}
        raise ExportError("a pair scalar is not finite", where=f"{name} of {row}", got=f"{int(bad_N.sum())} of {len(value_N)} rows")
    return pa.array(value_N)


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
