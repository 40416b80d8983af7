"""What vectors must be before they are published, checked while they stream by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ExportError
from trainer.schema.embeddings import VectorBlock
from trainer.schema.ids import plain_ids

_TINY, _HUGE = 1e-30, 1e30  # squares between these are far from the ends of single precision


def checked_blocks(blocks: Iterator[VectorBlock], entity: str, dim: int) -> Iterator[VectorBlock]:
    """Passes blocks on whose form is right.

    Raises:
        ExportError: If a block has another width or type than declared, or an id is null.
    """
    id_type = None
    for block in blocks:
        ids, vectors_MD = block.ids, block.vectors_MD
        if vectors_MD.ndim != 2 or vectors_MD.shape[1] != dim:
            raise ExportError(f"{entity} vectors have the wrong width", got=f"shape {list(vectors_MD.shape)}", expected=f"[rows, {dim}]")
        if vectors_MD.dtype != np.float32:
            raise ExportError(f"{entity} vectors have the wrong type", got=vectors_MD.dtype, expected="float32")
        if len(ids) != len(vectors_MD):
            raise ExportError(f"{entity} ids and vectors differ in number", got=f"{len(ids)} ids, {len(vectors_MD)} vectors")
        if ids.null_count:
            raise ExportError(f"a {entity} id is null", got=f"{ids.null_count} of {len(ids)} ids of a block")
        if not (pa.types.is_int64(ids.type) or pa.types.is_string(ids.type)) or id_type not in (None, ids.type):
            raise ExportError(f"{entity} ids have the wrong type", got=ids.type, expected=id_type or "int64 or string")
        id_type = ids.type
        yield block


def regrouped(blocks: Iterator[VectorBlock], rows: int) -> Iterator[VectorBlock]:
    """Cuts blocks anew, `rows` each but the last, so that files do not depend on how a model batches its users.

    Blocks come in two pieces of memory by turns, because asking for it and giving it back a thousand times costs more than the copy:
    a block is good until the one after the next is asked for.
    """
    held_RD, spare_RD = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
    ids: list[pa.Array] = []
    held = 0
    for block in blocks:
        if not held_RD.size:
            held_RD, spare_RD = (np.empty((rows, block.vectors_MD.shape[1]), np.float32) for _ in range(2))
        start = 0
        while start < len(block.ids):
            taken = min(rows - held, len(block.ids) - start)
            ids.append(block.ids.slice(start, taken))
            held_RD[held : held + taken] = block.vectors_MD[start : start + taken]
            held, start = held + taken, start + taken
            if held == rows:
                yield VectorBlock(pa.concat_arrays(ids), held_RD)
                held_RD, spare_RD = spare_RD, held_RD
                ids, held = [], 0
    if held:
        yield VectorBlock(pa.concat_arrays(ids), held_RD[:held])


class Tally:
    """Counts one entity's vectors and refuses those that no consumer could use.

    Args:
        entity: ``user`` or ``item``, for messages.
        holdout: Ids of the holdout's rows, if coverage is to be measured.
    """

    def __init__(self, entity: str, holdout: pa.Array | pa.ChunkedArray | None) -> None:
        self._entity = entity
        self.rows = 0
        self._zeros, self._first_zero = 0, None
        self._norm_low, self._norm_high, self._norm_sum = np.inf, 0.0, 0.0
        self._wanted: pa.Array | None = None
        if holdout is not None and len(holdout) > 0:
            counts = pc.value_counts(plain_ids(holdout))
            self._wanted, self._wanted_rows_U = counts.field("values"), counts.field("counts").to_numpy()
            self._found_U = np.zeros(len(self._wanted), bool)

    def add(self, block: VectorBlock) -> None:
        """Takes a block into account.

        Raises:
            ExportError: If a vector is not finite, or the holdout's ids are of another type.
        """
        norm_M = _norms(block.vectors_MD)
        bad_M = ~np.isfinite(norm_M)
        if bad_M.any():
            first = int(np.flatnonzero(bad_M)[0])
            raise ExportError(
                f"a {self._entity} vector is not finite", where=f"{self._entity} {block.ids[first].as_py()}",
                got=f"{int(bad_M.sum())} of {len(norm_M)} vectors of a block, after {self.rows} good ones",
                remedy="nothing was written; look for a diverged or damaged model",
            )  # fmt: skip
        zero_M = norm_M == 0
        if zero_M.any() and self._first_zero is None:
            self._first_zero = block.ids[int(np.flatnonzero(zero_M)[0])].as_py()
        self._zeros += int(zero_M.sum())
        self._norm_low, self._norm_high = min(self._norm_low, norm_M.min()), max(self._norm_high, norm_M.max())
        self._norm_sum += float(norm_M.sum())
        self.rows += len(norm_M)
        self._mark(block.ids)

    def _mark(self, ids: pa.Array) -> None:
        if self._wanted is None:
            return
        if self._wanted.type != ids.type:
            raise ExportError(f"{self._entity} ids of the holdout are of another type", got=self._wanted.type, expected=ids.type)
        index = pc.index_in(ids, value_set=self._wanted)
        self._found_U[index.drop_null().to_numpy()] = True

    @property
    def norms(self) -> dict[str, float]:
        """Smallest, mean and largest Euclidean norm."""
        return {"min": float(self._norm_low), "mean": self._norm_sum / self.rows, "max": float(self._norm_high)}

    @property
    def coverage(self) -> float | None:
        """Share of the holdout's rows whose entity has a vector; None if there are no such rows."""
        if self._wanted is None:
            return None
        return float(self._wanted_rows_U[self._found_U].sum() / self._wanted_rows_U.sum())

    def check(self, min_coverage: float, max_zero_share: float) -> None:
        """Judges the whole.

        Raises:
            ExportError: If there is no vector, too many are zero, or too few of the holdout's rows are covered.
        """
        if not self.rows:
            raise ExportError(f"no {self._entity} has a vector", remedy="leave it out: export.entities=[...]")
        if self._zeros > max_zero_share * self.rows:
            raise ExportError(
                f"too many {self._entity} vectors are zero", where=f"first: {self._entity} {self._first_zero}",
                got=f"{self._zeros} of {self.rows}", expected=f"a share of at most {max_zero_share:g} (export.max_zero_share)",
            )  # fmt: skip
        coverage = self.coverage
        if self._wanted is not None and coverage is not None and coverage < min_coverage:
            missing_U, one = ~self._found_U, {"item": "an item"}.get(self._entity, f"a {self._entity}")
            most = int(np.argmax(np.where(missing_U, self._wanted_rows_U, -1)))
            raise ExportError(
                f"too many rows of the holdout have {one} without a vector",
                where=f"{self._entity} {self._wanted[most].as_py()} with {self._wanted_rows_U[most]} rows, for one",
                got=f"{int(missing_U.sum())} of {len(missing_U)} are missing, coverage {coverage:.3f}",
                expected=f"at least {min_coverage:g} (export.min_coverage)",
                remedy=f"if {one} seldom lives for two days, so that none of the training days has it: export.min_coverage=0, or "
                "leave its vectors out with export.entities=[...]; else look for ids that are written in another way since",
            )  # fmt: skip


def _norms(vectors_MD: np.ndarray) -> np.ndarray:
    """Returns Euclidean norms [M]: in single precision, and once more in double where squares leave its range."""
    with np.errstate(over="ignore"):
        square_M = np.einsum("md,md->m", vectors_MD, vectors_MD).astype(np.float64)
    doubtful_M = ~((square_M > _TINY) & (square_M < _HUGE))  # true for NaN as well
    if doubtful_M.any():
        doubtful_ND = vectors_MD[doubtful_M].astype(np.float64)
        square_M[doubtful_M] = np.einsum("md,md->m", doubtful_ND, doubtful_ND)
    return np.sqrt(square_M)
