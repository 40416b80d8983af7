"""Accidents that no map may repair, each found by a measure of its own and named."""

from __future__ import annotations

import numpy as np

from trainer.align.alignment import ROTATION, SHIFT, fit
from trainer.schema.ids import splitmix64
from trainer.schema.verdict import Check

LOST_SHARE = 0.2
ZERO_GROWTH = 0.001
SCALE = 0.1  # relative change of the deviation of the whole
EQUAL_NORMS = 1e-3  # coefficient of variation below which all vectors count as normalised
DUPLICATE_GROWTH = 0.01
MISPLACED_SHARE = 0.005

_SUSPECTS = 1000  # entities whose vectors are looked for under other ids
_FEWEST = 5  # found in a draw before they are taken for more than chance, since each stands for many
_MANY = 0.5  # of the suspects whose vectors' owners are drawn
_CLOSE, _FAR = 0.1, 0.25  # of the own distance; of the typical distance between entities
_RATIO = 0.2  # nearest to second nearest, a match that is no chance: Lowe, IJCV 60 (2004), section 7.1


def accidents(old_ED: np.ndarray, new_ED: np.ndarray, lost: float, where: str, not_finite: float = 0.0, drawn: float = 1.0) -> list[Check]:
    """Looks for accidents.

    Vectors under other ids are looked for on at most `_SUSPECTS` entities, among all; every other measure is of all entities given.

    Args:
        old_ED: Reference vectors, the same entities in the same order.
        new_ED: New vectors.
        lost: Share of the old entities that have no new vector.
        where: Slice of the checks.
        not_finite: Share of all new vectors that are not finite, where the entities are a draw of them.
        drawn: Share of all old entities that these are a draw of; the owner of an exchanged vector is among them only as often.

    Returns:
        One blocking check a kind: width, coverage, non-finite values, zero rows, normalised vectors, scale, duplicates, vectors
        under other ids. Later kinds are left out when the width changed.
    """
    entities = len(old_ED)
    checks = [_bounded("embedding_coverage", where, lost, LOST_SHARE, entities, "{:.1%} of the old entities have no vector any more")]
    before, after = old_ED.shape[1], new_ED.shape[1]
    if before != after:
        sentence = f"Vectors are {after} wide, {before} before: no consumer can read them unchanged."
        return [*checks, _check("embedding_dim", where, False, entities, sentence)]
    finite_E = np.isfinite(old_ED).all(axis=1) & np.isfinite(new_ED).all(axis=1)
    bad = max(not_finite, 1 - float(np.isfinite(new_ED).all(axis=1).mean()) if entities else 0.0)
    checks.append(_bounded("embedding_finite", where, bad, 0.0, entities, "{:.2g} of the vectors are not finite"))
    old_ED, new_ED = old_ED[finite_E].astype(np.float64), new_ED[finite_E].astype(np.float64)
    if len(old_ED) < 2:
        return checks
    zeros = float((~new_ED.any(axis=1)).mean() - (~old_ED.any(axis=1)).mean())
    checks.append(_bounded("embedding_zero_rows", where, zeros, ZERO_GROWTH, entities, "the share of zero vectors grew by {:.1%}"))
    kept_E = old_ED.any(axis=1) & new_ED.any(axis=1)
    old_ED, new_ED = old_ED[kept_E], new_ED[kept_E]
    if len(old_ED) < 2:
        return checks
    return [*checks, *_lengths(old_ED, new_ED, where), _duplicates(old_ED, new_ED, where), _misplaced(old_ED, new_ED, where, drawn)]


def _lengths(old_ED: np.ndarray, new_ED: np.ndarray, where: str) -> list[Check]:
    """Normalised (or no longer normalised) vectors, and else a change of scale."""
    spread = [float(norm_E.std() / norm_E.mean()) for norm_E in (np.linalg.norm(x_ED, axis=1) for x_ED in (old_ED, new_ED))]
    normalised = (spread[0] < EQUAL_NORMS) != (spread[1] < EQUAL_NORMS)
    if normalised and spread[0] < EQUAL_NORMS and _distance_spread(new_ED) < EQUAL_NORMS:
        normalised = False  # they were only moved as a whole, as by an alignment, and have a name for that
    changed = "all vectors have one length now, they had different ones" if spread[1] < EQUAL_NORMS else "vectors had one length before"
    words = changed if normalised else "lengths vary as before"
    same_length = _check("embedding_normalised", where, not normalised, len(old_ED), f"{words[0].upper()}{words[1:]}.")
    if normalised:
        return [same_length]
    deviation = [np.sqrt(((x_ED - x_ED.mean(axis=0)) ** 2).sum(axis=1).mean()) for x_ED in (old_ED, new_ED)]
    scale = float(deviation[1] / max(deviation[0], np.finfo(float).tiny))
    found = _bounded(
        "embedding_scale", where, abs(np.log(max(scale, 1e-12))), np.log(1 + SCALE), len(old_ED), f"vectors are {scale:.2f} times as long"
    )
    # Noise that was added also lengthens vectors: then they have drifted, and a scale would be the wrong name.
    if found.outcome == "fail" and not _only_scaled(old_ED, new_ED, scale):
        found = _check(
            "embedding_scale", where, True, len(old_ED), f"Vectors are {scale:.2f} times as long, but not the same but for that."
        )
    return [same_length, found]


