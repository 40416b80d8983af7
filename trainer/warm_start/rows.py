"""What the rows of new ids hold, and grouped means over a table too large to hold."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from trainer.schema.hashed import AnyVocabulary
from trainer.schema.vocabulary import OOV_ROW, RESERVED_ROWS
from trainer.warm_start.places import Pair

BLOCK_ROWS = 1 << 13
Read = Callable[[np.ndarray], Tensor]  # rows by int64 index, ascending where that is faster; [rows, ...]


def grouped_means(read: Read, group_R: np.ndarray, weight_R: np.ndarray | None, groups: int) -> Tensor:
    """Averages rows by group, a block at a time.

    Args:
        read: Reads rows.
        group_R: Integers, group of each row; -1 for rows that count nowhere.
        weight_R: float64, weight of each row; None for 1.
        groups: Number of groups.

    Returns:
        float64 [groups, ...]; zero for empty groups.
    """
    total = torch.zeros(groups, dtype=torch.float64)
    sums: Tensor | None = None
    for start in range(0, len(group_R), BLOCK_ROWS):
        weight_B = np.ones(len(group_R[start : start + BLOCK_ROWS])) if weight_R is None else weight_R[start : start + BLOCK_ROWS]
        member = np.flatnonzero((group_R[start : start + BLOCK_ROWS] >= 0) & (weight_B > 0))
        if not len(member):
            continue
        index = start + member
        rows, weight = read(index).double(), torch.from_numpy(weight_B[member])
        group = torch.from_numpy(group_R[index].astype(np.int64))
        if sums is None:
            sums = torch.zeros(groups, *rows.shape[1:], dtype=torch.float64)
        sums.index_add_(0, group, rows * weight.view(-1, *[1] * (rows.ndim - 1)))
        total.index_add_(0, group, weight)
    if sums is None:
        return torch.zeros(groups, *read(np.zeros(0, np.int64)).shape[1:], dtype=torch.float64)
    return sums / total.clamp_min(1e-300).view(-1, *[1] * (sums.ndim - 1))


def new_rows(both: Pair, index: np.ndarray, read: Read, noise: float, seed: int) -> Tensor:
    """Computes the rows of new ids.

    Args:
        both: The table on both sides.
        index: Integers [rows of the target], row of production, -1 for new ids.
        read: Reads production's rows.
        noise: Noise, as a share of the trained rows' standard deviation.
        seed: Seed of the noise.

    Returns:
        float64 [new ids, width of production], in row order; a view of one row where all are alike.
    """
    new = np.flatnonzero(index < 0)
    everyone = np.zeros(both.source.shapes[both.old][0], np.int8)
    everyone[:RESERVED_ROWS] = -1
    trained = len(everyone) - RESERVED_ROWS
    unseen = read(np.array([OOV_ROW])).double()
    if both.new_ids == "mean" and trained:
        rows = grouped_means(read, everyone, None, 1).expand(len(new), -1)
    elif both.new_ids == "neighbours":
        rows = _neighbours(both, new, read, unseen)
    else:
        rows = unseen.expand(len(new), -1)
    if noise > 0 and trained > 1:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(both.new.encode()))
        drawn = torch.randn(len(new), *rows.shape[1:], generator=generator, dtype=torch.float64)
        rows = rows + drawn * (noise * _deviation(read, everyone))
    return rows


def _deviation(read: Read, everyone: np.ndarray) -> float:
    """Standard deviation of the trained rows' elements around their mean row."""
    mean = grouped_means(read, everyone, None, 1)
    square = grouped_means(lambda index: read(index).double() ** 2, everyone, None, 1)
    return math.sqrt(max(float((square - mean**2).mean()), 0.0))


def _neighbours(both: Pair, new: np.ndarray, read: Read, unseen: Tensor) -> Tensor:
    """For each feature of an item the mean of known items with the same value, by traffic; averaged over features."""
    name = both.axes[0].removeprefix("vocab:")
    rows = unseen.repeat(len(new), 1)
    old_items, new_items = both.source.items, both.target.items
    if old_items is None or new_items is None or name != new_items[0]:
        return rows
    traffic = np.concatenate([np.zeros(RESERVED_ROWS), both.source.vocabularies[old_items[0]].count_V.astype(np.float64)])
    total, count = torch.zeros_like(rows), torch.zeros(len(new), 1, dtype=torch.float64)
    for column in [name for name in new_items[1].column_names if name != "item" and name in old_items[1].column_names]:
        group_R, wanted = _same_value(old_items[1][column], new_items[1][column], new)
        means = grouped_means(read, group_R, traffic, int(group_R.max(initial=-1)) + 1)
        populated = np.bincount(group_R[group_R >= 0], traffic[group_R >= 0], len(means)) > 0
        has = torch.from_numpy((wanted >= 0) & np.append(populated, False)[wanted])
        total[has] += means[torch.from_numpy(wanted)[has]]
        count[has] += 1
    return torch.where(count > 0, total / count.clamp_min(1), rows)


def _same_value(old: pa.ChunkedArray, new: pa.ChunkedArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes a feature: int64 [old rows, reserved ones -1] and int64 [new rows]; -1 for null and for values nobody had."""
    values = pc.unique(old.drop_null().combine_chunks())
    if not len(values):
        return np.full(len(old) + RESERVED_ROWS, -1), np.full(len(rows), -1)
    codes = [
        np.asarray(pc.fill_null(pc.index_in(column.combine_chunks().cast(values.type), value_set=values, skip_nulls=True), -1), np.int64)
        for column in (old, new)
    ]
    group_R = np.concatenate([np.full(RESERVED_ROWS, -1), codes[0]])
    return group_R, codes[1][rows - RESERVED_ROWS]


def mean_row(read: Read, vocabulary: AnyVocabulary) -> Tensor:
    """Returns float64 [width]: a table's mean row, weighted by traffic: what stands for a feature that was removed."""
    traffic = vocabulary.count_V.astype(np.float64)
    if not len(traffic):
        return read(np.array([OOV_ROW]))[0].double()
    weight_R = np.concatenate([np.zeros(RESERVED_ROWS), traffic if traffic.sum() > 0 else np.ones(len(traffic))])
    return grouped_means(read, np.zeros(len(weight_R), np.int8), weight_R, 1)[0]
