"""The stage that writes the serving artefact and judges it against the ranker and production's artefact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint import Bundle, build_ranker, read_bundle
from trainer.errors import ExportError
from trainer.job import Job
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.serving import FOLDER, read_serving_manifest
from trainer.schema.verdict import Check

if TYPE_CHECKING:
    from trainer.fit import Trained
    from trainer.serving.judge import Live

_REPORT = "serving.json"
_LIVE = "serving-live"  # production's artefact, where its release holds none


def serving(job: Job, trained: Trained) -> list[Check]:
    """Writes the artefact into the run's folder and judges it; without ``serving.enabled`` there is nothing to judge."""
    folder, report = job.run.path / FOLDER, job.run.path / _REPORT
    if not job.config.serving.enabled:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt: the release must not hold it
        return []

    def produce() -> list[Check]:
        from trainer.serving import judge_serving

        _write(job, trained.bundle, folder)
        checks = judge_serving(build_ranker(trained.bundle), folder, job.config.serving, _live(job))
        write_text(report, json.dumps([as_plain(check) for check in checks], indent=1))
        return checks

    def keep() -> list[Check]:
        read_serving_manifest(folder)
        return [from_plain(Check, check) for check in json.loads(report.read_text())]

    def tell(checks: list[Check]) -> tuple[int, str]:
        size = sum(read_serving_manifest(folder).bytes.values()) / 1e6
        bad = [check.sentence for check in checks if check.outcome in ("fail", "hold")]
        return len(checks), bad[0] if bad else f"{', '.join(job.config.serving.format)}, {size:.1f} MB"

    key = [trained.bundle.sha256, job.live, as_plain(job.config.serving)]
    return job.run.stage("serving", key, produce, keep, tell)


def of_absorbed(job: Job, name: str) -> None:
    """Writes the artefact of the copy that has absorbed the holdout and goes live instead of the judged one.

    Raises:
        ExportError: If it does not repeat that copy's scores.
    """
    from trainer.serving import judge_serving

    bundle = read_bundle(job.run.path / name)
    folder = job.run.path / FOLDER
    _write(job, bundle, folder)
    failed = [check for check in judge_serving(build_ranker(bundle), folder, job.config.serving, None) if check.outcome == "fail"]
    if failed:
        raise ExportError(
            "the artefact of the absorbed copy is not that copy", where=folder, got=failed[0].sentence, remedy="release.absorb=false"
        )


def _write(job: Job, bundle: Bundle, folder: Path) -> None:
    from trainer.serving import write_artefact

    manifest = bundle.manifest
    write_artefact(
        build_ranker(bundle), folder, job.config.serving.format, producer=bundle.sha256, max_history=manifest.inputs.max_history,
        hashes=manifest.hashes,
    )  # fmt: skip


def _live(job: Job) -> Live | None:
    """Production's artefact: the one in its release, or one written now where the release has none in these formats."""
    if job.production is None:
        return None
    from trainer.serving import write_artefact
    from trainer.serving.judge import Live

    ranker, formats = build_ranker(job.production), job.config.serving.format
    release = job.registry.production_path()
    if release is not None and (release / FOLDER).is_dir() and set(formats) <= set(read_serving_manifest(release / FOLDER).files):
        return Live(release / FOLDER, ranker)
    folder = job.run.path / _LIVE
    live = job.production
    write_artefact(ranker, folder, formats, producer=live.sha256, max_history=live.manifest.inputs.max_history, hashes=live.manifest.hashes)
    return Live(folder, ranker)
