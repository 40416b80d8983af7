"""Which row of production a row of the challenger comes from, where ids are listed and where they are hashed.

| production | challenger | a row starts as | |
|---|---|---|---|
| ids | ids | the row of the same id | exact |
| hash | the same hash | the same row | exact |
| hash | a whole multiple of its rows | the row of bucket ``b mod R``, which all ids of bucket b were in: h mod kR leaves h mod R | exact |
| hash | ids | the bucket's of the id; ids that the list does not have become unknown | measured |
| ids | hash | the mean of the ids that fall into the bucket, by traffic; OOV where none does | approximate |
| hash | a whole divisor of its rows | the mean of the buckets that fall together, by traffic | approximate |
| hash | any other hash | nothing: which ids a bucket held is not recorded | refused, or fresh |

Optimizer state moves with the rows. Where rows become one, first moments take the same mean; second moments add up, because the
gradient of a shared row is the sum of its ids' gradients, which seldom meet in a step (and more is the safe side: smaller
steps); a row was touched when the last of its ids was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.schema.hashed import AnyVocabulary, HashedVocabulary
from trainer.schema.vocabulary import OOV_ROW, RESERVED_ROWS

_READ_ROWS = 1 << 13


@dataclass(frozen=True)
class Pool:
    """Rows of production that become one row.

    Attributes:
        row_E: int32 [rows of production], in the order of the rows that they become; reserved rows become themselves.
        first_V1: int64 [rows of the challenger + 1], ``row_E[first[v]:first[v + 1]]`` become row v.
        weight_E: float64 [as row_E], share of each in the mean; the shares of a row add up to 1.
        how: ``mean``, ``sum`` or ``last`` (the largest).
    """

    row_E: np.ndarray
    first_V1: np.ndarray
    weight_E: np.ndarray
    how: str = "mean"

    @classmethod
    def of(cls, bucket_E: np.ndarray, traffic_E: np.ndarray, buckets: int) -> Pool:
        """Builds the pool of production's rows by their bucket in the challenger.

        Args:
            bucket_E: Bucket of each row of production behind the reserved ones.
            traffic_E: Its traffic; rows of a bucket that nobody met count alike.
            buckets: Number of buckets.
        """
        total, rows = np.bincount(bucket_E, traffic_E, buckets), np.bincount(bucket_E, minlength=buckets)
        met_E = total[bucket_E] > 0
        weight_E = np.where(met_E, traffic_E, 1.0) / np.where(met_E, total[bucket_E], rows[bucket_E])
        into_E = np.concatenate([np.arange(RESERVED_ROWS), bucket_E + RESERVED_ROWS])
        order_E = np.argsort(into_E, kind="stable")
        first_V1 = np.searchsorted(into_E[order_E], np.arange(buckets + RESERVED_ROWS + 1))
        return cls(order_E.astype(np.int32), first_V1, np.concatenate([np.ones(RESERVED_ROWS), weight_E])[order_E])

    @property
    def heaviest_V(self) -> np.ndarray:
        """int32 [rows of the challenger]: the row of production with the largest share in each; -1 where there is none."""
        found = np.full(len(self.first_V1) - 1, -1, np.int32)
        row_of_E = np.repeat(np.arange(len(found)), np.diff(self.first_V1))
        order_E = np.argsort(self.weight_E, kind="stable")
        found[row_of_E[order_E]] = self.row_E[order_E]  # numpy keeps the last of repeated assignments
        return found

    @property
    def shared(self) -> np.ndarray:
        """bool [rows of production]: whether a row becomes one with others."""
        together, count_V = np.zeros(len(self.row_E), bool), np.diff(self.first_V1)
        together[self.row_E] = np.repeat(count_V > 1, count_V)
        return together

    def take(self, read: Callable[[np.ndarray], Tensor], row_M: np.ndarray) -> Tensor:
        """Returns float64 [M, ...]: what the rows of the challenger start as, a block of production's rows at a time.

        Args:
            read: Reads production's rows by int64 index.
            row_M: Rows of the challenger, each of which some row of production becomes.
        """
        count_M = self.first_V1[row_M + 1] - self.first_V1[row_M]
        into_E = np.repeat(np.arange(len(row_M)), count_M)
        place_E = np.repeat(self.first_V1[row_M] - (np.cumsum(count_M) - count_M), count_M) + np.arange(len(into_E))
        out: Tensor | None = None
        for start in range(0, len(place_E), _READ_ROWS):
            place_B, into_B = place_E[start : start + _READ_ROWS], torch.from_numpy(into_E[start : start + _READ_ROWS])
            values = read(self.row_E[place_B].astype(np.int64)).double()
            if out is None:
                out = torch.zeros(len(row_M), *values.shape[1:], dtype=torch.float64)
            if self.how == "mean":
                values = values * torch.from_numpy(self.weight_E[place_B]).view(-1, *[1] * (values.ndim - 1))
            if self.how == "last":
                np.maximum.at(out.numpy(), into_B.numpy(), values.numpy())
            else:
                out.index_add_(0, into_B, values)
        return read(np.zeros(0, np.int64)).double() if out is None else out


@dataclass(frozen=True)
class Match:
    """Where the rows of a table come from.

    Attributes:
        index: int32 [rows of the challenger], row of production, -1 for new ones; under a pool the one with the largest share.
        pool: Rows of production that become one; None where each comes from one at most.
        fill: How rows beyond production's come about: ``bucket`` (copies of their bucket's), empty for new ids.
        reason: Why this is not what production did, empty where it is.
        stranger: Whether nothing can be matched.
    """

    index: np.ndarray
    pool: Pool | None = None
    fill: str = ""
    reason: str = ""
    stranger: bool = False

    @property
    def refusal(self) -> str | None:
        """Why the table cannot be carried over without a difference that was asked for, or None."""
        return self.reason if self.stranger or self.pool is not None else None


def match(old: AnyVocabulary, new: AnyVocabulary) -> Match:
    """Returns where the challenger's rows of a table come from; see the module's table."""
    if not isinstance(new, HashedVocabulary):
        found = old.lookup(new.keys, np.int32)
        found[found == OOV_ROW] = -1
        pa.default_memory_pool().release_unused()  # the tables of ids: several times what is kept
        hashed = isinstance(old, HashedVocabulary)
        reason = f"{new.name} was hashed: ids that are not in the list were served by their bucket, and are unknown now" if hashed else ""
        return Match(_with_reserved(found), fill="bucket" if hashed else "", reason=reason)
    rows, traffic = new.hash.rows, old.count_V.astype(np.float64)
    if not isinstance(old, HashedVocabulary):
        pool = Pool.of(new.hash.buckets(old.keys), traffic, rows)
        shared = float(traffic[pool.shared[RESERVED_ROWS:]].sum() / max(traffic.sum(), 1.0))
        reason = f"{len(old.keys):,} ids of {new.name} share {rows:,} rows now; those that share one had {shared:.1%} of its traffic"
        return _pooled(pool, reason)
    before, same = old.hash.rows, replace(old.hash, rows=rows) == new.hash
    if same and rows % before == 0:
        return Match(_with_reserved(np.arange(rows, dtype=np.int32) % before + RESERVED_ROWS), fill="bucket" if rows > before else "")
    if same and before % rows == 0:
        pool = Pool.of(np.arange(before) % rows, traffic, rows)
        return _pooled(pool, f"{before:,} buckets of {new.name} become {rows:,}: each starts as the mean of {before // rows}")
    reason = (
        f"{new.name} is hashed otherwise ({_told(old)} in production, now {_told(new)}), and which ids a bucket held is not recorded; "
        f"a whole multiple of production's rows under its seed is exact"
    )
    return Match(_with_reserved(np.full(rows, -1, np.int32)), reason=reason, stranger=True)


def _pooled(pool: Pool, reason: str) -> Match:
    return Match(_frozen(pool.heaviest_V), pool, reason=reason)


def _with_reserved(index: np.ndarray) -> np.ndarray:
    return _frozen(np.concatenate([np.arange(RESERVED_ROWS, dtype=np.int32), index]))


def _frozen(rows: np.ndarray) -> np.ndarray:
    """Weights and every moment share one."""
    rows.flags.writeable = False
    return rows


def _told(vocabulary: HashedVocabulary) -> str:
    return f"{vocabulary.hash.rows:,} rows, seed {vocabulary.hash.seed}, {vocabulary.hash.function}"
