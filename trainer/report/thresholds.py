"""Live thresholds on the charts: where a rule, or a quantile that stands in for one, cuts the scores of one action."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.report.artefacts import Artefacts
from trainer.report.scores import BINARY, PAIR, ActionScores, weighted_quantiles
from trainer.schema.verdict import ALL

_STAND_IN = re.compile(r"share_top_([\d.]+)%")  # the whole name: against the reference it goes on


@dataclass(frozen=True)
class LiveThreshold:
    """One threshold, and what the challenger would need for the same traffic.

    Attributes:
        name: Rule, or ``top 1 %``.
        at: The threshold, on production's scale.
        share: Share of production's traffic above it.
        now: Share of the challenger's traffic above it.
        same: Score above which the challenger has production's share.
    """

    name: str
    at: float
    share: float
    now: float
    same: float

    def sentence(self, kind: str) -> str:
        """The threshold in words and numbers."""
        unit, form = (100, "{:.3g}\u00a0%") if kind == BINARY else (1, "{:.3g}")
        at, same = (form.format(unit * value) for value in (self.at, self.same))
        return (
            f"{self.name}, score at least {at}: {self.now / self.share:.2f} times the traffic "
            f"({100 * self.share:.3g} → {100 * self.now:.3g}\u00a0%); as much as before from {same}"
        )


def live_thresholds(run: Artefacts, action: ActionScores) -> list[LiveThreshold]:
    """Returns the thresholds that cut this action's scores, lowest first; none where the two models were not both scored."""
    if not set(PAIR) <= set(action.scores):
        return []
    kept_N = np.isfinite(action.scores["production"]) & np.isfinite(action.scores["challenger"]) & (action.weight_N > 0)
    if not kept_N.any():
        return []
    theirs_N, ours_N, weight_N = action.scores["production"][kept_N], action.scores["challenger"][kept_N], action.weight_N[kept_N]
    found = []
    for name, at in _declared(run, action.name) or _stand_ins(run, action.name, theirs_N, weight_N):
        share, now = (float(weight_N @ (score_N >= at) / weight_N.sum()) for score_N in (theirs_N, ours_N))
        if 0 < share < 1:
            same = float(weighted_quantiles(ours_N, weight_N, np.array([1 - share]))[0])
            found.append(LiveThreshold(name, at, share, now, same))
    return sorted(found, key=lambda threshold: threshold.at)


def _declared(run: Artefacts, action: str) -> list[tuple[str, float]]:
    rules = (("thresholds", "at_least"), ("caps", "at_most"))
    return [
        (name, float(rule[key])) for group, key in rules for name, rule in run.setting("rules", group, default={}).items()
        if rule.get("score") == action
    ]  # fmt: skip


def _stand_ins(run: Artefacts, action: str, theirs_N: np.ndarray, weight_N: np.ndarray) -> Iterator[tuple[str, float]]:
    """Production's quantiles at the shares that the gate compared."""
    for check in run.checks:
        match = _STAND_IN.fullmatch(check.name)
        if match and (check.action, check.slice) == (action, ALL) and check.outcome != "not_applicable":
            share = float(match[1]) / 100
            yield f"top {100 * share:g} %", float(weighted_quantiles(theirs_N, weight_N, np.array([1 - share]))[0])
