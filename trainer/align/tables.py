"""Reads any table of ids and vectors: an export's folder, or Parquet files of another team.

Tables are read block by block. Held are eight bytes an entity (the hashes of the ids, to draw from and to find repeats) and the
vectors of the entities that are compared, at most `MAX_ENTITIES` a table, whatever its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.align.compare import Pairs
from trainer.errors import DataError
from trainer.schema.ids import hash_ids, plain_ids

MAX_ENTITIES = 50_000  # drawn by hash, so the same entities are drawn from both sides and from every later version
_WIDE = re.compile(r"^(.*?)(\d+)$")
_BLOCK_BYTES, _READ_BYTES = 4 << 20, 1 << 18  # of a block of rows; of a column that is read ahead
_MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class VectorTable:
    """Ids (int64 or string), vectors float32 or float64 [M, D], and where they come from.

    `not_finite` counts the vectors with a NaN or an infinity in the whole table, of which these may be a draw of `total`.
    """

    ids: pa.Array
    vectors_MD: np.ndarray
    source: str
    not_finite: int = 0
    total: int = 0


@dataclass(frozen=True)
class VectorFile:
    """A table of vectors on disk.

    Attributes:
        source: Where it lies, for messages.
        files: Its Parquet files, in order.
        id_column: Column of the ids.
        vector_columns: One list or binary column, or one column a coordinate in the order of their numbers.
    """

    source: str
    files: list[Path]
    id_column: str
    vector_columns: list[str]

    def hashes(self) -> np.ndarray:
        """Returns the hash of every id, uint64 [M].

        Raises:
            DataError: If the table cannot be read, an id is null or comes twice.
        """
        hash_M = np.concatenate([hash_ids(ids) for ids in self._ids()] or [np.zeros(0, np.uint64)])
        sorted_M = np.sort(hash_M)
        twice = sorted_M[1:][sorted_M[1:] == sorted_M[:-1]]
        if len(twice):  # rarely, two strings share a hash
            suspects = pa.concat_arrays([ids.filter(pa.array(np.isin(hash_ids(ids), twice))) for ids in self._ids()])
            if repeated := len(suspects) - len(pc.unique(suspects)):
                raise DataError("an id comes more than once", where=f"{self.source}, {self.id_column}", got=f"{repeated} repeated rows")
        return hash_M

    def blocks(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yields ids and vectors [M, D], block by block, in the order of the files.

        Raises:
            DataError: If the table cannot be read, an id or a vector is null, or vectors differ in width.
        """
        width, kind = None, None
        for batch in self._batches([self.id_column, *self.vector_columns]):
            ids, vectors_MD = self._plain(batch.column(0)), self._vectors(batch)
            if width not in (None, vectors_MD.shape[1]):
                raise DataError("vectors differ in width", where=self.source, got=f"widths {sorted([width, vectors_MD.shape[1]])}")
            if kind not in (None, ids.type):
                raise DataError("ids are of different types", where=f"{self.source}, {self.id_column}", got=ids.type, expected=kind)
            width, kind = vectors_MD.shape[1], ids.type
            yield ids, vectors_MD
        if width is None:
            raise DataError("the table has no rows", where=self.source)

    def read(self, wanted: np.ndarray | None = None) -> VectorTable:
        """Returns the rows whose ids have a wanted hash (sorted uint64), or all; every row is looked at.

        Raises:
            DataError: As `blocks`.
        """
        ids, vectors, not_finite, total = [], [], 0, 0
        for block_ids, vectors_MD in self.blocks():
            not_finite, total = not_finite + int((~np.isfinite(vectors_MD)).any(axis=1).sum()), total + len(block_ids)
            keep_M = np.ones(len(block_ids), bool) if wanted is None else _is_in(hash_ids(block_ids), wanted)
            ids.append(block_ids.filter(pa.array(keep_M)))
            vectors.append(vectors_MD[keep_M])
        return VectorTable(pa.concat_arrays(ids), np.concatenate(vectors), self.source, not_finite, total)

    def lookup(self, ids: pa.Array) -> np.ndarray:
        """Returns the vectors of `ids` as float32 [N, D]; NaN where an id has none.

        Raises:
            DataError: As `blocks`, or if the ids are of another type.
        """
        distinct = pc.unique(ids)
        vectors_UD = np.zeros((0, 0), np.float32)
        for block_ids, vectors_MD in self.blocks():
            if block_ids.type != distinct.type:
                raise DataError(
                    "ids of the live model's rows are of another type", where=self.source, got=ids.type, expected=block_ids.type
                )
            if not vectors_UD.size:
                vectors_UD = np.full((len(distinct), vectors_MD.shape[1]), np.nan, np.float32)
            place_M = pc.index_in(block_ids, value_set=distinct)
            vectors_UD[place_M.drop_null().to_numpy()] = vectors_MD[np.asarray(place_M.is_valid())]
        return vectors_UD[pc.index_in(ids, value_set=distinct).to_numpy(zero_copy_only=False)]

    def _ids(self) -> Iterator[pa.Array]:
        for batch in self._batches([self.id_column]):
            yield self._plain(batch.column(0))

    def _plain(self, column: pa.Array) -> pa.Array:
        ids = plain_ids(column)
        if ids.null_count:
            raise DataError("an id is null", where=f"{self.source}, {self.id_column}", got=f"{ids.null_count} nulls")
        return ids

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in self.files:
            with _readable(path), pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=_READ_BYTES) as file:
                if missing := sorted(set(columns) - set(file.schema_arrow.names)):
                    raise DataError("no such column", where=f"{path}, {missing[0]}", expected=f"the columns of {self.files[0]}")
                blocks = file.iter_batches(_rows_at_a_time(file.metadata), columns=columns)
                yield from (batch.select(columns) for batch in blocks if batch.num_rows)

    def _vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        first, where = batch.column(1), f"{self.source}, {self.vector_columns[0]}"
        if _is_list(first.type):
            return _from_lists(first, where)
        if pa.types.is_fixed_size_binary(first.type):
            return _from_bytes(first, where)
        return np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns[1:]], axis=1)


