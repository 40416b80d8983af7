"""Old against new vectors of the same entities: what happened, and whether a rigid map repairs it.

Paired, because unpaired statistics cannot see a rotation of an isotropic space, nor rows that changed places. A map is fitted on one
half of the common entities and judged on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from trainer.align.accidents import accidents
from trainer.align.agreement import QUERIES, Agreement, agreement, effective_rank, neighbour_overlap
from trainer.align.alignment import IDENTITY, ROTATION, SHIFT, Alignment, fit
from trainer.schema.verdict import Check

FAMILY = "embeddings"
AS_IT_IS, NEIGHBOURS = "embedding_as_it_is", "embedding_neighbours"
BUCKET = "embedding_bucket"  # agreement of the entities of one frequency
MIN_ENTITIES = 60  # in common; a rotation also needs twice as many anchors as dimensions

SAME, SHIFTED, ROTATED, DRIFTED, BROKEN = "same", "shifted", "rotated", "drifted", "broken"
OUTCOMES = (SAME, SHIFTED, ROTATED, DRIFTED, BROKEN)
_OUTCOME = {IDENTITY: SAME, SHIFT: SHIFTED, ROTATION: ROTATED}

RANK_SHARE = 0.9  # of the old effective rank
NEIGHBOUR_OVERLAP = 0.6


@dataclass(frozen=True)
class Pairs:
    """The same E entities under both models, in random order.

    Attributes:
        old_ED: Reference vectors.
        new_ED: New vectors.
        half_E: True for entities that maps are fitted on, False for those that judge.
        lost: Share of the old entities that have no new vector.
        not_finite: Share of all new vectors, of which these entities may be a draw, that hold a NaN or an infinity.
        bucket_E: Optional frequency bucket of each entity, for the report: the power of ten of its rows in the log, -1 where it has none.
        drawn: Share of all old entities that was drawn for the comparison, in (0, 1].
    """

    old_ED: np.ndarray
    new_ED: np.ndarray
    half_E: np.ndarray
    lost: float = 0.0
    not_finite: float = 0.0
    bucket_E: np.ndarray | None = None
    drawn: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """What happened between two sets of vectors.

    Attributes:
        outcome: ``same`` (consumers keep their model), ``shifted`` or ``rotated`` (the map repairs it), ``drifted`` (what was learned
            changed: retrain consumers, or give the vectors a new space) or ``broken`` (an accident: do not ship).
        sentence: The finding.
        alignment: The simplest map that repairs; the identity unless shifted or rotated.
        checks: Every measure.
    """

    outcome: str
    sentence: str
    alignment: Alignment
    checks: list[Check] = field(default_factory=list)


def compare(pairs: Pairs, where: str = "all") -> Comparison:
    """Compares vectors of the same entities.

    Args:
        pairs: The entities.
        where: Slice of the checks, say ``entity=item``.

    Returns:
        The outcome, the map, and a check a measure: those that name an accident block, the others inform.
    """
    found = accidents(pairs.old_ED, pairs.new_ED, pairs.lost, where, pairs.not_finite, pairs.drawn)
    identity = fit(pairs.old_ED, pairs.new_ED, IDENTITY)
    broken = [check for check in found if check.outcome == "fail"]
    usable_E = _usable(pairs)
    if usable_E.sum() < MIN_ENTITIES:
        sentence = f"only {int(usable_E.sum())} entities have a usable vector on both sides; {MIN_ENTITIES} are needed"
        found.append(_check("embedding_anchors", where, False, None, None, int(usable_E.sum()), sentence))
        return Comparison(BROKEN, _named(broken) or sentence, identity, found)
    usable = Pairs(
        pairs.old_ED[usable_E], pairs.new_ED[usable_E], pairs.half_E[usable_E], pairs.lost,
        bucket_E=None if pairs.bucket_E is None else pairs.bucket_E[usable_E],
    )  # fmt: skip
    alignment, agreed = _simplest(usable)
    outcome = BROKEN if broken else _OUTCOME[alignment.method] if agreed.holds else DRIFTED
    found += _measures(usable, alignment, agreed, where)
    if outcome in (DRIFTED, BROKEN):
        alignment = identity
    reason = _named(broken) or _sentence(outcome, agreed)
    if outcome == DRIFTED and (needed := _anchors_needed(usable)) > usable.half_E.sum():
        reason += f" (a rotation could not be tried: {int(usable.half_E.sum())} anchors, {needed} are needed)"
    return Comparison(outcome, reason, alignment, found)


def nearest(pairs: Pairs) -> Alignment:
    """Returns the rigid map that leaves least of the variance on the judging half, be it enough for a consumer or not.

    For who has to bring vectors into a space anyhow, such as those of past rankers; what may be shipped is what `compare` repairs.

    Args:
        pairs: The entities, all with a finite vector on both sides and at least two in each half.
    """
    methods = [IDENTITY, SHIFT, ROTATION] if pairs.half_E.sum() >= _anchors_needed(pairs) else [IDENTITY, SHIFT]
    maps = [fit(pairs.old_ED[pairs.half_E], pairs.new_ED[pairs.half_E], method) for method in methods]
    old_ED, new_ED = pairs.old_ED[~pairs.half_E], pairs.new_ED[~pairs.half_E]

    def left(alignment: Alignment) -> float:
        return float(np.square(alignment.apply(new_ED).astype(np.float64) - old_ED).sum())

    return min(maps, key=left)  # the first of equals is the simplest


def _usable(pairs: Pairs) -> np.ndarray:
    """Rows that a map can be fitted on: finite, and a vector on both sides."""
    both = (pairs.old_ED, pairs.new_ED)
    if pairs.old_ED.shape[1] != pairs.new_ED.shape[1]:
        return np.zeros(len(pairs.old_ED), bool)
    return np.logical_and.reduce([np.isfinite(x_ED).all(axis=1) & x_ED.any(axis=1) for x_ED in both])


def _simplest(pairs: Pairs) -> tuple[Alignment, Agreement]:
    """Tries maps from the simplest on; returns the first after which the judging half agrees, or the last with what it left."""
    fit_E, judge_E = pairs.half_E, ~pairs.half_E
    methods = [IDENTITY, SHIFT]
    if fit_E.sum() >= _anchors_needed(pairs):
        methods.append(ROTATION)
    for method in methods:
        alignment = fit(pairs.old_ED[fit_E], pairs.new_ED[fit_E], method)
        agreed = agreement(pairs.old_ED[judge_E], alignment.apply(pairs.new_ED[judge_E]))
        if agreed.holds:
            break
    return alignment, agreed


def _anchors_needed(pairs: Pairs) -> int:
    """A rotation has about D * D / 2 free numbers and each anchor fixes D: below twice the width it would fit anything."""
    return 2 * pairs.old_ED.shape[1]


def _measures(pairs: Pairs, alignment: Alignment, agreed: Agreement, where: str) -> list[Check]:
    before = agreement(pairs.old_ED[~pairs.half_E], pairs.new_ED[~pairs.half_E])
    count = int((~pairs.half_E).sum())
    rank = effective_rank(pairs.new_ED) / max(effective_rank(pairs.old_ED), np.finfo(float).tiny)
    overlap = neighbour_overlap(pairs.old_ED, pairs.new_ED)
    repaired = f"after {alignment.method} fitted on {alignment.anchors} other entities: {agreed.sentence()}"
    left = f"{agreed.residual:.1%} of the variance left"
    total, asked = len(pairs.new_ED), min(QUERIES, len(pairs.new_ED))
    near = f"{overlap:.0%} of the ten nearest neighbours of {asked} drawn entities are the same"
    checks = [
        _check(AS_IT_IS, where, before.holds, 1 - before.centred_cosine, 0.05, count, f"as it is: {before.sentence()}"),
        _check("embedding_repaired", where, agreed.holds, 1 - agreed.centred_cosine, 0.05, count, f"{repaired}, {left}"),
        _check("embedding_rank", where, rank >= RANK_SHARE, rank, RANK_SHARE, total, f"the effective rank is {rank:.2f} of the old"),
        _check(NEIGHBOURS, where, overlap >= NEIGHBOUR_OVERLAP, overlap, NEIGHBOUR_OVERLAP, asked, near),
    ]
    return checks + _by_bucket(pairs, alignment, where)


def _by_bucket(pairs: Pairs, alignment: Alignment, where: str) -> list[Check]:
    """Agreement by frequency: rare entities drift most and weigh least in the whole."""
    if pairs.bucket_E is None:
        return []
    checks = []
    for bucket in np.unique(pairs.bucket_E).tolist():
        here_E = (pairs.bucket_E == bucket) & ~pairs.half_E
        rows = "0" if bucket < 0 else f"{10**bucket}-{10 ** (bucket + 1) - 1}"
        if here_E.sum() < MIN_ENTITIES:
            continue
        agreed = agreement(pairs.old_ED[here_E], alignment.apply(pairs.new_ED[here_E]))
        sentence = f"entities with {rows} rows: {agreed.sentence()}"
        slice_name = f"{where},rows={rows}" if where != "all" else f"rows={rows}"
        checks.append(_check(BUCKET, slice_name, agreed.holds, 1 - agreed.centred_cosine, 0.05, int(here_E.sum()), sentence))
    return checks


def _named(broken: list[Check]) -> str:
    """Says what is broken; nothing if nothing is."""
    return "; ".join(check.sentence for check in broken)


def _sentence(outcome: str, agreed: Agreement) -> str:
    words: dict[str, Callable[[], str]] = {
        SAME: lambda: "the vectors agree as they are: consumers keep their model",
        SHIFTED: lambda: "the vectors moved as a whole: taking the shift off repairs them",
        ROTATED: lambda: "the space was rotated: turning it back repairs it",
        DRIFTED: lambda: f"what was learned changed, no rigid map repairs it: {agreed.residual:.1%} of the variance is left",
    }
    return words[outcome]()


def _check(name: str, where: str, good: bool, estimate: float | None, margin: float | None, n: int, sentence: str) -> Check:
    return Check(
        name=name, family=FAMILY, slice=where, estimate=estimate, margin=margin, n=n, outcome="pass" if good else "fail", severity="info",
        sentence=f"{sentence[0].upper()}{sentence[1:]}.",
    )  # fmt: skip
