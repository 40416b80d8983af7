"""What a run asks, as one hash, and whether it was answered before."""

from __future__ import annotations

from trainer import __version__
from trainer.job import Job
from trainer.rebuild.plan import content_hash
from trainer.schema.hashing import sha256_json
from trainer.schema.health import HealthMap
from trainer.schema.plain import as_plain
from trainer.schema.suite import SUITES
from trainer.schema.summary import Summary
from trainer.suites import SuiteStore

# Settings that change how a run looks or where it lies, but not what it computes.
_COSMETIC = ("run_dir", "registry", "tracking", "release", "cost")


def question(job: Job, health: HealthMap) -> str:
    """Returns the hash of everything the verdict depends on: as_of, configuration, suites, and the bytes of the log.

    Production is left out on purpose: once this run's challenger is live, running it again is still the same question.
    """
    settings = {key: value for key, value in as_plain(job.config).items() if key not in _COSMETIC}
    settings["data"] = {**settings["data"], "root": None}
    settings["scan"] = {**settings["scan"], "root": None, "workers": None}
    settings["rebuild"] = {**settings["rebuild"], "root": None, "workers": None, "engine": None}
    settings["fit"] = {**settings["fit"], "progress": None}
    contents = {day: content_hash(day, state) for day, state in health.days.items()}
    suites = SuiteStore(job.registry.folder / SUITES).digests()
    return sha256_json([__version__, settings, contents, *([suites] if suites else [])])


def judged_before(job: Job, asked: str) -> bool:
    """Tells whether the same question already has a verdict in this registry."""
    return job.registry.judged(asked) is not None


def nothing_to_do(job: Job, asked: str) -> Summary:
    """Says what an earlier run decided. A summary that lies in the folder already is the better one and stays.

    A run that was stopped between its verdict and its report gets the page now.
    """
    entry = job.registry.judged(asked)
    reason = f"the same day, configuration and data were judged {entry.verdict if entry else ''} before"
    print(f"nothing to do: {reason}", flush=True)
    summary = Summary(verdict=None, as_of=job.as_of, status="nothing to do", reason=reason, stages=job.run.records)
    if (job.run.path / "verdict.json").is_file() and not (job.run.path / "report.html").is_file():
        from trainer.report import render

        print(f"{'report':<11}{render(job.run.path)}", flush=True)
    return summary if job.run.summary() is not None else job.run.finish(summary)
