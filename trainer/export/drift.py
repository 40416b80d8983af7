"""Old against new embeddings, the same entity under both: unpaired statistics cannot see a rotation.

First form: it measures and says what it sees. Within one space a drift is a warning, because consumers keep their model; across
spaces it informs, because consumers must be retrained with the release anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.export.read import read_embeddings, read_manifest
from trainer.schema.embeddings import PAIR, EmbeddingManifest
from trainer.schema.ids import hash_ids
from trainer.schema.verdict import Check

FAMILY = "embeddings"

MAX_ENTITIES = 200_000  # drawn by hash, so the same entities are drawn from both sides and from every later version
MIN_ENTITIES = 30

# A frozen gradient-boosted model lost accuracy or calibration beyond these in measured warm starts and restarts.
LOST_SHARE = 0.2
ZERO_SHARE_GROWTH = 0.01
NORM_CHANGE = 0.1
CENTRED_COSINE = 0.95
MEAN_SHIFT_SD = 0.25


@dataclass(frozen=True)
class _Pairs:
    """The same E entities under both models: float64 [E, D] each; `sampled` of the old ones were looked for."""

    old_ED: np.ndarray
    new_ED: np.ndarray
    sampled: int


def compare(old: Path, new: Path) -> list[Check]:
    """Compares two exports, entity by entity.

    Args:
        old: Folder of the live embeddings.
        new: Folder of the new ones.

    Returns:
        Checks of family ``embeddings``; their slice is ``entity=<entity>``.

    Raises:
        ExportError: If a folder is no export, or a file is missing or was altered.
    """
    before, after = read_manifest(old), read_manifest(new)
    severity = "warn" if before.space_id == after.space_id else "info"
    checks = [_space(before, after)]
    for entity in sorted(set(before.entities) - {PAIR}):
        where = f"entity={entity}"
        if entity not in after.entities:
            checks.append(_check("embedding_coverage", where, "warn", False, f"The new export has no {entity} vectors."))
        elif before.dim != after.dim:
            sentence = f"{entity} vectors are {after.dim} wide, {before.dim} before: no consumer can read them unchanged."
            checks.append(_check("embedding_dim", where, "block" if severity == "warn" else "warn", False, sentence))
        else:
            pairs = _paired(old, new, entity, before.entities[entity])
            checks += _drift(pairs, where, severity, entity)
    return checks


def _space(before: EmbeddingManifest, after: EmbeddingManifest) -> Check:
    same = before.space_id == after.space_id
    sentence = (
        f"The space {after.space_id} was inherited: consumers keep their model."
        if same
        else f"The space changed from {before.space_id} to {after.space_id}: consumers must be retrained and released together with it."
    )
    return _check("embedding_space", "all", "warn", same, sentence)


def _paired(old: Path, new: Path, entity: str, entities: int) -> _Pairs:
    rate = min(1.0, MAX_ENTITIES / entities)
    (old_ids, old_ED), (new_ids, new_ED) = (_sample(folder, entity, rate) for folder in (old, new))
    if old_ids.type != new_ids.type:
        return _Pairs(old_ED[:0], new_ED[:0], len(old_ids))
    place_E = pc.index_in(old_ids, value_set=new_ids)
    kept_E = np.asarray(place_E.is_valid())
    return _Pairs(old_ED[kept_E], new_ED[place_E.drop_null().to_numpy()], len(old_ids))


def _sample(folder: Path, entity: str, rate: float) -> tuple[pa.Array, np.ndarray]:
    ids, vectors = [], []
    for block in read_embeddings(folder, entity):
        drawn_M = hash_ids(block.ids) <= np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
        ids.append(block.ids.filter(pa.array(drawn_M)))
        vectors.append(block.vectors_MD[drawn_M].astype(np.float64))
    return pa.concat_arrays(ids), np.concatenate(vectors)


def _drift(pairs: _Pairs, where: str, severity: str, entity: str) -> list[Check]:
    count = len(pairs.old_ED)
    lost = 1 - count / max(pairs.sampled, 1)
    finding = f"{lost:.1%} of the {entity}s that had a vector have none any more"
    coverage = _bounded("embedding_coverage", where, severity, lost, LOST_SHARE, pairs.sampled, finding)
    if count >= MIN_ENTITIES:
        measures = _measures(pairs, entity)
        return [coverage, *(_bounded(name, where, severity, found, margin, count, words) for name, found, margin, words in measures)]
    sentence = f"Only {count} {entity}s have a vector on both sides: drift cannot be judged."
    return [
        coverage,
        Check(name="embedding_drift", family=FAMILY, slice=where, n=count, outcome="not_testable", severity=severity, sentence=sentence),
    ]


def _measures(pairs: _Pairs, entity: str) -> list[tuple[str, float, float, str]]:
    """Returns name, estimate, margin and finding of each measure of drift."""
    old_ED, new_ED = pairs.old_ED, pairs.new_ED
    zeros = float((~new_ED.any(axis=1)).mean() - (~old_ED.any(axis=1)).mean())
    norm = _mean_norm(new_ED) / max(_mean_norm(old_ED), np.finfo(float).tiny) - 1
    distance, shift = 1 - centred_cosine(old_ED, new_ED), mean_shift_sd(old_ED, new_ED)
    cosine = f"{entity} vectors have a mean centred cosine of {1 - distance:.3f} with their old ones"
    moved = f"the mean of {entity} vectors moved by {shift:.2f} standard deviations (rms over dimensions)"
    return [
        ("embedding_zero_rows", zeros, ZERO_SHARE_GROWTH, f"the share of zero {entity} vectors grew by {zeros:.1%}"),
        ("embedding_norm", abs(norm), NORM_CHANGE, f"the mean norm of {entity} vectors changed by {norm:+.1%}"),
        ("embedding_centred_cosine", distance, 1 - CENTRED_COSINE, cosine),
        ("embedding_mean_shift", shift, MEAN_SHIFT_SD, moved),
    ]


def centred_cosine(old_ED: np.ndarray, new_ED: np.ndarray) -> float:
    """Returns the mean cosine of each entity's vectors after each side's mean is taken off; a zero vector counts 0.

    Centring matters: a common mean can hold nearly all the energy and hide everything else.
    """
    old_ED, new_ED = (x_ED - x_ED.mean(axis=0) for x_ED in (old_ED, new_ED))
    product_E = np.einsum("ed,ed->e", old_ED, new_ED)
    norm_E = np.linalg.norm(old_ED, axis=1) * np.linalg.norm(new_ED, axis=1)
    return float(np.divide(product_E, norm_E, out=np.zeros_like(product_E), where=norm_E > 0).mean())


def mean_shift_sd(old_ED: np.ndarray, new_ED: np.ndarray) -> float:
    """Returns how far the mean moved, in the old standard deviation of each dimension: root mean square over dimensions.

    A dimension that hardly varied is measured against a thousandth of the overall deviation.
    """
    sd_D = old_ED.std(axis=0)
    floor = max(1e-3 * float(np.sqrt((sd_D**2).mean())), np.finfo(float).tiny)
    return float(np.sqrt((((new_ED.mean(axis=0) - old_ED.mean(axis=0)) / np.maximum(sd_D, floor)) ** 2).mean()))


def _mean_norm(x_ED: np.ndarray) -> float:
    return float(np.linalg.norm(x_ED, axis=1).mean())


def _bounded(name: str, where: str, severity: str, estimate: float, margin: float, n: int, finding: str) -> Check:
    outcome = "pass" if estimate <= margin else "fail"
    sentence = f"{finding[0].upper()}{finding[1:]} (tolerated: {margin:.2g})."
    return Check(
        name=name, family=FAMILY, slice=where, estimate=estimate, margin=margin, n=n, outcome=outcome, severity=severity, sentence=sentence
    )


def _check(name: str, where: str, severity: str, good: bool, sentence: str) -> Check:
    return Check(name=name, family=FAMILY, slice=where, outcome="pass" if good else "fail", severity=severity, sentence=sentence)
