"""The live export against a new one, as consumers would see the change: feature vectors of the same entities under both.

Accidents (zero rows, another scale, vectors under other ids) block while the space is the same. That vectors moved within their
space warns, because only the replayed downstream model can say whether it matters. Across spaces everything informs: consumers must
be retrained with the release anyway. An entity that is gone blocks always: nothing can be retrained on what is not there.

A user's vector moves with every event, so no fixed bound tells a usual night from another: users warn where they moved by more than on
the nights before (`earlier_moves`). A warning that comes every night is read by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from trainer.align import Pairs, VectorTable, compare, pair
from trainer.align.compare import AS_IT_IS, BUCKET, NEIGHBOURS
from trainer.export.read import read_manifest, read_view
from trainer.schema.embeddings import ITEM, PAIR, WIDE, EmbeddingManifest
from trainer.schema.ids import hash_ids
from trainer.schema.plain import from_plain
from trainer.schema.release import VERDICT
from trainer.schema.verdict import Check, Verdict

FAMILY = "embeddings"
SPACE = "embedding_space"
UNUSUAL = 1.5  # times the median of the nights before
_MOVES = (AS_IT_IS, "embedding_scale")  # what a night of events moves; more of it is worse

MAX_ENTITIES = 200_000  # drawn by hash, so the same entities are drawn from both sides and from every later version


Frequency = Callable[[pa.Array], np.ndarray]  # ids -> rows of each in the log


def compare_exports(
    old: Path, new: Path, frequency: Mapping[str, Frequency] | None = None, earlier: Mapping[str, Sequence[float]] | None = None
) -> list[Check]:
    """Compares two exports, entity by entity.

    Args:
        old: Folder of the live embeddings.
        new: Folder of the new ones.
        frequency: Entity -> how often ids of it come, for which agreement is told by frequency as well.
        earlier: What the nights before measured (`earlier_moves`).

    Returns:
        Checks of family ``embeddings``; their slice is ``entity=<entity>``.

    Raises:
        ExportError: If a folder is no export, or a file is missing or was altered.
    """
    before, after = read_manifest(old), read_manifest(new)
    same_space = before.feature_space == after.feature_space
    checks = [_space(before, after)]
    for entity in sorted(set(before.entities) - {PAIR}):
        where = f"entity={entity}"
        if entity not in after.entities:
            sentence = f"The new export has no {entity} vectors: consumers of the live ones would be left with nothing to join."
            checks.append(_check("embedding_coverage", where, "block", False, sentence))
        elif before.dim != after.dim:
            sentence = f"{entity} vectors are {after.dim} wide, {before.dim} before: no consumer can read them unchanged."
            checks.append(_check("embedding_dim", where, "block" if same_space else "warn", False, sentence))
        else:
            checks += _drift(old, new, entity, same_space, (frequency or {}).get(entity))
    return [check if check.slice == f"entity={ITEM}" else _usual(check, (earlier or {}).get(check.path, [])) for check in checks]


def earlier_moves(releases: Iterable[Path]) -> dict[str, list[float]]:
    """Reads how far vectors moved on earlier nights, from the verdicts of their releases.

    Args:
        releases: Folders of sealed versions. Nights across which the space changed are left out.

    Returns:
        Path of a check -> its estimates.
    """
    found: dict[str, list[float]] = {}
    for folder in releases:
        if not (folder / VERDICT).is_file():
            continue
        checks = from_plain(Verdict, json.loads((folder / VERDICT).read_text(encoding="utf-8"))).checks
        if not any(check.name == SPACE and check.outcome == "pass" for check in checks):
            continue
        for check in checks:
            if check.name in _MOVES and check.estimate is not None:
                found.setdefault(check.path, []).append(check.estimate)
    return found


def _usual(check: Check, earlier: Sequence[float]) -> Check:
    """Turns a warning about vectors that move with their events into information, unless they moved by more than they usually do."""
    if check.outcome != "fail" or check.severity != "warn":
        return check
    if check.name == NEIGHBOURS or (check.name == AS_IT_IS and not earlier):
        return replace(check, severity="info")  # what is near changes with every event; the first night has nothing to go by
    if check.name not in _MOVES or check.estimate is None or not earlier:
        return check
    usual = median(earlier)
    words = f"moved by {check.estimate:.3f}, {usual:.3f} in the median of the {len(earlier)} nights before"
    if check.estimate <= UNUSUAL * usual:
        return replace(check, severity="info", sentence=f"{check.sentence} As usual: {words}.")
    return replace(check, sentence=f"{check.sentence} More than usual: {words}.")


def _space(before: EmbeddingManifest, after: EmbeddingManifest) -> Check:
    same = before.feature_space == after.feature_space
    methods = ", ".join(f"{entity} {record.method}" for entity, record in sorted(after.alignment.items()))
    sentence = (
        f"Feature vectors stay in the space {after.feature_space} ({methods}): consumers keep their model."
        if same
        else f"The space changed from {before.feature_space} to {after.feature_space}: consumers must be retrained and released with it."
    )
    return _check(SPACE, "all", "warn", same, sentence)


def _drift(old: Path, new: Path, entity: str, same_space: bool, frequency: Frequency | None) -> list[Check]:
    where = f"entity={entity}"
    before, after = _sample(old, entity), _sample(new, entity)
    if before.ids.type != after.ids.type:
        sentence = f"{entity} ids are {after.ids.type} now, {before.ids.type} before: no consumer can join them."
        return [_check("embedding_coverage", where, "block" if same_space else "warn", False, sentence)]
    found = compare(_paired(before, after, frequency), where)
    severity = {"block": "block" if same_space else "info", "info": "warn" if same_space else "info"}
    told = [check for check in found.checks if check.name != "embedding_repaired"]
    # What is told by frequency only informs: the vectors of rare entities always move.
    checks = [check if check.name == BUCKET else replace(check, severity=severity[check.severity]) for check in told]
    # A user's vector changes with every event, so two days of users agree less than two versions of an item.
    return [replace(check, severity="warn") if check.severity == "block" and entity != ITEM else check for check in checks]


def _paired(old: VectorTable, new: VectorTable, frequency: Frequency | None) -> Pairs:
    if not set(old.ids.to_pylist()) & set(new.ids.to_pylist()):
        dim = old.vectors_MD.shape[1]
        return Pairs(np.zeros((0, dim)), np.zeros((0, dim)), np.zeros(0, bool), lost=1.0)
    return pair(old, new, frequency)


def _sample(folder: Path, entity: str) -> VectorTable:
    manifest = read_manifest(folder)
    view = entity + WIDE if entity + WIDE in manifest.shards else entity
    rate = min(1.0, MAX_ENTITIES / manifest.entities[entity])
    ids, vectors = [], []
    for block in read_view(folder, manifest, view):
        drawn_M = hash_ids(block.ids) <= np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
        ids.append(block.ids.filter(pa.array(drawn_M)))
        vectors.append(block.vectors_MD[drawn_M])
    return VectorTable(pa.concat_arrays(ids), np.concatenate(vectors), str(folder / view))


def _check(name: str, where: str, severity: str, good: bool, sentence: str) -> Check:
    return Check(name=name, family=FAMILY, slice=where, outcome="pass" if good else "fail", severity=severity, sentence=sentence)
