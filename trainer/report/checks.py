"""Checks of the gate as a person reads them: what decided, forests of paired differences, and the full list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from trainer.report.artefacts import Artefacts
from trainer.report.numbers import count, finite, fixed, interval, percent, significant
from trainer.schema.suite import FAMILY as SUITE
from trainer.schema.verdict import ALL, OUTCOMES, Check

STRIP_WIDTH, STRIP_HEIGHT = 260, 22
MOST_ROWS = 30  # of one forest; a longer one is not read
OUTCOME_WORDS = {
    "fail": "failed", "hold": "held", "pass": "passed", "not_testable": "not testable", "not_applicable": "not applicable",
}  # fmt: skip
MOST_FINDINGS, MOST_WARNINGS = 8, 4  # on the first screen
MOST_LINES = 1000  # of the full list: what a page can carry; the rest is in verdict.json


@dataclass(frozen=True)
class ForestRow:
    """One line: a slice or a threshold, its interval drawn and in numbers."""

    label: str
    strip: Markup
    numbers: str
    bounds: str
    rows: str
    outcome: str
    sentence: str

    @property
    def word(self) -> str:
        return OUTCOME_WORDS.get(self.outcome, self.outcome)


@dataclass(frozen=True)
class Forest:
    """Intervals under each other on one scale.

    Attributes:
        title: What is compared.
        head: Words over the label column.
        left: What lies to the left of 0.
        right: What lies to the right.
        ends: Values at both ends of the scale.
        rows: The lines.
        omitted: What was left out, in a sentence; empty if nothing was.
    """

    title: str
    head: str
    left: str
    right: str
    ends: tuple[str, str]
    rows: list[ForestRow]
    omitted: str = ""


@dataclass(frozen=True)
class Finding:
    """A check that failed or held, and the other slices where it did so too."""

    check: Check
    also: list[str]

    @property
    def against(self) -> str:
        """Baseline that the challenger is compared with, where it is not production: the sentence does not say."""
        return self.check.name.partition("_vs_")[2]


@dataclass(frozen=True)
class Findings:
    """Findings of the first screen, and how many are left to the list of all checks."""

    shown: list[Finding]
    more: int


def deciding(run: Artefacts) -> list[Check]:
    """Blocking checks that failed or held."""
    return [check for check in run.checks if check.severity == "block" and check.outcome in ("fail", "hold")]


def warnings(run: Artefacts) -> list[Check]:
    """Checks that warn: what only informs stands in the list of all checks."""
    return [check for check in run.checks if check.severity == "warn" and check.outcome in ("fail", "hold")]


def findings(found: Sequence[Check], most: int = MOST_FINDINGS) -> Findings:
    """Groups findings of one check on one action: the first in full, the slices that share it by name."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in found:
        groups.setdefault((check.outcome, check.name, check.action), []).append(check)
    shown = [Finding(group[0], [check.slice for check in group[1:]]) for group in groups.values()]
    return Findings(shown[:most], max(0, len(shown) - most))


def tally(checks: Iterable[Check]) -> str:
    """Returns ``2 failed, 31 passed``."""
    counts = Counter(check.outcome for check in checks)
    return ", ".join(f"{count(counts[outcome])} {word}" for outcome, word in OUTCOME_WORDS.items() if counts[outcome]) or "none"


def slice_forests(run: Artefacts) -> list[Forest]:
    """Returns a forest an action: change of the loss by slice, or of the ranking where no loss was judged."""
    actions = list(dict.fromkeys(check.action for check in run.checks if check.slice != ALL and check.family != SUITE))
    forests = []
    for action in sorted(actions):
        for name, title, relative in (("ne", "NE", True), ("deviance", "normalised deviance", True), ("auc", "AUC", False)):
            checks = [check for check in run.checks if (check.name, check.action) == (name, action) and check.family != SUITE]
            if any(check.slice != ALL and finite(check.estimate) is not None for check in checks):
                form = partial(percent, digits=2, signed=True) if relative else partial(fixed, digits=4, signed=True)
                forests.append(forest(f"{action}: change of {title}", "slice", checks, ("better", "worse"), form))
                break
    return forests


def score_forest(run: Artefacts) -> Forest | None:
    """Returns the change of traffic over each threshold: all rows, and the slices that failed or held."""
    wanted = [
        check for check in run.checks
        if check.family == "scores" and check.name.startswith(("share_", "mean_score")) and check.outcome != "not_applicable"
        and (check.slice == ALL or check.outcome in ("fail", "hold"))
    ]  # fmt: skip
    return _family_forest(wanted, "Traffic above each threshold, against production", "threshold", ("less traffic", "more traffic"))


def churn_checks(run: Artefacts) -> list[Check]:
    """Returns how much of what stood above each threshold was replaced."""
    return [check for check in run.checks if check.family == "scores" and check.name.startswith("churn_")]


def not_replayed(run: Artefacts) -> list[Check]:
    """Returns the thresholds and rules that could not be compared, and why."""
    return [check for check in run.checks if check.family == "scores" and check.outcome == "not_applicable"]


def suite_checks(run: Artefacts) -> list[Check]:
    """Returns the checks of permanent validation sets, those that decided first."""
    return [check for check in run.checks if check.family == SUITE]


def slate_forest(run: Artefacts) -> Forest | None:
    """Returns what the top of the slates is made of, against production."""
    wanted = [check for check in run.checks if check.family == "slate"]
    return _family_forest(wanted, "What stands on top of the slates, against production", "what", ("less", "more"))


def _family_forest(checks: Sequence[Check], title: str, head: str, sides: tuple[str, str]) -> Forest | None:
    if not any(finite(check.estimate) is not None for check in checks):
        return None
    return forest(title, head, checks, sides, partial(percent, digits=1, signed=True), named=True)


