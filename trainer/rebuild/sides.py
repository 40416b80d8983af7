"""Side tables: static facts, or histories of facts joined as they were known at the request."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.errors import ConfigError, DataError, nearest
from trainer.logs.conform import ARROW_TYPES, INTEGER, REAL, TEXT, Finding, conform, declared_type, logical_type
from trainer.logs.normalise import feature_values, instant_ms
from trainer.rebuild.order import GroupedTimes
from trainer.schema.examples import FEATURE
from trainer.schema.expression import columns_of
from trainer.schema.logs import LogSpec, SideTableSpec


@dataclass(frozen=True)
class SideTable:
    """A side table in memory.

    Attributes:
        entity: ``user`` or ``item``.
        keys: Distinct ids.
        columns: Feature -> values, one a row of the file; a vector's numbers and a list's values one by one.
        row_of_key: Row of each key, for a static table.
        history: Rows by (key, valid_from), for a history.
    """

    entity: str
    keys: pa.Array
    columns: dict[str, pa.Array]
    row_of_key: np.ndarray
    history: GroupedTimes | None

    def rows(self, ids: pa.ChunkedArray, time_N: np.ndarray) -> np.ndarray:
        """Returns the row that each id had at its time; -1 where there is none."""
        keys = self.keys
        if ids.type != keys.type:  # ids that one side writes as text and the other as integers
            ids, keys = ids.cast(pa.string()), keys.cast(pa.string())
        key_N = np.asarray(pc.fill_null(pc.index_in(ids, value_set=keys), -1), np.int64)
        if self.history is None:
            return np.where(key_N >= 0, np.r_[self.row_of_key, -1][key_N], -1)
        until_N = self.history.up_to(key_N, time_N)
        known_N = (key_N >= 0) & (until_N > self.history.before_group(key_N))
        return np.where(known_N, np.r_[-1, self.history.order_N][until_N], -1)


def side_tables(spec: LogSpec) -> list[SideTable]:
    """Loads the side tables of a log; each file is read once a process.

    Raises:
        ConfigError: If a mapped column is missing.
        DataError: If a file is absent or unreadable, or a static table has two rows for one id.
    """
    return [_load(spec.root, spec.timezone, name, _Hashable(table)) for name, table in spec.side_tables.items()]


def join(table: pa.Table, tables: list[SideTable]) -> pa.Table:
    """Appends the side tables' features (``feature_<name>``) to rows with user, item and request_time."""
    for side in tables:
        row_N = side.rows(table[side.entity], table["request_time"].to_numpy())
        index = pa.array(row_N, mask=row_N < 0)
        for name, values in side.columns.items():
            table = table.append_column(FEATURE + name, values.take(index))
    return table


class _Hashable:
    """A specification as a cache key: dataclasses with dictionaries have no hash of their own."""

    def __init__(self, spec: SideTableSpec) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and other.spec == self.spec

    def __hash__(self) -> int:
        return hash(self.spec.path)


@lru_cache(maxsize=32)
def _load(root: str, zone: str, name: str, boxed: _Hashable) -> SideTable:
    spec, where = boxed.spec, f"data.side_tables.{name}"
    table = _conformed(spec, read_side_file(Path(root) / spec.path, where), f"{where} ({spec.path})")
    findings: list[Finding] = []  # damaged cells of a side table are null; scan does not judge side tables
    columns: dict[str, pa.Array] = {}
    for feature, column in spec.columns.items():
        columns |= feature_values(table, feature, column, zone, findings)
    keys = pc.unique(table[spec.key].combine_chunks())
    key_M = np.asarray(pc.index_in(table[spec.key], value_set=keys), np.int64)
    if spec.valid_from is not None:
        valid = instant_ms(table, spec.valid_from, zone)
        never = np.iinfo(np.int64).max // 4  # a row without validity is never seen
        since_M = np.where(valid.valid_N, valid.value_N, never)
        return SideTable(spec.entity, keys, columns, key_M, GroupedTimes(key_M, since_M, ties=lambda _: []))
    if len(keys) != len(table):
        raise DataError(
            "a static side table has several rows for one id",
            where=f"{where} ({spec.path})",
            got=f"{len(table)} rows, {len(keys)} ids",
            remedy="give valid_from if the rows are a history",
        )
    return SideTable(spec.entity, keys, columns, np.argsort(key_M), None)


def _conformed(spec: SideTableSpec, raw: pa.Table, where: str) -> pa.Table:
    """Returns the mapped columns of a side table's rows that have an id."""
    source = {spec.key, *(column for feature, value in spec.columns.items() for column in columns_of(value.expression or feature))}
    if spec.valid_from is not None:
        source |= {spec.valid_from.column} if spec.valid_from.column else columns_of(spec.valid_from.expression or "0")
    for column in sorted(source):
        if column not in raw.column_names:
            raise ConfigError("a side table lacks a mapped column", where=where, got=column, remedy=nearest(column, raw.column_names))
    types = {column: logical_type(raw.schema.field(column).type) for column in sorted(source)}
    listed = {column.expression or feature: column for feature, column in spec.columns.items() if column.is_listed}
    types = {column: kind if kind in ARROW_TYPES or column in listed else REAL for column, kind in types.items()}
    types |= {name: declared_type(types[name], column) for name, column in listed.items()}
    types[spec.key] = TEXT if types[spec.key] == TEXT else INTEGER
    table, damaged = conform(raw, types)
    _check_lists(listed, table, damaged, where)
    return table.filter(table[spec.key].is_valid())


def _check_lists(listed: Collection[str], table: pa.Table, damaged: list[Finding], where: str) -> None:
    """Refuses a column in which no cell is a list, or a vector of the declared width."""
    for finding in damaged:
        if finding.feature in listed and table[finding.feature].null_count == len(table):
            remedy = "declare its kind (list, vector) and width as they are, or map another column"
            raise ConfigError(
                "a column of a side table is not what is declared", where=where, got=f"{finding.feature}: {finding.evidence}", remedy=remedy
            )


def read_side_file(path: Path, where: str) -> pa.Table:
    """Reads a Parquet file beside the log.

    Raises:
        DataError: If it is absent or damaged.
    """
    try:
        return pq.ParquetFile(io.BytesIO(path.read_bytes()), page_checksum_verification=True).read()
    except (OSError, pa.ArrowInvalid) as error:
        remedy = "check data.root and the path"
        raise DataError("cannot read a table beside the log", where=f"{where}: {path}", got=str(error), remedy=remedy) from error
