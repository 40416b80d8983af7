"""`diagnosis.json`: why a challenger was not promoted, or what to watch although it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DIAGNOSIS_VERSION = 1

FILE = "diagnosis.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One piece of evidence.

    Attributes:
        topic: What was looked at, say ``production against its record``.
        sentence: What was seen, with numbers.
        supports: Whether it speaks for the named cause.
    """

    topic: str
    sentence: str
    supports: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A diagnosis that a person reads in one paragraph.

    Attributes:
        version: Version of this schema.
        verdict: The gate's.
        cause: Most likely cause, one of `trainer.diagnose.cause.CAUSES`.
        paragraph: Verdict, cause, evidence and next command in a few sentences.
        next_command: What to run next; null where there is nothing to run.
        signals: How production and the challenger stand: ``production_on_fresh``, ``challenger_on_fresh``, ``challenger_on_golden`` (same,
            worse, better or unknown), and whether scale, features or data are suspect.
        findings: The evidence, what supports the cause first.
        changes: What differs from the parent (`summary.json`, `changes`), without what does not.
        cohorts: Day -> action -> {rate, n}: positives among labels of equal age.
        drift: Features that moved most from the training days to the judged ones: {feature, nulls_before, nulls_after, shift}.
        ablation: What each model loses without a feature: {feature, action, production, challenger}, relative increase of the loss.
        slices: Worst slices: {slice, action, n, harm, low, p, confirmed}; found on one half of the users, tested on the other.
    """

    version: int = DIAGNOSIS_VERSION
    verdict: str
    cause: str
    paragraph: str
    next_command: str | None = None
    signals: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    cohorts: dict[str, Any] = field(default_factory=dict)
    drift: list[dict[str, Any]] = field(default_factory=list)
    ablation: list[dict[str, Any]] = field(default_factory=list)
    slices: list[dict[str, Any]] = field(default_factory=list)
