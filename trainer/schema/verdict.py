"""`verdict.json`: what the gate decided and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


APPLIED = "applied"
NO_HELP = "no help"
REFUSED = "refused"
NOT_ATTEMPTED = "not attempted"


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """Repairs of a challenger that was not promoted as it came.

    Attributes:
        status: ``applied`` (the verdict is that of the repaired challenger, and the curves belong to its release), ``no help`` (the
            repaired challenger was judged no better), ``refused`` (no curve could be fitted), or ``not attempted`` (something failed
            that no increasing curve mends).
        sentence: What was done, or why not.
        sha256: Identity of the curves (`trainer.schema.repair.Repair.sha256`); null unless applied.
        fitted_rows: Rows that curves were fitted on.
        fitted_users: Their users.
        judged_rows: Rows that the repaired challenger was judged on.
        judged_users: Their users, none of them among the fitted ones.
        before: Verdict, reason and failed checks of the challenger's scores as they came, on all rows.
        after: The same of the repaired ones, on the judged rows; empty if they were not judged.
        actions: Action -> method, reason, and {ratio, ne, base_rate, n} ``before`` and ``after`` on the judged rows.
        mended: Path of a check that failed -> estimate ``before``, ``after``, and the ``margin``.
    """

    status: str
    sentence: str
    sha256: str | None = None
    fitted_rows: int = 0
    fitted_users: int = 0
    judged_rows: int = 0
    judged_users: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    actions: dict[str, Any] = field(default_factory=dict)
    mended: dict[str, Any] = field(default_factory=dict)


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
        repair: What repairs were tried on the challenger, if any were asked for and it was not promoted as it came.
    """

    version: int = VERDICT_VERSION
    verdict: str
    reason: str
    policy: str
    checks: list[Check]
    failed: list[str]
    repair: RepairReport | None = None
