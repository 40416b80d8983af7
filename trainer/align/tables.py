"""Reads any table of ids and vectors: an export's folder, or one Parquet file of another team."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.align.compare import Pairs
from trainer.errors import DataError
from trainer.schema.ids import hash_ids, plain_ids

MAX_ENTITIES = 200_000  # drawn by hash, so the same entities are drawn from both sides and from every later version
_WIDE = re.compile(r"^(.*?)(\d+)$")


@dataclass(frozen=True)
class VectorTable:
    """Ids (int64 or string), vectors float32 or float64 [M, D], and where they come from."""

    ids: pa.Array
    vectors_MD: np.ndarray
    source: str


def read_table(path: Path, entity: str | None = None, id_column: str | None = None) -> VectorTable:
    """Reads ids and vectors.

    Args:
        path: A Parquet file, or a folder of Parquet files (say ``embeddings/item`` of an export). The vector is one list column, one
            fixed-size binary column of float32, or columns that are numbered (``e000``, ``e001``, ...).
        entity: Subfolder, if `path` is an export.
        id_column: Name of the id column; by default ``id``, else the first column that is an integer or a string.

    Raises:
        DataError: If there is no file, no id or no vector column, an id is null or comes twice, or vectors differ in width.
    """
    folder = path / entity if entity is not None and (path / entity).is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files or not files[0].is_file():
        raise DataError("no table of vectors", where=folder, expected="a Parquet file, or a folder of them")
    try:
        table = pa.concat_tables([pq.read_table(file, page_checksum_verification=True) for file in files])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read the vectors", where=folder, got=str(error).splitlines()[0], remedy="write the file again") from error
    name = id_column or _id_column(table, folder)
    if name not in table.column_names:
        raise DataError("no such column", where=f"{folder}, {name}", got=", ".join(table.column_names[:8]), remedy="give id_column=...")
    ids = plain_ids(table[name])
    if ids.null_count:
        raise DataError("an id is null", where=f"{folder}, {name}", got=f"{ids.null_count} nulls")
    if repeated := len(ids) - len(pc.unique(ids)):
        raise DataError("an id comes more than once", where=f"{folder}, {name}", got=f"{repeated} repeated rows")
    return VectorTable(ids, _vectors(table.drop_columns([name]), folder), str(folder))


def pair(old: VectorTable, new: VectorTable) -> Pairs:
    """Brings both tables to the same entities, in an order and with halves that depend on nothing but the ids.

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
    # Rows are in the order of their hash, so every second one is a random half.
    return Pairs(
        old.vectors_MD[old_rows_E], new.vectors_MD[place_E.drop_null().to_numpy()],
        half_E=np.arange(len(old_rows_E)) % 2 == 0, lost=1 - float(kept_E.mean()),
    )  # fmt: skip


def _id_column(table: pa.Table, folder: Path) -> str:
    if "id" in table.column_names:
        return "id"
    for field in table.schema:
        if pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            return str(field.name)
    raise DataError("no id column", where=folder, got=", ".join(table.column_names[:8]), expected="id", remedy="give id_column=...")


def _vectors(table: pa.Table, folder: Path) -> np.ndarray:
    lists = [field.name for field in table.schema if _is_list(field.type)]
    packed = [field.name for field in table.schema if pa.types.is_fixed_size_binary(field.type)]
    if len(lists) + len(packed) > 1:
        raise DataError("several vector columns", where=folder, got=", ".join([*lists, *packed]), remedy="keep one in the file")
    if lists:
        return _from_lists(table[lists[0]].combine_chunks(), f"{folder}, {lists[0]}")
    if packed:
        column = table[packed[0]].combine_chunks()
        raw = column.buffers()[1][column.offset * column.type.byte_width :][: len(column) * column.type.byte_width]
        return np.frombuffer(raw, "<f4").reshape(len(column), -1)
    return _from_columns(table, folder)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _from_lists(column: pa.Array, where: str) -> np.ndarray:
    if column.null_count:
        raise DataError("a vector is null", where=where, got=f"{column.null_count} nulls", remedy="leave out entities without a vector")
    widths = pc.unique(pc.list_value_length(column))
    if len(widths) != 1:
        raise DataError("vectors differ in width", where=where, got=f"widths {sorted(widths.to_pylist())[:5]}")
    flat = column.flatten()
    if not pa.types.is_floating(flat.type):
        raise DataError("vectors are not floating point", where=where, got=flat.type)
    if pa.types.is_float16(flat.type):
        flat = flat.cast(pa.float32())
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _from_columns(table: pa.Table, folder: Path) -> np.ndarray:
    """Numbered float columns of one stem, in the order of their numbers; other columns (a count, a date) are left out."""
    stems: dict[str, list[tuple[int, str]]] = {}
    for field in table.schema:
        match = _WIDE.match(field.name)
        if match and pa.types.is_floating(field.type):
            stems.setdefault(match[1], []).append((int(match[2]), field.name))
    if not stems:
        raise DataError(
            "no vector column", where=folder, got=", ".join(table.column_names[:8]),
            expected="a list column, or float columns e000, e001, ...",
        )  # fmt: skip
    columns: Sequence[tuple[int, str]] = max(stems.values(), key=len)
    return np.stack([table[name].to_numpy() for _, name in sorted(columns)], axis=1)
