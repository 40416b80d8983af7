"""What is remembered of a file's columns: small, mergeable states, from one pass of numpy over Arrow buffers.

Numbers are counted by sign, exponent and the first three bits of the mantissa of their 32-bit form: 4,096 cells that hold zeros,
NaN, infinities, units and quantiles (to 12.5 %) at once, for 4 ns a value. Frequent values are found in a sample and then counted
exactly. Ids keep those whose hash is small: the same ids in every file, so overlap between days can be measured.

Shape suffixes: N rows, C occupied cells, K sampled ids, P sampled (user, value) pairs, H hours of the local day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.logs.hashing import combine
from trainer.schema.ids import hash_ids, splitmix64

CELLS = 1 << 12
_SHIFT = 20  # of 32 bits: sign, 8 of exponent and 3 of mantissa remain
_NEGATIVE, _INFINITE = CELLS // 2, 0x7F8
_SAMPLE = 4_096  # rows in which frequent values are looked for
_FREQUENT = 6
_OWNED_SHARE = 0.02  # of a file's rows: who owns a rarer value is not asked
_OWNED_SAMPLE = 512  # rows of a frequent value in which its item is looked for
_LEAST_SHARE = 0.01
_IDS, _PAIRS = 4_096, 4_096  # sampled ids and rows of sampled users, at most about


@dataclass(frozen=True)
class ColumnState:
    """One column of one file or day.

    Attributes:
        rows: Rows.
        nulls: Null cells.
        cell_C: Occupied cells (uint16); none for text.
        count_C: Values in each.
        minimum: Smallest finite number; 0 for text.
        maximum: Largest finite number.
        top: Frequent values, as text -> rows.
        owners: Value of `top`, of measures and in one row of fifty -> the item, as text, that most of its rows have, and in about how many.
        level: Ids are kept whose hash has this many leading zero bits.
        id_K: Hashes of kept ids, ascending; none for columns that hold no ids.
        id_rows_K: Rows of each.
        pair_level: The same for the users of pairs.
        pair_user_P: Hash of the user.
        pair_P: Hash of (user, value), ascending.
        pair_rows_P: Rows of each.
    """

    rows: int = 0
    nulls: int = 0
    cell_C: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    count_C: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    minimum: float = 0.0
    maximum: float = 0.0
    top: dict[str, int] = field(default_factory=dict)
    owners: dict[str, tuple[str, int]] = field(default_factory=dict)
    level: int = 0
    id_K: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    id_rows_K: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pair_level: int = 0
    pair_user_P: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    pair_P: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    pair_rows_P: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def valid(self) -> int:
        return self.rows - self.nulls

    @property
    def negatives(self) -> int:
        """Values below zero; minus zero is none."""
        return int(self.count_C[self.cell_C > _NEGATIVE].sum())

    def log_quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """Returns quantiles of log2 |x| over finite values other than zero; NaN where there are none."""
        size_C = self.cell_C & (_NEGATIVE - 1)
        use_C = (size_C > 0) & (size_C < _INFINITE)
        if not use_C.any():
            return np.full(len(shares), np.nan)
        order = np.argsort(size_C[use_C], kind="stable")
        size_C, count_C = size_C[use_C][order].astype(np.int64), self.count_C[use_C][order]
        log_C = (size_C >> 3) - 127 + np.log2(1 + (size_C & 7) / 8 + 1 / 16)
        place = np.searchsorted(np.cumsum(count_C), np.asarray(shares) * count_C.sum(), side="left")
        return log_C[np.minimum(place, len(log_C) - 1)]

    def shares(self) -> np.ndarray:
        """Returns the share of values in each cell: float64 [4096]."""
        total = max(int(self.count_C.sum()), 1)
        dense = np.zeros(CELLS)
        dense[self.cell_C] = self.count_C / total
        return dense

    def share_of(self, value: str) -> float:
        """Returns the share of a value among the non-null ones; 0 where it is not frequent."""
        return self.top.get(value, 0) / self.valid if self.valid else 0.0


def column_state(column: pa.Array, user_N: np.ndarray | None, ids: bool, items: pa.Array | None = None) -> ColumnState:
    """Summarises one column.

    Args:
        column: int64, float64, string or bool (as `trainer.logs.conform` leaves them).
        user_N: uint64 hashes of the rows' users; None keeps no pairs of user and number.
        ids: Whether values are ids or categories, whose overlap between days means something.
        items: The rows' items, to tell who brings the frequent values of a measure; None asks no such thing.
    """
    nulls, paired = column.null_count, user_N is not None
    user_N = np.zeros(len(column), np.uint64) if user_N is None else user_N
    valid_N = None if not nulls else np.asarray(column.is_valid())
    if pa.types.is_string(column.type):
        return _text_state(column, valid_N, user_N, ids)
    value_N = _plain(column)
    if valid_N is not None:
        value_N, user_N = value_N[valid_N], user_N[valid_N]
        items = None if items is None else items.filter(pa.array(valid_N))
    cell_C, count_C = _cells(value_N)
    finite = value_N if value_N.dtype.kind == "i" else value_N[np.isfinite(value_N)]
    level, id_K, id_rows_K = _kept(_mixed(value_N), _IDS) if ids else (0, *_NO_IDS)
    pair_level, rows_N = _sampled_users(user_N, _PAIRS) if paired else (0, np.zeros(0, np.int64))
    pairs = _pairs(user_N[rows_N], _mixed(value_N[rows_N]))
    top, owners = _frequent(value_N, items)
    return ColumnState(
        len(column), nulls, cell_C, count_C, float(finite.min()) if len(finite) else 0.0, float(finite.max()) if len(finite) else 0.0,
        top, owners, level, id_K, id_rows_K, pair_level, *pairs,
    )  # fmt: skip


def merged(states: Sequence[ColumnState]) -> ColumnState:
    """Returns the state of all rows together; frequent values that one part did not list count there as absent."""
    if len(states) == 1:
        return states[0]
    dense = np.zeros(CELLS, np.int64)
    top: dict[str, int] = {}
    owners: dict[str, tuple[str, int]] = {}
    for state in states:
        dense[state.cell_C] += state.count_C
        for value, count in state.top.items():
            top[value] = top.get(value, 0) + count
        for value, (item, count) in state.owners.items():
            known, before = owners.get(value, (item, 0))
            owners[value] = (item, before + count) if known == item else max((known, before), (item, count), key=lambda owner: owner[1])
    full = [state for state in states if state.valid] or list(states)
    level, pair_level = max(state.level for state in full), max(state.pair_level for state in full)
    id_K, id_rows_K = _union([(state.id_K, state.id_rows_K) for state in full], level)
    users, hashes, rows = (
        np.concatenate([getattr(state, name)[_below(state.pair_user_P, pair_level)] for state in full])
        for name in ("pair_user_P", "pair_P", "pair_rows_P")
    )
    pair_P, first_P, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return ColumnState(
        sum(state.rows for state in states), sum(state.nulls for state in states), np.flatnonzero(dense).astype(np.uint16),
        dense[dense > 0], min(state.minimum for state in full), max(state.maximum for state in full), top, owners, level, id_K, id_rows_K,
        pair_level, users[first_P], pair_P, np.bincount(inverse, rows, len(pair_P)).astype(np.int64),
    )  # fmt: skip


def match_rate(today: ColumnState, yesterday: ColumnState) -> tuple[float, int]:
    """Returns how often a user's value is one that the same user had before, and the rows in which the user was there before."""
    level = max(today.pair_level, yesterday.pair_level)
    keep_P = _below(today.pair_user_P, level) & np.isin(today.pair_user_P, yesterday.pair_user_P)
    rows_P = today.pair_rows_P[keep_P]
    if not rows_P.sum():
        return 0.0, 0
    return float(rows_P[np.isin(today.pair_P[keep_P], yesterday.pair_P)].sum() / rows_P.sum()), int(rows_P.sum())


