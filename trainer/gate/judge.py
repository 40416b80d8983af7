"""The gate: every check over one table of predictions, then one verdict.

any blocking check fails   -> REJECT   (also one that could not be made: the gate fails closed)
else any blocking one holds -> HOLD    (the data cannot tell)
else                        -> PROMOTE
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.errors import RewarmError
from trainer.gate.calibration import calibration, cumulative, usual_move
from trainer.gate.compatibility import check_rules, churn, mean_scores, replayed, rule_scores, thresholds, traffic
from trainer.gate.decide import Question, settle
from trainer.gate.quality import CHANCE, above_chance, explanation, quality, realised_value, unproven, value_ranking
from trainer.gate.replay import entry_point
from trainer.gate.sanity import label_sanity, temper
from trainer.gate.scope import Scope, scopes
from trainer.gate.slate import composition, overlap
from trainer.gate.slices import SliceColumn
from trainer.gate.suites import ask_suites, doubted
from trainer.gate.table import PAIR, ActionColumns, Predictions, compared_rows, failed, not_applicable, prepare, read_table
from trainer.schema import predictions as names
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.record import Recorded
from trainer.schema.suite import FAMILY, SuiteCase
from trainer.schema.verdict import ALL, APPLIED, HOLD, PROMOTE, REJECT, Check, RepairReport, Verdict

_OUTCOME_ORDER = ("fail", "hold", "not_testable", "pass", "not_applicable")
_SEVERITY_ORDER = ("block", "warn", "info")


_THREADS = 2  # more would pay on more cores, and hold as many more copies of the columns


class _Docket:
    """Collects questions and settled checks; a metric that raises becomes a failed check instead of a missing one."""

    def __init__(self, policy: GatePolicy) -> None:
        self.policy = policy
        self.questions: list[Question] = []
        self.checks: list[Check] = []

    def severity(self, family: str, default: str = "block") -> str:
        return self.policy.severity.get(family, default)

    def ask(self, about: tuple[str, str, str], measure: Callable[..., Iterable[Question | Check]], *arguments: object) -> None:
        """Runs ``measure(*arguments)``; `about` names the check, its action and its family should it raise."""
        try:
            found = list(measure(*arguments))
        except RewarmError:
            raise  # a wrong configuration is the caller's to mend, not a bad model
        except Exception as error:
            name, action, family = about
            words = f"{name} raised {type(error).__name__}: {error}"
            self.checks.append(failed(name, words, action=action, family=family))
            return
        self.take(self._graded(one) if isinstance(one, Question) else one for one in found)

    def take(self, found: Iterable[Question | Check]) -> None:
        """Adds questions and settled checks as they are."""
        for one in found:
            if isinstance(one, Question):
                self.questions.append(one)
            else:
                self.checks.append(one)

    def run(self, tasks: Sequence[Callable[[_Docket], None]]) -> None:
        """Runs tasks on two threads (numpy sorts and sums outside of Python's lock) and takes their findings in the order of the tasks."""

        def one(task: Callable[[_Docket], None]) -> _Docket:
            own = _Docket(self.policy)
            task(own)
            return own

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            for own in pool.map(one, tasks):
                self.take([*own.checks, *own.questions])

    def _graded(self, question: Question) -> Question:
        severity = self.policy.severity.get(question.check.name, question.check.severity)
        return replace(question, check=replace(question.check, severity=severity))


Task = Callable[[_Docket], None]


def judge(
    predictions: pa.Table | Path | str,
    policy: GatePolicy,
    rules: RuleSet,
    *,
    value_weights: dict[str, float] | None = None,
    suites: Sequence[SuiteCase] = (),
    record: Mapping[str, Recorded] | None = None,
    slices: Sequence[SliceColumn] | None = None,
    seed: int = 0,
) -> Verdict:
    """Judges challenger against production on the same rows.

    Args:
        predictions: Table or Parquet file with the columns of `trainer.schema.predictions`, wherever it comes from.
        policy: Margins and error rates.
        rules: Rules behind the scores, replayed on both models; an empty set compares traffic at production's quantiles.
        value_weights: Action -> weight of the value function; default: recovered from production's columns.
        suites: Permanent validation sets; a past failure that is back rejects.
        record: Production's recorded calibration: a challenger is not blamed for labels that changed under production too.
        slices: Slice columns of these rows, where they are a part of a table that was judged; default: made of this table.
        seed: Seed of bootstraps.

    Returns:
        The verdict with every check.

    Raises:
        DataError: If the file cannot be read or holds nothing that can be judged.
        ConfigError: If a rule refers to a score that cannot exist.
    """
    source, left_out = compared_rows(read_table(predictions), policy)
    table = prepare(source, policy, slices)
    docket = _Docket(policy)
    docket.checks += [*left_out, *table.findings, *label_sanity(table, policy, record)]
    tasks: list[Task] = []
    for action in table.actions:
        if set(PAIR) <= set(action.scores):
            tasks.append(partial(_compare, table=table, action=action, seed=seed))
        elif names.CHALLENGER in action.scores:  # otherwise its scores are unsound, which is a failed check already
            tasks.append(partial(_sanity, table=table, action=action))
    if any(set(PAIR) <= set(action.scores) for action in table.actions):
        gain = realised_value(table, value_weights)
        realised_N = None if isinstance(gain, Check) else gain
        tasks.append(partial(_judge_scores, table=table, source=source, rules=rules, realised_N=realised_N))
        tasks.append(partial(_judge_slates, table=table, rules=rules, gain=gain))
    elif not any(check.name == "scores" for check in table.findings):
        docket.checks.append(_first(policy))
    docket.run(tasks)
    docket.take(ask_suites(suites, source, policy, value_weights, seed))
    settled = [unproven(check) for check in doubted(settle(docket.questions, policy), policy)]
    checks = temper([_json_safe(check) for check in [*docket.checks, *settled]], table, policy)
    return conclude([*checks, *_coverage(checks, table, policy)], policy)


def conclude(checks: Iterable[Check], policy: GatePolicy, repair: RepairReport | None = None) -> Verdict:
    """Returns the verdict that settled checks amount to; deciding ones come first.

    Args:
        checks: Of the scores, and of other stages (export, downstream, serving): they decide alike.
        policy: Named in the verdict.
        repair: What was done to the scores before they were judged, if anything was.
    """
    verdict = _verdict(_sorted(checks), policy)
    if repair is None:
        return verdict
    words = f"{repair.sentence}: " if repair.status == APPLIED else ""
    return replace(verdict, reason=words + verdict.reason, repair=repair)


def _compare(docket: _Docket, table: Predictions, action: ActionColumns, seed: int) -> None:
    """Ranking, loss and calibration of one action on its ripe rows, against production; and against counting and the reference."""
    policy, where = docket.policy, scopes(table, docket.policy, ~np.isnan(action.label_N))
    usual = 0.0
    for scope in where:
        docket.ask(("quality", action.name, "ranking"), quality, action, scope, policy, docket.severity("ranking"))
        about, severity = ("calibration", action.name, "calibration"), docket.severity("calibration")
        docket.ask(about, calibration, action, scope, policy, severity, usual)
        usual = usual_move(action, where[0])
    if not action.means:
        docket.checks.append(not_applicable("calibration", "calibration", "scores are uncalibrated (gate.score_kind)", action=action.name))
    docket.ask(("loss", action.name, "loss"), explanation, action, where[0], policy)
    docket.ask(("ecce", action.name, "calibration"), cumulative, action, where[0], policy, docket.severity("calibration"), seed)
    for baseline in (names.COUNTING, names.CONTINUED):
        if baseline in action.scores:
            severity = docket.severity("baseline", "warn")
            docket.ask((f"vs_{baseline}", action.name, "baseline"), quality, action, where[0], policy, severity, baseline)
    if names.REFERENCE in action.scores:
        _against_reference(docket, action, where[0])


def _against_reference(docket: _Docket, action: ActionColumns, everything: Scope) -> None:
    """The same margins against a frozen release: a loss too small to be shown in one night adds up over a hundred."""
    policy, severity = docket.policy, docket.severity("reference")
    about = ("vs_reference", action.name, "reference")
    docket.ask(about, quality, action, everything, policy, severity, names.REFERENCE)
    docket.ask(about, calibration, action, everything, policy, severity, 0.0, names.REFERENCE)


def _sanity(docket: _Docket, table: Predictions, action: ActionColumns) -> None:
    """Without production: calibrated within wide bounds, and not shown to rank worse than chance, nor than counting."""
    policy = docket.policy
    why = f"production_{action.name} is absent, so nothing is compared with it"
    docket.checks.append(not_applicable("production", "data", why, action=action.name))
    [scope] = scopes(replace(table, slices=[]), policy, ~np.isnan(action.label_N))
    wide = replace(scope, factor=policy.prove_within)
    docket.ask(("calibration", action.name, "calibration"), calibration, action, wide, policy, docket.severity("calibration"))
    docket.ask(("chance", action.name, "ranking"), above_chance, action, scope, policy)
    if names.COUNTING in action.scores:
        docket.ask(("counting", action.name, "baseline"), _not_below_counting, action, scope, policy)


def _not_below_counting(action: ActionColumns, scope: Scope, policy: GatePolicy) -> list[Question]:
    """Ranking against counting; nothing need be proven, only a shown loss counts."""
    asked = [one for one in quality(action, scope, policy, "block", names.COUNTING) if isinstance(one, Question)]
    return [replace(question, upper=-math.inf) for question in asked if question.check.name.startswith(("auc", "rank_correlation"))]


def _judge_scores(docket: _Docket, table: Predictions, source: pa.Table, rules: RuleSet, realised_N: np.ndarray | None) -> None:
    """Traffic over thresholds, rules that are code, churn, mean scores: every row counts, ripe or not."""
    policy, where = docket.policy, scopes(table, docket.policy)
    live, skipped = thresholds(table, rules, policy, realised_N)
    docket.checks += [*check_rules(rules, table), *skipped]
    for name, rule in rules.python.items():
        function = entry_point(rule, f"rules.python.{name}.function")
        docket.ask((f"share_{name}", name, "scores"), replayed, name, function, source, rule_scores(table, rules), where, policy,
                   docket.severity("scores"))  # fmt: skip
    for threshold in live:
        docket.ask((threshold.name, threshold.score, "scores"), traffic, threshold, where, policy, docket.severity("scores"))
        docket.ask(("churn", threshold.score, "scores"), churn, threshold, where[0], policy)
    for threshold in thresholds(table, rules, policy, realised_N, names.REFERENCE)[0]:
        about = (threshold.name, threshold.score, "reference")
        severity = docket.severity("reference", "block" if threshold.declared else "warn")
        docket.ask(about, _as_reference, traffic(threshold, where[:1], policy, severity))
    docket.ask(("mean_score", ALL, "scores"), mean_scores, table, where[0], policy)


def _as_reference(questions: Iterable[Question]) -> list[Question]:
    return [replace(question, check=replace(question.check, family="reference")) for question in questions]


def _judge_slates(docket: _Docket, table: Predictions, rules: RuleSet, gain: np.ndarray | Check) -> None:
    """NDCG of the value, composition and overlap of the slates."""
    policy = docket.policy
    if isinstance(gain, Check):
        docket.checks.append(gain)
    else:
        for scope in scopes(table, policy, ~np.isnan(gain)):
            docket.ask(("ndcg", VALUE, "ranking"), value_ranking, table, scope, gain, policy, docket.severity("ranking"))
            if scope.slices == [ALL] and names.REFERENCE in table.value:
                severity = docket.severity("reference")
                docket.ask(("ndcg", VALUE, "reference"), value_ranking, table, scope, gain, policy, severity, names.REFERENCE)
    [everything] = scopes(replace(table, slices=[]), policy)
    docket.ask(("slate", VALUE, "slate"), composition, table, everything, policy, docket.severity("slate"))
    docket.ask(("overlap", ALL, "scores"), overlap, table, rules, everything, policy)


def _first(policy: GatePolicy) -> Check:
    """What it means that there is no production to compare with."""
    holds = policy.first == "hold"
    words = "held until a person looks (gate.first=hold)" if holds else "its sanity checks decide (gate.first=promote)"
    return Check(
        name="first", family="data", outcome="hold" if holds else "pass", severity="block",
        sentence=f"there is no production to compare the challenger with: {words}",
    )  # fmt: skip


def _json_safe(check: Check) -> Check:
    """JSON has no infinity: an open end of an interval is null."""

    def known(x: float | None) -> float | None:
        return x if x is not None and math.isfinite(x) else None

    return replace(
        check, estimate=known(check.estimate), low=known(check.low), high=known(check.high), margin=known(check.margin),
        p=known(check.p), mde=known(check.mde),
    )  # fmt: skip


def _coverage(checks: Sequence[Check], table: Predictions, policy: GatePolicy) -> list[Check]:
    """How much of the traffic lies in slices about which no blocking check could say anything."""
    found = []
    for column in table.slices:
        own = [check for check in checks if check.slice.startswith(f"{column.name}=") and check.severity == "block"]
        told = {check.slice for check in own if check.outcome != "not_testable"}
        rows = {check.slice: check.n for check in own}
        if not any(rows.values()):
            continue
        untested = sum(n for place, n in rows.items() if place not in told) / sum(rows.values())
        held = untested > policy.untestable_share
        words = "too much to promote on" if held else "tolerable"
        check = Check(
            name="slice_coverage", family="data", slice=f"{column.name}=*", estimate=untested, margin=policy.untestable_share,
            n=sum(rows.values()), outcome="hold" if held else "pass", severity=policy.severity.get("slice_coverage", "block"),
            sentence=f"{untested:.0%} of the traffic lies in values of {column.name} that are too small for every check: {words}",
        )  # fmt: skip
        found.append(check)
    return found


def _sorted(checks: Iterable[Check]) -> list[Check]:
    """Deciding checks first; the rest in a fixed order."""

    def rank(check: Check) -> tuple[object, ...]:
        decides = check.severity == "block" and check.outcome in ("fail", "hold")
        return (
            not decides, _OUTCOME_ORDER.index(check.outcome), _SEVERITY_ORDER.index(check.severity),
            check.family != FAMILY, check.slice != ALL, check.family, check.name, check.action, check.slice,
        )  # fmt: skip

    return sorted(checks, key=rank)


def _verdict(checks: list[Check], policy: GatePolicy) -> Verdict:
    blocking = [check for check in checks if check.severity == "block"]
    failing = [check for check in blocking if check.outcome == "fail"]
    holding = [check for check in blocking if check.outcome == "hold"]
    decision = REJECT if failing else HOLD if holding else PROMOTE
    deciding = failing or holding
    reason = f"{len([c for c in blocking if c.outcome == 'pass']):,} blocking checks passed, none failed or held{_caution(checks)}"
    if deciding:
        reason = f"{deciding[0].sentence}{_others(deciding)}"
    return Verdict(verdict=decision, reason=reason, policy=policy.name, checks=checks, failed=[check.path for check in failing])


def _caution(checks: Sequence[Check]) -> str:
    """What a reader of a PROMOTE must not overlook where nothing was compared with production: a first model is the user's word alone."""
    blind = sorted({check.action for check in checks if check.name.endswith(CHANCE) and check.outcome != "pass"})
    if not blind:
        return ""
    first = ", promoted on gate.first=promote alone" if any(check.name == "first" for check in checks) else ""
    return f"; CAUTION: not shown to rank {', '.join(blind)} better than chance{first}"


def _others(deciding: Sequence[Check]) -> str:
    """What else decided, a word a kind of check."""
    others = sorted({check.name for check in deciding[1:]} - {deciding[0].name})
    more = f" (and {len(deciding) - 1:,} more" if len(deciding) > 1 else ""
    return more + (f": {', '.join(others[:8])}{', ...' if len(others) > 8 else ''}" if others else "") + (")" if more else "")
