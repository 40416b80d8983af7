"""`verdict.json`: what the gate decided and why."""

from __future__ import annotations

from dataclasses import dataclass

VERDICT_VERSION = 1

PROMOTE = "PROMOTE"
HOLD = "HOLD"
REJECT = "REJECT"

OUTCOMES = ("pass", "fail", "hold", "not_testable", "not_applicable")
SEVERITIES = ("block", "warn", "info")
ALL = "all"  # the slice that holds every row


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, its answer, and the sentence a person reads.

    Attributes:
        name: What is measured, say ``auc`` or ``share@top_1%``.
        family: Group of checks (`trainer.schema.policy.FAMILIES`, ``data``, or the stage that handed the check in).
        action: Action, blend or ``value``; ``all`` where the check is about no single one.
        slice: ``<column>=<value>``, or ``all``.
        estimate: Harm, or the quantity that is bounded, in the margin's unit; null when there is none.
        low: Lower end of its interval.
        high: Upper end.
        margin: What is tolerated.
        p: p-value of "harm is within the margin"; null where nothing was tested.
        n: Rows.
        mde: Smallest harm that this check would have shown with the policy's power.
        outcome: One of `OUTCOMES`.
        severity: Whether the outcome decides (``block``), warns or informs.
        sentence: The finding in words and numbers.
    """

    name: str
    family: str
    action: str = ALL
    slice: str = ALL
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    p: float | None = None
    n: int = 0
    mde: float | None = None
    outcome: str
    severity: str = "block"
    sentence: str

    @property
    def path(self) -> str:
        """``<check>/<action>/<column>=<value>``, as `Verdict.failed` lists it."""
        return f"{self.name}/{self.action}/{self.slice}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's decision.

    Attributes:
        version: Version of this schema.
        verdict: PROMOTE, HOLD or REJECT.
        reason: One sentence: what decided.
        policy: Name of the policy.
        checks: Every check, the deciding ones first.
        failed: Paths of the blocking checks that failed.
    """

    version: int = VERDICT_VERSION
    verdict: str
    reason: str
    policy: str
    checks: list[Check]
    failed: list[str]
