"""`summary.json`: what a run did, in one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUMMARY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of a run.

    Attributes:
        seconds: Wall time.
        rows: Rows that it produced or judged.
        status: ``done``, ``kept`` (an earlier attempt's artefact was used) or ``skipped``.
        detail: What it did, in a few words.
    """

    seconds: float
    rows: int
    status: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of a run; the keys are an interface.

    Attributes:
        version: Version of this schema.
        verdict: PROMOTE, HOLD, REJECT, or None where nothing was judged.
        as_of: Cut-off day.
        status: ``done`` or ``nothing to do``.
        reason: One sentence behind the verdict or the status.
        stages: Stage -> record.
        data: Rows read, used, quarantined by kind, duplicates, late, and the days' plan.
        transfer: Totals of the warm start, or None.
        production: Action -> metrics of the live model.
        challenger: Action -> metrics of the new one.
        baselines: Baseline -> action -> metrics.
        changes: Configuration, code version, label expressions and data against the parent.
        export: What was exported.
        rescoring: How well production's bundle repeats the scores that it logged, where the log has them.
        downstream: Lift of the downstream model.
        release: What was sealed and whether the pointer moved.
        versions: Bundles: production, challenger.
        cost: Operations and their share of the machine's limit, positions a second, seconds, money, growth (`trainer.fit.cost`).
        objective: Value of `evaluation.objective`, the value of a sweep's trial.
    """

    version: int = SUMMARY_VERSION
    verdict: str | None
    as_of: str
    status: str
    reason: str = ""
    stages: dict[str, StageRecord] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] | None = None
    production: dict[str, Any] | None = None
    challenger: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] | None = None
    rescoring: dict[str, Any] | None = None
    downstream: dict[str, Any] | None = None
    release: dict[str, Any] | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    objective: float | None = None