def open_table(path: Path, entity: str | None = None, id_column: str | None = None) -> VectorFile:
    """Finds out where ids and vectors are.

    Args:
        path: A Parquet file, or a folder of Parquet files (say ``embeddings/item`` of an export). The vector is one list column, one
            fixed-size binary column of float32, or columns that are numbered (``e000``, ``e001``, ...).
        entity: Subfolder, if `path` is an export.
        id_column: Name of the id column; by default ``id``, else the first column that is an integer or a string.

    Raises:
        DataError: If there is no file, no id or no vector column.
    """
    folder = path / entity if entity is not None and (path / entity).is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files or not files[0].is_file():
        inside = sorted(below.name for below in folder.iterdir() if any(below.glob("*.parquet"))) if folder.is_dir() else []
        remedy = f"name one of its folders: entity={inside[0]} ({', '.join(inside)})" if inside else None
        raise DataError("no table of vectors", where=folder, expected="a Parquet file, or a folder of them", remedy=remedy)
    with _readable(files[0]):
        schema = pq.read_schema(files[0])
    name = id_column or _id_column(schema, folder)
    if name not in schema.names:
        raise DataError("no such column", where=f"{folder}, {name}", got=", ".join(schema.names[:8]), remedy="give id_column=...")
    return VectorFile(str(folder), files, name, _vector_columns(schema.remove(schema.get_field_index(name)), folder))


def read_table(path: Path, entity: str | None = None, id_column: str | None = None) -> VectorTable:
    """Returns a whole table; arguments as `open_table`.

    Raises:
        DataError: If it cannot be read, an id is null or comes twice, or vectors differ in width.
    """
    file = open_table(path, entity, id_column)
    file.hashes()
    return file.read()


def sampled(old: VectorFile, new: VectorFile) -> tuple[VectorTable, VectorTable]:
    """Reads the same entities of both tables: the old ones with the smallest hashes.

    Raises:
        DataError: If a table cannot be read, an id is null or comes twice, or vectors differ in width.
    """
    hash_M = old.hashes()
    new.hashes()
    wanted = np.sort(hash_M if len(hash_M) <= MAX_ENTITIES else np.partition(hash_M, MAX_ENTITIES - 1)[:MAX_ENTITIES])
    return old.read(wanted), new.read(wanted)