def forest(
    title: str, head: str, checks: Sequence[Check], sides: tuple[str, str], form: Callable[[float | None], str], named: bool = False
) -> Forest:
    """Draws checks under each other.

    Args:
        title: What is compared.
        head: Words over the label column.
        checks: Those without an estimate are counted, not drawn.
        sides: Words for the left and the right of 0.
        form: Writes an estimate.
        named: Whether a label names check and score rather than the slice alone.
    """
    drawn = [check for check in checks if finite(check.estimate) is not None and check.outcome not in ("not_testable", "not_applicable")]
    chosen = _most_telling(drawn)
    extent = _extent(chosen)
    rows = [
        ForestRow(
            label=_label(check, named),
            strip=strip(check, extent),
            numbers=form(check.estimate),
            bounds=interval([check.low, check.high], form),
            rows=count(check.n),
            outcome=check.outcome,
            sentence=check.sentence,
        )
        for check in chosen
    ]
    silent = len(checks) - len(drawn)
    parts = [f"{count(len(drawn) - len(chosen))} with smaller deviations" if len(drawn) > len(chosen) else ""]
    parts += [f"{count(silent)} too small to be tested" if silent else ""]
    words = " and ".join(part for part in parts if part)
    ends = (form(-extent), form(extent))
    return Forest(title, head, sides[0], sides[1], ends, rows, f"Not drawn: {words}; see the list of all checks." if words else "")


def _label(check: Check, named: bool) -> str:
    if not named:
        return "all rows" if check.slice == ALL else check.slice
    words = check.name.removeprefix("share_").removeprefix("slate_").replace("_", " ")
    score = "" if check.family == "slate" else f"{check.action}, "
    return f"{score}{words}" + ("" if check.slice == ALL else f" ({check.slice})")


def _most_telling(checks: list[Check]) -> list[Check]:
    """All rows first, then by slice column; of a long list those that failed or held and the largest harms."""

    def deviation(check: Check) -> tuple[bool, bool, float]:
        return check.slice != ALL, check.outcome not in ("fail", "hold"), -abs(check.estimate or 0.0)

    kept = sorted(checks, key=deviation)[:MOST_ROWS]
    return sorted(
        kept, key=lambda check: (check.slice != ALL, check.slice.partition("=")[0], -(check.estimate or 0.0), check.slice, check.name)
    )


def _extent(checks: Sequence[Check]) -> float:
    """Half width of the scale: wide enough for nearly all ends and for the margins; what is beyond gets an arrow."""
    ends = [abs(x) for check in checks for x in (check.low, check.high, check.estimate) if finite(x) is not None and x is not None]
    margins = [check.margin for check in checks if check.margin is not None]
    reach = max(float(np.quantile(ends, 0.95)) if ends else 0.0, 1.2 * min(margins, default=0.0), 1e-9)
    power = 10.0 ** math.floor(math.log10(reach))
    return next(factor * power for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * power >= reach * (1 - 1e-9))


def strip(check: Check, extent: float) -> Markup:
    """Draws one interval: shaded what is tolerated, a line at 0, whisker and dot; an arrow where it leaves the scale."""
    middle = STRIP_HEIGHT / 2

    def place(value: float) -> float:
        return round(float(np.clip((value + extent) / (2 * extent), 0, 1)) * (STRIP_WIDTH - 12) + 6, 1)

    parts = []
    if check.margin is not None:
        low, high = place(-check.margin), place(check.margin)
        parts.append(f'<rect class="tolerated" x="{low}" y="2" width="{round(high - low, 1)}" height="{STRIP_HEIGHT - 4}"/>')
    parts.append(f'<path class="zero" d="M{place(0)} 0V{STRIP_HEIGHT}"/>')
    if check.low is not None and check.high is not None:
        parts.append(f'<path class="whisker" d="M{place(check.low)} {middle}H{place(check.high)}"/>')
    ends = [x for x in (check.low, check.estimate, check.high) if x is not None]
    if min(ends, default=0.0) < -extent:
        parts.append(f'<path class="whisker" d="M7 {middle - 4}L2 {middle}L7 {middle + 4}"/>')
    if max(ends, default=0.0) > extent:
        right = STRIP_WIDTH - 2
        parts.append(f'<path class="whisker" d="M{right - 5} {middle - 4}L{right} {middle}L{right - 5} {middle + 4}"/>')
    if check.estimate is not None and abs(check.estimate) <= extent:
        parts.append(f'<circle class="point" cx="{place(check.estimate)}" cy="{middle}" r="3.6"/>')
    kind = check.outcome if check.outcome in OUTCOMES else "hold"
    size = f'viewBox="0 0 {STRIP_WIDTH} {STRIP_HEIGHT}" width="{STRIP_WIDTH}" height="{STRIP_HEIGHT}"'
    return Markup(f'<svg class="strip {kind}" {size} aria-hidden="true">{"".join(parts)}</svg>')  # the numbers stand beside it


@dataclass(frozen=True)
class CheckLine:
    """One line of the full list, numbers in the check's own unit."""

    check: Check
    numbers: str
    margin: str

    @property
    def word(self) -> str:
        return OUTCOME_WORDS.get(self.check.outcome, self.check.outcome)


def lines(checks: Sequence[Check], most: int = MOST_LINES) -> list[CheckLine]:
    """Returns the list of checks; of a very long one the first, which is where the verdict puts those that matter."""
    short = partial(significant, digits=3)
    return [
        CheckLine(check, " ".join([short(check.estimate), interval([check.low, check.high], short)]).strip(), short(check.margin))
        for check in checks[:most]
    ]