def overlap(today: ColumnState, past: Sequence[ColumnState]) -> tuple[float, int]:
    """Returns the share of rows whose id was there on a past day, and the rows that were looked at."""
    level = max([today.level, *(state.level for state in past)])
    keep_K = _below(today.id_K, level)
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *(state.id_K for state in past)]))
    rows_K = today.id_rows_K[keep_K]
    if not rows_K.sum():
        return 0.0, 0
    return float(rows_K[np.isin(today.id_K[keep_K], known)].sum() / rows_K.sum()), int(rows_K.sum())


def as_text(value: object) -> str:
    """Names a value in the way in which frequent ones are listed: briefly where that loses nothing, for rules find cells by it."""
    if not isinstance(value, float):
        return str(value)
    brief = f"{value:.9g}"
    return brief if float(brief) == value else repr(value)


def value_hashes(column: pa.Array) -> np.ndarray:
    """Returns uint64 [N] hashes of a column's cells; nulls hash alike."""
    if pa.types.is_string(column.type):
        coded = column.dictionary_encode()
        hash_D = hash_ids(coded.dictionary) if len(coded.dictionary) else np.zeros(1, np.uint64)
        return hash_D[np.asarray(pc.fill_null(coded.indices, 0), np.int64)]
    return _mixed(_plain(column))


