"""Maps from a new embedding space onto the reference space: nothing, a shift, or a shift and a rotation.

Only rigid maps: they keep every distance, so what the model learned is untouched. A scale is not repaired, because a vector whose
length changed says something else to a consumer that reads norms or dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IDENTITY, SHIFT, ROTATION = "identity", "shift", "rotation"
_ROWS = 4096


@dataclass(frozen=True)
class Alignment:
    """``y = (x - source_mean_D) @ rotation_DD + target_mean_D``.

    Attributes:
        method: ``identity``, ``shift`` (rotation is the identity) or ``rotation`` (orthogonal Procrustes; mirrors included).
        source_mean_D: Mean of the new vectors on the anchors.
        rotation_DD: Orthogonal matrix.
        target_mean_D: Mean of the reference vectors on the anchors.
        anchors: Entities that it was fitted on.
    """

    method: str
    source_mean_D: np.ndarray
    rotation_DD: np.ndarray
    target_mean_D: np.ndarray
    anchors: int

    @classmethod
    def identity(cls, dim: int, anchors: int = 0) -> Alignment:
        """Returns the map that leaves vectors of width `dim` as they are."""
        return cls(IDENTITY, np.zeros(dim), np.eye(dim), np.zeros(dim), anchors)

    def apply(self, vectors_MD: np.ndarray) -> np.ndarray:
        """Returns the vectors in the reference space, in their own dtype; all-zero rows stay zero, since they are no vectors.

        The identity returns its argument, bit for bit.
        """
        if self.method == IDENTITY:
            return vectors_MD
        moved_MD = np.empty_like(vectors_MD)
        for start in range(0, len(vectors_MD), _ROWS):  # in double precision, but never the whole table
            rows = slice(start, start + _ROWS)
            moved_MD[rows] = (vectors_MD[rows].astype(np.float64) - self.source_mean_D) @ self.rotation_DD + self.target_mean_D
        moved_MD[~vectors_MD.any(axis=1)] = 0.0
        return moved_MD


def fit(reference_ED: np.ndarray, new_ED: np.ndarray, method: str) -> Alignment:
    """Fits a map of `new_ED` onto `reference_ED`, row by row the same entities.

    The rotation is the orthogonal matrix that minimises the sum of squared distances after both sides are centred (Schoenemann,
    "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966).

    Args:
        reference_ED: Anchors in the reference space.
        new_ED: The same anchors in the new space.
        method: ``identity``, ``shift`` or ``rotation``.
    """
    dim = reference_ED.shape[1]
    if method == IDENTITY:
        return Alignment.identity(dim, len(new_ED))
    reference_ED, new_ED = reference_ED.astype(np.float64), new_ED.astype(np.float64)
    source_D, target_D = new_ED.mean(axis=0), reference_ED.mean(axis=0)
    rotation_DD = np.eye(dim)
    if method == ROTATION:
        left_DD, _, right_DD = np.linalg.svd((new_ED - source_D).T @ (reference_ED - target_D))
        rotation_DD = left_DD @ right_DD
    return Alignment(method, source_D, rotation_DD, target_D, len(new_ED))
