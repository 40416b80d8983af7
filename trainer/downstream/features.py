"""From Arrow columns to the 2-D float32 matrix that gradient-boosted trees take.

LightGBM aborts the whole process on an Arrow column of fixed-size lists or half floats, so no Arrow table ever reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError, DataError, nearest
from trainer.schema.embeddings import wide_names

NUMERIC = "numeric"
CATEGORICAL = "categorical"
VECTOR = "vector"
KINDS = (NUMERIC, CATEGORICAL, VECTOR)

_MAX_CODE = 1 << 24  # float32 holds every integer up to here


@dataclass(frozen=True)
class Features:
    """A feature matrix.

    Attributes:
        names: Name of each column; vectors are spread out (`trainer.schema.embeddings.wide_names`).
        values_NF: float32 [N, F]; NaN is missing.
        categorical: Columns that hold integer codes.
    """

    names: list[str]
    values_NF: np.ndarray
    categorical: list[int]

    def __post_init__(self) -> None:
        if self.values_NF.ndim != 2 or self.values_NF.dtype != np.float32 or self.values_NF.shape[1] != len(self.names):
            got = f"{self.values_NF.dtype} {list(self.values_NF.shape)}"
            raise DataError("not a feature matrix", got=got, expected=f"float32 [rows, {len(self.names)}]")

    def rows(self, keep_N: np.ndarray) -> Features:
        """Returns the rows that a mask or an index selects."""
        return Features(self.names, self.values_NF[keep_N], self.categorical)


@dataclass(frozen=True)
class Encoder:
    """Turns columns into features; codes of categories come from the rows it was fitted on and from no others.

    Attributes:
        kinds: Column -> numeric, categorical or vector.
        categories: Categorical column -> values, most frequent first; a value's position is its code.
    """

    kinds: dict[str, str]
    categories: dict[str, pa.Array]

    @classmethod
    def fit(cls, table: pa.Table, columns: Sequence[str]) -> Encoder:
        """Learns the categories of `columns`: floats and booleans are numeric, strings and integers categorical, lists vectors.

        Raises:
            ConfigError: If there is no column, or one is absent or named twice.
            DataError: If a column has a type that cannot be a feature.
        """
        check_columns(table, columns)
        kinds = {name: kind_of(table.schema.field(name)) for name in columns}
        categories = {name: _categories(_decoded(table[name]), name) for name, kind in kinds.items() if kind == CATEGORICAL}
        return cls(kinds, categories)

    def encode(self, table: pa.Table) -> Features:
        """Returns the features of `table`; null and unknown values are missing.

        Raises:
            ConfigError: If a column is absent.
            DataError: If a column has another type than it had when fitted, or a value is infinite.
        """
        check_columns(table, list(self.kinds))
        names: list[str] = []
        parts: list[np.ndarray] = []
        categorical: list[int] = []
        for name, kind in self.kinds.items():
            if (got := kind_of(table.schema.field(name))) != kind:
                raise DataError("a feature changed its type", where=name, got=got, expected=kind)
            if kind == CATEGORICAL:
                categorical.append(len(names))
                parts.append(self._codes(table[name], name)[:, None])
            else:
                parts.append(numbers(table[name], name))
            names += [name] if kind != VECTOR else wide_names(parts[-1].shape[1], f"{name}_")
        return Features(names, np.concatenate(parts, axis=1), categorical)

    def _codes(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        values = _decoded(column)
        if values.type != self.categories[name].type:
            raise DataError("a feature changed its type", where=name, got=values.type, expected=self.categories[name].type)
        code_N = pc.index_in(values, value_set=self.categories[name]).cast(pa.float32())
        return code_N.to_numpy(zero_copy_only=False).astype(np.float32)


def check_columns(table: pa.Table, columns: Sequence[str]) -> None:
    """Refuses columns that are absent or named twice, and no columns at all.

    Raises:
        ConfigError: In those cases.
    """
    if not columns:
        raise ConfigError("the downstream model has no features", expected="at least one column")
    for name in columns:
        if name not in table.column_names:
            raise ConfigError("a feature is not in the table", got=name, remedy=nearest(name, table.column_names))
    if len(set(columns)) != len(columns):
        raise ConfigError("a feature is named twice", got=sorted(name for name in set(columns) if list(columns).count(name) > 1)[0])


def kind_of(field: pa.Field) -> str:
    """Returns what a column is by its type.

    Raises:
        DataError: If such a column cannot be a feature: instants (no model meets the same one again), lists of varying length.
    """
    kind = field.type
    if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        return VECTOR
    if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return NUMERIC
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return CATEGORICAL
    raise DataError(
        "a column cannot be a feature", where=field.name, got=field.type, expected="float, bool, integer, string or fixed_size_list<float>"
    )


def numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Returns a float, boolean, integer or vector column as float32 [N, width]; NaN where null.

    Raises:
        DataError: If a value is infinite, as a float32.
    """
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        value_ND = np.full((len(column), width), np.nan, np.float32)
        known_N = np.asarray(column.is_valid())
        value_ND[known_N] = pc.list_flatten(column.filter(column.is_valid())).to_numpy().reshape(-1, width)
    else:
        value_ND = column.cast(pa.float64()).to_numpy()[:, None]
    with np.errstate(over="ignore"):
        value_ND = np.asarray(value_ND, np.float32)
    infinite_N = np.isinf(value_ND).any(axis=1)
    if infinite_N.any():
        raise DataError("a feature is infinite", where=name, got=f"{int(infinite_N.sum())} of {len(infinite_N)} rows")
    return value_ND


def _decoded(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.int64() if pa.types.is_integer(values.type) else pa.string())


def _categories(values: pa.Array, name: str) -> pa.Array:
    counts = pc.value_counts(values.drop_null())
    if len(counts) >= _MAX_CODE:
        raise DataError("a category has too many values", where=name, got=len(counts), expected=f"fewer than {_MAX_CODE}")
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    return table.sort_by([("count", "descending"), ("value", "ascending")])["value"].combine_chunks()