def _plain(column: pa.Array) -> np.ndarray:
    """Returns numbers without copying where there is no null; what stands in null cells does not matter."""
    if pa.types.is_boolean(column.type) or pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if not len(column):
        return np.zeros(0, column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())[column.offset : column.offset + len(column)]


def _cells(value_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        bits_N = value_N.astype(np.float32).view(np.uint32)
    dense = np.bincount((bits_N >> np.uint32(_SHIFT)).astype(np.int64), minlength=CELLS)
    cells = np.flatnonzero(dense)
    return cells.astype(np.uint16), dense[cells]


def _frequent(value_N: np.ndarray, items: pa.Array | None) -> tuple[dict[str, int], dict[str, tuple[str, int]]]:
    """Counts the values that a sample shows to be frequent, and finds the items that own them."""
    if not len(value_N):
        return {}, {}
    sample = value_N[:: max(len(value_N) // _SAMPLE, 1)]
    values, counts = np.unique(sample, return_counts=True)
    best = np.argsort(-counts, kind="stable")[:_FREQUENT]
    top, owners = {}, {}
    for value in values[best[counts[best] >= max(_LEAST_SHARE * len(sample), 2)]].tolist():
        if value == value:
            is_N = value_N == value
            top[as_text(value)] = rows = int(np.count_nonzero(is_N))
            if items is not None and rows >= _OWNED_SHARE * len(value_N) and (owner := _owner(items, np.flatnonzero(is_N))) is not None:
                owners[as_text(value)] = owner
    return top, owners


def _owner(items: pa.Array, row_M: np.ndarray) -> tuple[str, int] | None:
    """Returns the item that most of some rows have, and in about how many of them; from a sample of these rows."""
    chosen = items.take(pa.array(row_M[:: max(len(row_M) // _OWNED_SAMPLE, 1)])).value_counts()
    most = int(np.argmax(chosen.field("counts").to_numpy()))
    share = chosen.field("counts")[most].as_py() / max(sum(chosen.field("counts").to_pylist()), 1)
    return (str(chosen.field("values")[most].as_py()), round(share * len(row_M))) if share > 0.5 else None


def _text_state(column: pa.Array, valid_N: np.ndarray | None, user_N: np.ndarray, ids: bool) -> ColumnState:
    coded = column.dictionary_encode()
    indices = coded.indices if valid_N is None else coded.indices.drop_null()
    code_N = np.asarray(indices, np.int64)
    user_N = user_N if valid_N is None else user_N[valid_N]
    hash_D = hash_ids(coded.dictionary) if len(coded.dictionary) else np.zeros(0, np.uint64)
    count_D = np.bincount(code_N, minlength=len(hash_D))
    best = np.argsort(-count_D, kind="stable")[:_FREQUENT]
    best = best[count_D[best] >= max(_LEAST_SHARE * len(code_N), 1)]
    top = {coded.dictionary[int(index)].as_py(): int(count_D[index]) for index in best}
    level, id_K, id_rows_K = _kept_counts(hash_D, count_D, _IDS) if ids else (0, *_NO_IDS)
    pair_level, rows_N = _sampled_users(user_N, _PAIRS)
    pairs = _pairs(user_N[rows_N], hash_D[code_N[rows_N]])
    return ColumnState(
        rows=len(column), nulls=column.null_count, top=top, level=level, id_K=id_K, id_rows_K=id_rows_K, pair_level=pair_level,
        pair_user_P=pairs[0], pair_P=pairs[1], pair_rows_P=pairs[2],
    )  # fmt: skip


_NO_IDS = (np.zeros(0, np.uint64), np.zeros(0, np.int64))


def _mixed(value_N: np.ndarray) -> np.ndarray:
    """Hashes numbers by their 64 bits; a real and an integer of the same value hash differently, a column has one type."""
    return splitmix64(np.ascontiguousarray(value_N).view(np.uint64))


def _below(hash_N: np.ndarray, level: int) -> np.ndarray:
    return hash_N >> np.uint64(64 - level) == 0 if level else np.ones(len(hash_N), bool)


def _kept(hash_N: np.ndarray, most: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Thins ids until few enough rows are left, then counts."""
    level = max(int(np.ceil(np.log2(max(len(hash_N), 1) / (8 * most)))), 0)
    hash_K, rows_K = np.unique(hash_N[_below(hash_N, level)], return_counts=True)
    return _thinned(level, hash_K, rows_K, most)


def _kept_counts(hash_D: np.ndarray, count_D: np.ndarray, most: int) -> tuple[int, np.ndarray, np.ndarray]:
    order = np.argsort(hash_D)
    return _thinned(0, hash_D[order], count_D[order], most)


def _thinned(level: int, hash_K: np.ndarray, rows_K: np.ndarray, most: int) -> tuple[int, np.ndarray, np.ndarray]:
    while len(hash_K) > most:
        level += 1
        keep_K = _below(hash_K, level)
        hash_K, rows_K = hash_K[keep_K], rows_K[keep_K]
    return level, hash_K, rows_K.astype(np.int64)


def _union(parts: Sequence[tuple[np.ndarray, np.ndarray]], level: int) -> tuple[np.ndarray, np.ndarray]:
    kept = [(ids[_below(ids, level)], rows[_below(ids, level)]) for ids, rows in parts]
    hash_K, inverse = np.unique(np.concatenate([ids for ids, _ in kept]), return_inverse=True)
    return hash_K, np.bincount(inverse, np.concatenate([rows for _, rows in kept]), len(hash_K)).astype(np.int64)


def _sampled_users(user_N: np.ndarray, most: int) -> tuple[int, np.ndarray]:
    """Returns the level that leaves about `most` rows, and those rows; all rows of a user, or none."""
    level = max(int(np.ceil(np.log2(max(len(user_N), 1) / most))), 0)
    return level, np.flatnonzero(_below(user_N, level))


def _pairs(user_M: np.ndarray, value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pair_P, first_P, rows_P = np.unique(combine(user_M, value_M), return_index=True, return_counts=True)
    return user_M[first_P], pair_P, rows_P.astype(np.int64)


def merged_by_name(parts: Sequence[Mapping[str, ColumnState]]) -> dict[str, ColumnState]:
    """Merges the columns of several files."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: merged([part[name] for part in parts if name in part]) for name in names}
