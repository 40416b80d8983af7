"""What the gate's checks say when production is read as the control of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.schema.diagnosis import Finding
from trainer.schema.verdict import ALL, Check

SAME, WORSE, BETTER, UNKNOWN = "same", "worse", "better", "unknown"

_AGAINST_LABELS = ("ranking", "loss", "calibration")


@dataclass(frozen=True)
class Signals:
    """Where both models stand.

    Attributes:
        production_on_fresh: Production on the judged rows, against its own record.
        challenger_on_fresh: Challenger against production on the judged rows: ranking, and loss where no move of the scale explains it.
        challenger_on_golden: Challenger against production on the permanent validation sets.
        scale: Whether scores moved (traffic over thresholds, calibration) although ranking did not.
        skew: Whether production's bundle does not repeat the scores that it logged.
        corrupt: Judged days of which the scan masked or refused something.
        unsound: Whether a score or column cannot be judged at all.
        unfit: Whether a repair of the scale was tried and no curve could be fitted on these rows.
    """

    production_on_fresh: str
    challenger_on_fresh: str
    challenger_on_golden: str
    scale: bool
    skew: bool
    corrupt: tuple[str, ...]
    unsound: bool
    unfit: bool = False


def read_signals(checks: Sequence[Check], scan: Mapping[str, Any], holdout: Sequence[str]) -> Signals:
    """Condenses a verdict's checks, and the scan of the judged days.

    Args:
        checks: Checks of the challenger as it came.
        scan: Content of ``scan.json``; empty where there is none.
        holdout: Judged days.
    """
    days = scan.get("days", {})
    faults = tuple(day for day in holdout if days.get(day, {}).get("status", "ok") != "ok")
    # Churn is no matter of scale: other rows stand above the same thresholds, and no map brings the former ones back.
    moved = [check for check in checks if check.family in ("scores", "calibration") and not check.name.startswith("churn_")]
    scale = any(check.outcome == "fail" for check in moved)
    ranking, loss = (_compared([c for c in checks if c.family == family and c.severity == "block"]) for family in ("ranking", "loss"))
    return Signals(
        production_on_fresh=_control(checks),
        challenger_on_fresh=_together(ranking, SAME if loss == WORSE and scale else loss),
        challenger_on_golden=_compared([check for check in checks if check.family == "suite"]),
        scale=scale,
        skew=any(check.name == "rescoring" and check.outcome == "hold" for check in checks),
        corrupt=faults,
        unsound=any(check.family == "data" and check.outcome == "fail" for check in checks),
    )


def _control(checks: Sequence[Check]) -> str:
    outcomes = {check.outcome for check in checks if check.name == "label_sanity"}
    if "hold" in outcomes:
        return WORSE
    return SAME if "pass" in outcomes else UNKNOWN


def _compared(checks: Sequence[Check]) -> str:
    """Worse where a check failed; better where some gain on all rows is certain and nothing failed."""
    if not any(check.outcome in ("pass", "fail", "hold") for check in checks):
        return UNKNOWN
    if any(check.outcome == "fail" for check in checks):
        return WORSE
    sure = [check for check in checks if check.slice == ALL and check.high is not None and check.name != "ne_free"]
    return BETTER if any(check.high is not None and check.high < 0 for check in sure) else SAME


def _together(*signals: str) -> str:
    """The worst of several signals; better where one is and none is worse."""
    return next((signal for signal in (WORSE, BETTER, SAME) if signal in signals), UNKNOWN)


def findings(checks: Sequence[Check], signals: Signals) -> list[Finding]:
    """The checks behind the signals, in words; at most a few a topic."""
    topics = {
        "production against its own record": [c for c in checks if c.name == "label_sanity" and c.outcome in ("hold", "pass")],
        "re-scoring of what production logged": [c for c in checks if c.name == "rescoring" and c.outcome in ("hold", "pass")],
        "challenger against production on fresh data": [c for c in checks if c.family in _AGAINST_LABELS and c.outcome == "fail"],
        "permanent validation sets": [c for c in checks if c.family == "suite" and c.outcome in ("fail", "hold")],
        "score compatibility": [c for c in checks if c.family == "scores" and c.outcome == "fail"],
        "what cannot be judged": [c for c in checks if c.family == "data" and c.outcome == "fail"],
        "what cannot be told": [c for c in checks if c.outcome == "hold" and c.severity == "block" and c.family != "data"],
    }
    failed = any(check.outcome == "fail" and check.severity == "block" for check in checks)
    found = []
    for topic, chosen in topics.items():
        ranked = sorted(chosen, key=lambda check: (check.outcome == "pass", check.slice != ALL))
        found += [Finding(topic=topic, sentence=check.sentence, supports=_speaks(check, failed)) for check in ranked[:2]]
    found += [
        Finding(topic="scan", sentence=f"the scan masked or refused parts of the judged day {day}", supports=True)
        for day in signals.corrupt
    ]
    return sorted(found, key=lambda finding: not finding.supports)


def _speaks(check: Check, failed: bool) -> bool:
    """Whether a check is evidence: a warning decided nothing, and what merely could not be told is none beside what failed."""
    if check.outcome == "fail":
        return check.severity == "block"
    return check.outcome == "hold" and (check.family == "data" or not failed)
