"""The release stage: seals what may go live, records the verdict, moves the pointer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trainer.release.registry import Registry
from trainer.schema.downstream import FINAL, FINAL_FILE
from trainer.schema.hashing import sha256_file, sha256_json
from trainer.schema.verdict import PROMOTE, REJECT, Verdict

SEALED = ("verdict.json", "repair.json", "eval.json", "transfer.json", "config.yaml")


def stage_release(
    registry: Registry, run_dir: Path, verdict: Verdict, *, as_of: str, inputs_sha256: str, bundle_sha256: str, parent: str | None,
    expected_revision: int, auto: bool, bundle: str = "challenger",
) -> dict[str, Any]:  # fmt: skip
    """Carries out a verdict.

    Args:
        registry: Where releases live.
        run_dir: The run; holds the bundle, ``embeddings/``, ``downstream/`` and the reports.
        verdict: The gate's decision.
        as_of: Cut-off day.
        inputs_sha256: Identity of the question that was judged.
        bundle_sha256: Identity of the challenger.
        parent: Version that was live when the run started.
        expected_revision: Revision of the pointers at that time.
        auto: Whether PROMOTE is carried out.
        bundle: Folder of the run that holds the bundle: ``challenger``, or ``absorbed``.

    Returns:
        {version, sealed, promoted, sentence}. A rejected challenger is not sealed: it changes nothing but the history. While promotions
        are frozen a good one is sealed and stays ready: a freeze stops promotions, and not the nights' judgements and reports.

    Raises:
        RaceError: If the pointer moved during the run.
        RegistryError: If the disk refuses.
    """
    if verdict.verdict == REJECT:
        registry.record_verdict(verdict.verdict, as_of=as_of, inputs_sha256=inputs_sha256, reason=verdict.reason)
        return {"version": None, "sealed": False, "promoted": False, "sentence": "rejected: production stays"}
    staged = _staged(run_dir, bundle)
    version = _version(as_of, bundle_sha256, staged)
    registry.seal(version, staged, as_of=as_of, verdict=verdict.verdict, parent=parent, inputs_sha256=inputs_sha256)
    shutil.rmtree(staged)
    wanted, frozen = verdict.verdict == PROMOTE and auto, registry.aliases().frozen
    promoted = wanted and frozen is None
    if promoted:
        registry.promote(version, expected_revision, reason=verdict.reason)
    registry.record_verdict(verdict.verdict, as_of=as_of, inputs_sha256=inputs_sha256, release=version, reason=verdict.reason)
    sentence = f"{version} is live" if promoted else f"{version} is sealed, not live"
    if wanted and not promoted:
        sentence += f": promotions are frozen ({frozen}); after action=unfreeze: scripts/release.py action=promote version={version}"
    return {"version": version, "sealed": True, "promoted": promoted, "sentence": sentence}


def _version(as_of: str, bundle_sha256: str, staged: Path) -> str:
    """Names a release by what it holds: one model judged twice, say by another policy, is two releases, each with its verdict."""
    papers = {name: sha256_file(staged / name) for name in (*SEALED, f"{FINAL}/{FINAL_FILE}") if (staged / name).exists()}
    return f"{as_of}-{sha256_json([bundle_sha256, papers])[:10]}"


def _staged(run_dir: Path, bundle: str) -> Path:
    """Gathers a release in one folder."""
    staged = run_dir / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for source, name in ((bundle, "bundle"), ("embeddings", "embeddings"), ("serving", "serving"), (FINAL, FINAL)):
        if (run_dir / source).is_dir():
            shutil.copytree(run_dir / source, staged / name)
    for name in SEALED:
        if (run_dir / name).exists():
            shutil.copy2(run_dir / name, staged / name)
    return staged
