"""How well two sets of vectors of the same entities agree, as a consumer that splits on single coordinates sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CENTRED_COSINE = 0.95  # mean over entities
MEDIAN_R2 = 0.9  # over dimensions
WORST_R2 = 0.5  # a mirrored dimension has -3, a swapped one about -1; noise that the median tolerates leaves 0.7
MEAN_SHIFT_SD = 0.25  # largest over dimensions

QUERIES, CANDIDATES = 500, 50_000  # of the neighbours, whose number is quadratic
_BLOCK = 64  # queries at a time

_FLAT = 1e-4  # a dimension whose deviation is a smaller share of the overall one carries nothing that could be split on


@dataclass(frozen=True)
class Agreement:
    """Agreement of paired vectors.

    Attributes:
        centred_cosine: Mean cosine of each entity's two vectors, each side's mean taken off: a common mean can hold nearly all the
            energy and hide everything else.
        median_r2: Median over dimensions of ``1 - var(new - old) / var(old)``.
        worst_r2: Smallest of them over dimensions that vary.
        worst_dimension: Its index.
        mean_shift_sd: Largest shift of a dimension's mean, in its old standard deviation.
        residual: Share of the old variance that is left in the differences.
    """

    centred_cosine: float
    median_r2: float
    worst_r2: float
    worst_dimension: int
    mean_shift_sd: float
    residual: float

    @property
    def shape_holds(self) -> bool:
        """Whether the vectors agree but for a shift."""
        return self.centred_cosine >= CENTRED_COSINE and self.median_r2 >= MEDIAN_R2 and self.worst_r2 >= WORST_R2

    @property
    def holds(self) -> bool:
        """Whether a consumer may keep its model."""
        return self.shape_holds and self.mean_shift_sd <= MEAN_SHIFT_SD

    def sentence(self) -> str:
        """Returns the numbers in words."""
        return (
            f"centred cosine {self.centred_cosine:.3f} (at least {CENTRED_COSINE}), R2 of a dimension {self.median_r2:.3f} in the median "
            f"(at least {MEDIAN_R2}) and {self.worst_r2:.2f} at worst, dimension {self.worst_dimension} (at least {WORST_R2}), "
            f"mean moved by at most {self.mean_shift_sd:.2f} sd (at most {MEAN_SHIFT_SD})"
        )


def agreement(old_ED: np.ndarray, new_ED: np.ndarray) -> Agreement:
    """Measures paired vectors, float [E, D] each, at least two entities."""
    old_ED, new_ED = old_ED.astype(np.float64), new_ED.astype(np.float64)
    sd_D = varying_sd(old_ED)
    variance_D = (new_ED - old_ED).var(axis=0)
    r2_D = np.where(np.isfinite(sd_D), 1 - variance_D / sd_D**2, 1.0)
    worst = int(np.argmin(r2_D))
    return Agreement(
        centred_cosine=centred_cosine(old_ED, new_ED),
        median_r2=float(np.median(r2_D)),
        worst_r2=float(r2_D[worst]),
        worst_dimension=worst,
        mean_shift_sd=float((np.abs(new_ED.mean(axis=0) - old_ED.mean(axis=0)) / sd_D).max()),
        residual=float(variance_D.sum() / max(old_ED.var(axis=0).sum(), np.finfo(float).tiny)),
    )


def varying_sd(old_ED: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each dimension; infinite where the dimension is flat, so that nothing is measured in it."""
    sd_D = old_ED.std(axis=0)
    return np.where(sd_D > _FLAT * np.sqrt((sd_D**2).mean()), sd_D, np.inf)


def centred_cosine(old_ED: np.ndarray, new_ED: np.ndarray) -> float:
    """Returns the mean cosine of each entity's vectors after each side's mean is taken off; a zero vector counts 0."""
    old_ED, new_ED = (x_ED - x_ED.mean(axis=0) for x_ED in (old_ED, new_ED))
    product_E = np.einsum("ed,ed->e", old_ED, new_ED)
    norm_E = np.linalg.norm(old_ED, axis=1) * np.linalg.norm(new_ED, axis=1)
    return float(np.divide(product_E, norm_E, out=np.zeros_like(product_E), where=norm_E > 0).mean())


def effective_rank(x_ED: np.ndarray) -> float:
    """Returns the exponential of the entropy of the normalised singular values of the centred vectors.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007, section 2.
    """
    centred_ED = x_ED - x_ED.mean(axis=0, dtype=np.float64)
    # The squares of the singular values: as good here, and [D, D] instead of copies of the vectors.
    value_D = np.sqrt(np.maximum(np.linalg.eigvalsh(centred_ED.T @ centred_ED), 0))
    share_D = value_D[value_D > 0] / max(value_D.sum(), np.finfo(float).tiny)
    return float(np.exp(-(share_D * np.log(share_D)).sum()))


def neighbour_overlap(old_ED: np.ndarray, new_ED: np.ndarray, top: int = 10, queries: int = QUERIES) -> float:
    """Returns the mean share of each query's `top` nearest entities (by cosine) that are the same under both.

    A number of samples: the first rows are the queries, the first `CANDIDATES` the entities they are near to; so the order of the
    entities should be random.
    """
    old_ED, new_ED = old_ED[:CANDIDATES], new_ED[:CANDIDATES]
    top = min(top, len(old_ED) - 1)
    near = [_nearest(x_ED, min(queries, len(x_ED)), top) for x_ED in (old_ED, new_ED)]
    return float(np.mean([len(set(old) & set(new)) / top for old, new in zip(*near, strict=True)]))


def _nearest(x_ED: np.ndarray, queries: int, top: int) -> np.ndarray:
    unit_ED = x_ED - x_ED.mean(axis=0)
    unit_ED /= np.maximum(np.linalg.norm(unit_ED, axis=1, keepdims=True), np.finfo(float).tiny)
    near_QT = np.empty((queries, top), np.int64)
    for start in range(0, queries, _BLOCK):
        block_B = np.arange(start, min(start + _BLOCK, queries))
        distance_BE = -(unit_ED[block_B] @ unit_ED.T)
        distance_BE[np.arange(len(block_B)), block_B] = np.inf
        near_QT[block_B] = np.argpartition(distance_BE, top - 1, axis=1)[:, :top]
    return near_QT