def _distance_spread(x_ED: np.ndarray) -> float:
    """Coefficient of variation of the distances from the point that all vectors are nearest to being equally far from.

    |x - c| = r for all x is linear in c and r^2 - |c|^2: |x|^2 = 2 c.x + (r^2 - |c|^2).
    """
    square_E, inputs_EF = (x_ED**2).sum(axis=1), np.column_stack([2 * x_ED, np.ones(len(x_ED))])
    solved_F = np.linalg.lstsq(inputs_EF, square_E, rcond=None)[0]
    distance_E = np.linalg.norm(x_ED - solved_F[:-1], axis=1)
    return float(distance_E.std() / distance_E.mean())


def _only_scaled(old_ED: np.ndarray, new_ED: np.ndarray, scale: float) -> bool:
    back_ED = new_ED / scale
    left_ED = fit(old_ED, back_ED, ROTATION).apply(back_ED) - old_ED
    return float(left_ED.var(axis=0).sum() / old_ED.var(axis=0).sum()) < 0.1


def _duplicates(old_ED: np.ndarray, new_ED: np.ndarray, where: str) -> Check:
    growth = float(len(np.unique(_row_hashes(old_ED))) - len(np.unique(_row_hashes(new_ED)))) / len(old_ED)
    return _bounded("embedding_duplicates", where, growth, DUPLICATE_GROWTH, len(old_ED), "{:.1%} more vectors equal another entity's")


def _misplaced(old_ED: np.ndarray, new_ED: np.ndarray, where: str, drawn: float) -> Check:
    """Finds vectors under other ids: far from the entity's own old vector and next to somebody else's.

    Looked for as they are, after a shift, and after a rotation: rows may have changed places in a space that moved as well.
    """
    own_E = _alone(new_ED)  # a vector that many share now is no exchange of two
    old_ED, new_ED, total = old_ED[own_E], new_ED[own_E], len(old_ED)
    if len(old_ED) < 3:
        return _bounded("embedding_ids", where, 0.0, MISPLACED_SHARE, total, "{:.2%} of the entities carry another entity's vector")
    random = np.random.default_rng(0).permutation(len(old_ED))[:_SUSPECTS]
    share, least = 0.0, 1 if drawn == 1 else _FEWEST
    for back_ED in (new_ED, *(fit(old_ED, new_ED, method).apply(new_ED) for method in (SHIFT, ROTATION))):
        own_E = np.linalg.norm(back_ED - old_ED, axis=1)
        worst = np.argsort(-own_E, kind="stable")[:_SUSPECTS]
        caught = int(_is_elsewhere(old_ED, back_ED, own_E, worst).sum())
        found_among = [(caught, len(old_ED))]
        # The worst rows hold every misplaced one as long as they are few; a random draw tells the share when they are many.
        if caught >= _MANY * drawn * len(worst):
            found_among.append((int(_is_elsewhere(old_ED, back_ED, own_E, random).sum()), len(random)))
        share = max(share, *(min(1.0, found / among / drawn) for found, among in found_among if found >= least), 0.0)
    return _bounded("embedding_ids", where, share, MISPLACED_SHARE, len(old_ED), "{:.2%} of the entities carry another entity's vector")


def _alone(x_ED: np.ndarray) -> np.ndarray:
    """Returns bool [E]: whether no other row has the same values."""
    _, place_E, count_U = np.unique(_row_hashes(x_ED), return_inverse=True, return_counts=True)
    return count_U[place_E] == 1


def _row_hashes(x_ED: np.ndarray) -> np.ndarray:
    """Returns uint64 [E], equal for equal rows of float64 and (but for one pair in 2 ** 64) for no others.

    Sorting the rows themselves takes a hundred times as long.
    """
    hash_E = np.zeros(len(x_ED), np.uint64)
    for x_E in x_ED.T:
        hash_E = splitmix64(hash_E ^ (x_E + 0.0).view(np.uint64))  # + 0.0: minus zero equals zero
    return hash_E


def _is_elsewhere(old_ED: np.ndarray, new_ED: np.ndarray, own_E: np.ndarray, suspects: np.ndarray) -> np.ndarray:
    typical = float(np.sqrt(2 * old_ED.var(axis=0).sum()))
    far_S = own_E[suspects] > _FAR * typical
    near_S2 = np.full((len(suspects), 2), np.inf)
    square_E = (old_ED**2).sum(axis=1)
    for start in range(0, len(suspects), 64):
        block = suspects[start : start + 64]
        query_QD = new_ED[block]
        distance_QE = square_E - 2 * query_QD @ old_ED.T + (query_QD**2).sum(axis=1, keepdims=True)
        distance_QE[np.arange(len(block)), block] = np.inf
        near_S2[start : start + 64] = np.sqrt(np.maximum(np.partition(distance_QE, 1, axis=1)[:, :2], 0))
    first_S, second_S = near_S2[:, 0], near_S2[:, 1]
    # A vector that several entities share (all those without a history) belongs to nobody.
    alone_S = (first_S <= _RATIO * second_S) & (second_S > 1e-6 * np.sqrt(square_E.max()))
    return far_S & (first_S < _CLOSE * own_E[suspects]) & alone_S


def _bounded(name: str, where: str, estimate: float, margin: float, n: int, finding: str) -> Check:
    words = finding.format(estimate)
    return Check(
        name=name, family="embeddings", slice=where, estimate=float(estimate), margin=margin, n=n,
        outcome="pass" if estimate <= margin else "fail", sentence=f"{words[0].upper()}{words[1:]} (tolerated: {margin:.2g}).",
    )  # fmt: skip


def _check(name: str, where: str, good: bool, n: int, sentence: str) -> Check:
    return Check(name=name, family="embeddings", slice=where, n=n, outcome="pass" if good else "fail", sentence=sentence)
