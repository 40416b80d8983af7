"""How strongly columns hang together: what a column loses when its values are right and its rows are wrong.

Three kinds of strength, all between 0 (independent) and 1: of two columns, Cramér's V of their values in eight bins, corrected for
chance (Bergsma, 2013); of a column and an entity (user, item), how much oftener than by chance two rows of one entity agree.

Shape suffixes: S sampled rows, B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

BINS = 8
USER, ITEM = "<user>", "<item>"

_ROWS = 8_192
_ENTITY_ROWS = 16_384


@dataclass(frozen=True)
class Link:
    """Strength between two columns, or a column and an entity; `rows` is what it was measured on."""

    strength: float
    rows: int


def key(one: str, other: str) -> str:
    """Names a link, whichever way round."""
    return "|".join(sorted((one, other)))


def ends(name: str) -> tuple[str, str]:
    """Returns the two ends of a link."""
    one, other = name.split("|")
    return one, other


def links(columns: Mapping[str, pa.Array], user_N: np.ndarray, item_N: np.ndarray) -> dict[str, Link]:
    """Measures all links of a file.

    Args:
        columns: Column -> conformed values.
        user_N: uint64 hashes of the users.
        item_N: uint64 hashes of the items.

    Returns:
        Link name -> strength.
    """
    rows = len(user_N)
    if rows < BINS:
        return {}
    found = _pairs({name: binned(_take(column, slice(None, None, max(rows // _ROWS, 1)))) for name, column in columns.items()})
    for entity, hash_N in ((USER, user_N), (ITEM, item_N)):
        chosen_S = _entities(hash_N)
        order_S = chosen_S[np.argsort(hash_N[chosen_S], kind="stable")]
        same_S = hash_N[order_S][1:] == hash_N[order_S][:-1]
        for name, column in columns.items():
            found[key(name, entity)] = _agreement(binned(_take(column, order_S)), same_S)
    return found


def binned(column: pa.Array) -> np.ndarray:
    """Returns the bin of each cell, uint8 [S]: eighths of the numbers, the most frequent texts; nulls lie in bin 0."""
    if pa.types.is_string(column.type):
        coded = column.dictionary_encode()
        code_S = np.asarray(coded.indices.fill_null(-1), np.int64)
        count = np.bincount(code_S + 1, minlength=len(coded.dictionary) + 1)[1:]
        rank = np.full(len(coded.dictionary) + 1, BINS - 1, np.uint8)
        rank[np.argsort(-count, kind="stable")[: BINS - 1]] = np.arange(min(BINS - 1, len(coded.dictionary)), dtype=np.uint8)
        rank[-1] = 0
        return rank[code_S]
    value_S = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan), np.float64)  # beyond 2**53 neighbours may share a bin
    known_S = value_S[np.isfinite(value_S)]
    if not len(known_S):
        return np.zeros(len(value_S), np.uint8)
    edges = np.unique(np.quantile(known_S, np.arange(1, BINS) / BINS))
    return np.where(np.isfinite(value_S), np.searchsorted(edges, value_S, side="left"), 0).astype(np.uint8)


def _take(column: pa.Array, rows: slice | np.ndarray) -> pa.Array:
    return column.take(pa.array(rows if isinstance(rows, np.ndarray) else np.arange(len(column))[rows]))


def _entities(hash_N: np.ndarray) -> np.ndarray:
    """Returns all rows of some entities: the same ones in every file."""
    level = max(int(np.ceil(np.log2(max(len(hash_N), 1) / _ENTITY_ROWS))), 0)
    return np.flatnonzero(hash_N >> np.uint64(64 - level) == 0) if level else np.arange(len(hash_N))


def _pairs(bins: Mapping[str, np.ndarray]) -> dict[str, Link]:
    """Measures every pair of columns with one matrix product of their one-hot bins."""
    names = list(bins)
    if len(names) < 2:
        return {}
    rows = len(bins[names[0]])
    onehot = np.zeros((rows, BINS * len(names)), np.float32)
    for index, name in enumerate(names):
        onehot[np.arange(rows), BINS * index + bins[name]] = 1
    counts = (onehot.T @ onehot).astype(np.float64).reshape(len(names), BINS, len(names), BINS)
    share = onehot.sum(axis=0, dtype=np.float64).reshape(len(names), BINS)
    expected = share[:, :, None, None] * share[None, None] / rows
    chi_AA = np.divide((counts - expected) ** 2, expected, out=np.zeros_like(counts), where=expected > 0).sum(axis=(1, 3))
    levels = (share > 0).sum(axis=1)
    pairs = [(one, other) for one in range(len(names)) for other in range(one)]
    return {key(names[i], names[j]): Link(_cramer(chi_AA[i, j], rows, int(levels[i]), int(levels[j])), rows) for i, j in pairs}


def _cramer(chi: float, rows: int, one: int, other: int) -> float:
    free = (one - 1) * (other - 1)
    if not free or rows < 2:
        return 0.0
    fewest = min(one - (one - 1) ** 2 / (rows - 1), other - (other - 1) ** 2 / (rows - 1)) - 1
    return float(np.sqrt(max(chi / rows - free / (rows - 1), 0.0) / fewest)) if fewest > 0 else 0.0


def _agreement(bin_S: np.ndarray, same_S: np.ndarray) -> Link:
    """How much oftener than by chance neighbours of one entity have the same bin."""
    rows = int(same_S.sum())
    chance = float(((np.bincount(bin_S, minlength=BINS) / max(len(bin_S), 1)) ** 2).sum())
    if not rows or chance >= 1.0:
        return Link(0.0, rows)
    agree = float((bin_S[1:] == bin_S[:-1])[same_S].mean())
    return Link(max((agree - chance) / (1 - chance), 0.0), rows)