def pair(old: VectorTable, new: VectorTable, frequency: Callable[[pa.Array], np.ndarray] | None = None) -> Pairs:
    """Brings both tables to the same entities, in an order and with halves that depend on nothing but the ids.

    Args:
        old: Vectors that consumers know.
        new: Vectors to come.
        frequency: Ids -> rows of each in the log, where somebody knows them: the report then tells frequent entities from rare ones.

    Raises:
        DataError: If the ids are of different types, or no id is in both.
    """
    if old.ids.type != new.ids.type:
        raise DataError("ids are of different types", where=new.source, got=new.ids.type, expected=f"{old.ids.type} as in {old.source}")
    hash_M = hash_ids(old.ids)
    order_M = np.argsort(hash_M, kind="stable")[:MAX_ENTITIES]
    place_E = pc.index_in(old.ids.take(pa.array(order_M)), value_set=new.ids)
    kept_E = np.asarray(place_E.is_valid())
    if not kept_E.any():
        raise DataError("no id is in both tables", where=new.source, expected=f"ids of {old.source}", remedy="compare the same entity")
    old_rows_E = order_M[kept_E]
    drawn = len(order_M) / max(1, old.total, len(old.ids))
    # Rows are in the order of their hash, so every second one is a random half.
    return Pairs(
        old.vectors_MD[old_rows_E], new.vectors_MD[place_E.drop_null().to_numpy()],
        half_E=np.arange(len(old_rows_E)) % 2 == 0, lost=1 - float(kept_E.mean()),
        not_finite=new.not_finite / max(1, new.total), drawn=drawn,
        bucket_E=None if frequency is None else _power_of_ten(frequency(old.ids.take(pa.array(old_rows_E)))),
    )  # fmt: skip


def _power_of_ten(rows_E: np.ndarray) -> np.ndarray:
    return np.where(rows_E > 0, np.floor(np.log10(np.maximum(rows_E, 1))), -1).astype(np.int64)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read the vectors", where=path, got=str(error).splitlines()[0], remedy="write the file again") from error


def _is_in(hash_M: np.ndarray, sorted_E: np.ndarray) -> np.ndarray:
    """Returns bool [M]: which hashes are among the sorted ones, which are not sorted again for every block."""
    if not len(sorted_E):
        return np.zeros(len(hash_M), bool)
    return sorted_E[np.minimum(np.searchsorted(sorted_E, hash_M), len(sorted_E) - 1)] == hash_M


def _rows_at_a_time(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    bytes_a_row = max(1.0, sum(groups) / max(1, metadata.num_rows))
    return int(min(_MOST_ROWS, max(1, _BLOCK_BYTES // bytes_a_row)))


def _id_column(schema: pa.Schema, folder: Path) -> str:
    if "id" in schema.names:
        return "id"
    for field in schema:
        if pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            return str(field.name)
    raise DataError("no id column", where=folder, got=", ".join(schema.names[:8]), expected="id", remedy="give id_column=...")


def _vector_columns(schema: pa.Schema, folder: Path) -> list[str]:
    """Returns the one list or binary column, or the numbered float columns of one stem; others (a count, a date) are left out."""
    whole = [field.name for field in schema if _is_list(field.type) or pa.types.is_fixed_size_binary(field.type)]
    if len(whole) > 1:
        raise DataError("several vector columns", where=folder, got=", ".join(whole), remedy="keep one in the file")
    if whole:
        return whole
    stems: dict[str, list[tuple[int, str]]] = {}
    for field in schema:
        match = _WIDE.match(field.name)
        if match and pa.types.is_floating(field.type):
            stems.setdefault(match[1], []).append((int(match[2]), field.name))
    if not stems:
        raise DataError(
            "no vector column", where=folder, got=", ".join(schema.names[:8]),
            expected="a list column, or float columns e000, e001, ...",
        )  # fmt: skip
    columns: Sequence[tuple[int, str]] = max(stems.values(), key=len)
    return [name for _, name in sorted(columns)]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _refuse_nulls(column: pa.Array, where: str) -> None:
    if column.null_count:
        raise DataError("a vector is null", where=where, got=f"{column.null_count} nulls", remedy="leave out entities without a vector")


def _from_bytes(column: pa.Array, where: str) -> np.ndarray:
    _refuse_nulls(column, where)
    if column.type.byte_width % 4:
        raise DataError("not the bytes of float32 vectors", where=where, got=f"{column.type.byte_width} bytes", expected="a multiple of 4")
    start = column.offset * column.type.byte_width
    dim = column.type.byte_width // 4
    return np.frombuffer(column.buffers()[1], "<f4", count=len(column) * dim, offset=start).reshape(len(column), dim)


def _from_lists(column: pa.Array, where: str) -> np.ndarray:
    _refuse_nulls(column, where)
    widths = pc.unique(pc.list_value_length(column))
    if len(widths) != 1:
        raise DataError("vectors differ in width", where=where, got=f"widths {sorted(widths.to_pylist())[:5]}")
    flat = column.flatten()
    if not pa.types.is_floating(flat.type):
        raise DataError("vectors are not floating point", where=where, got=flat.type)
    if pa.types.is_float16(flat.type):
        flat = flat.cast(pa.float32())
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
