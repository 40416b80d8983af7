"""Suites in the gate: permanent slices on the run's own rows, and golden rows scored by both models.

A slice sees new rows every night, so it is asked like any other slice: its tests share the run's budget of false alarms, and too few
rows are not testable. Golden rows are the same every night and were found able to show the margin when they were stored, so they are
settled on their own: harm beyond the margin shown at the policy's confidence fails, an estimate beyond it that is not shown holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError, RewarmError
from trainer.gate.calibration import calibration, cumulative
from trainer.gate.compatibility import PAIR, Threshold, rule_scores, thresholds, traffic
from trainer.gate.decide import Question, reach, settle
from trainer.gate.quality import quality, realised_value, value_ranking
from trainer.gate.scope import Scope, scopes
from trainer.gate.table import Predictions, prepare
from trainer.schema.expression import Column, columns_of, evaluate
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.suite import FAMILY, Suite, SuiteCase
from trainer.schema.verdict import ALL, Check

_MARGINS = {
    "auc": "auc_margin", "gauc": "gauc_margin", "rank_correlation": "rank_margin", "ne": "ne_margin", "deviance": "ne_margin",
    "ndcg": "ndcg_margin", "calibration": "calibration_margin", "ecce": "ecce_margin",
}  # fmt: skip
_ZONE = "UTC"  # expressions over predictions read no calendar


def ask_suites(
    cases: Sequence[SuiteCase], table: pa.Table, policy: GatePolicy, value_weights: dict[str, float] | None, seed: int
) -> Iterator[Question | Check]:
    """Judges every suite; what cannot be judged fails, with the reason.

    Args:
        cases: Suites, golden ones with both models' scores.
        table: Predictions of this run: the rows that slices are cut from.
        policy: Confidence, smallest samples; margins are the suites' own.
        value_weights: Action -> weight of the value function.
        seed: Seed of bootstraps.
    """
    for case in cases:
        if case.skipped is not None:
            yield _closed(case, case.skipped, "not_applicable", "info")
        elif case.suite is None or case.problem is not None:
            yield _closed(case, case.problem or "cannot be read")
        else:
            yield _judged(case, case.suite, table, policy, value_weights, seed)


def settle_suites(
    cases: Sequence[SuiteCase], table: pa.Table, policy: GatePolicy, value_weights: dict[str, float] | None, seed: int
) -> list[Check]:
    """Judges suites alone, outside a run of the gate: the slices among them share the budget of a run; see `ask_suites`."""
    asked = list(ask_suites(cases, table, policy, value_weights, seed))
    settled = iter(doubted(settle([one for one in asked if isinstance(one, Question)], policy), policy))
    return [next(settled) if isinstance(one, Question) else one for one in asked]


def doubted(checks: Sequence[Check], policy: GatePolicy) -> list[Check]:
    """Holds slices of suites that are worse than tolerated at the plain level, though not among all tests of the run.

    Holm protects a good challenger from hundreds of slices that nobody chose; a suite was chosen, so a person looks.
    """
    return [
        replace(
            check, outcome="hold",
            sentence=f"{check.sentence}; but taken alone it is worse than tolerated (p {check.p:.2g}): somebody should look",
        )
        if check.family == FAMILY and check.outcome in ("pass", "not_testable") and check.p is not None and check.p <= 1 - policy.confidence
        else check
        for check in checks
    ]  # fmt: skip


def _judged(
    case: SuiteCase, suite: Suite, table: pa.Table, policy: GatePolicy, weights: dict[str, float] | None, seed: int
) -> Question | Check:
    try:
        if case.table is not None:
            answer = examine(suite, case.table, policy, weights, seed)
            outcome = "fail" if answer.outcome == "not_testable" else answer.outcome  # the same rows could tell when they were stored
            return replace(answer, outcome=outcome, sentence=f"{answer.sentence}{f' ({case.remark})' if case.remark else ''}")
        return measure_suite(suite, table.filter(pa.array(rows_where(table, suite.where or ""))), policy, weights, seed)
    except RewarmError as error:
        words = error.what + (f": {error.got}" if error.got is not None else "")
        return _closed(case, f"{words} ({error.where})" if error.where is not None else words)
    except Exception as error:  # as everywhere in the gate: what cannot be measured has not passed
        return _closed(case, f"{type(error).__name__}: {error}")


def _closed(case: SuiteCase, why: str, outcome: str = "fail", severity: str = "block") -> Check:
    title = case.suite.title if case.suite else f"suite {case.name}"
    words = "was not judged" if outcome == "not_applicable" else "cannot be judged, so nothing says that the challenger passes"
    return Check(
        name=case.suite.metric if case.suite else FAMILY, family=FAMILY, action=case.suite.action if case.suite else ALL,
        slice=f"{FAMILY}={case.name}", outcome=outcome, severity=severity, sentence=f"{title} {words}: {why}",
    )  # fmt: skip


def examine(suite: Suite, table: pa.Table, policy: GatePolicy, weights: dict[str, float] | None, seed: int) -> Check:
    """Settles a suite on stored rows.

    Args:
        suite: What is demanded.
        table: Golden rows with both models' scores.
        policy: Confidence and smallest samples.
        weights: Action -> weight of the value function.
        seed: Seed of bootstraps.

    Returns:
        *fail* where harm beyond the margin is shown, *hold* where the estimate lies beyond it without being shown, *not_testable* where
        the rows can say nothing, else *pass*; `Check.mde` is the harm that would have been shown.
    """
    question = measure_suite(suite, table, policy, weights, seed)
    check, level = question.check, 1 - policy.confidence
    detect = reach(question.se, question.dof, policy.confidence)
    check = replace(check, mde=suite.margin + detect if math.isfinite(detect) else None)
    if question.too_few is not None or check.p is None:
        outcome, words = "not_testable", f"these rows cannot tell: {question.too_few or 'the metric is not defined on them'}"
    elif check.p <= level:
        outcome, words = "fail", "worse than tolerated" if suite.source is None or suite.source.failed is None else "a past failure is back"
    elif check.p < 0.5:
        outcome, words = "hold", "worse than tolerated, but not shown beyond chance"
    else:
        outcome, words = "pass", "within the margin"
    return replace(check, outcome=outcome, sentence=f"{check.sentence}: {words}")


def measure_suite(suite: Suite, table: pa.Table, policy: GatePolicy, weights: dict[str, float] | None, seed: int) -> Question:
    """Makes the suite's measurement on all rows of `table` by the gate's own function, with the suite's margin.

    Raises:
        DataError: If the table cannot be judged.
        ConfigError: If a column or score that the suite needs is missing or unsound.
    """
    if not len(table):
        return _named(suite, Question(check=_empty(suite), too_few="no row"))
    wanted = [] if suite.action == VALUE else [prefix + suite.action for prefix in PAIR]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ConfigError("a column is missing", got=" and ".join(missing))
    own = _own_policy(suite, policy)
    rows = prepare(table, own)
    unsound = [check.sentence for check in rows.findings if check.outcome == "fail"]
    if unsound:
        raise ConfigError("the scores are unsound", got="; ".join(unsound))
    asked = list(_ask(suite, rows, own, weights, seed))
    question = next((one for one in asked if isinstance(one, Question) and one.check.name == suite.metric), None)
    if question is None:
        kind = next((action.kind for action in rows.actions if action.name == suite.action), None)
        why = next((one.sentence for one in asked if isinstance(one, Check)), f"{suite.metric} does not exist for a {kind} action")
        raise ConfigError("the metric cannot be measured", got=why)
    return _named(suite, question)


def _ask(suite: Suite, rows: Predictions, policy: GatePolicy, weights: dict[str, float] | None, seed: int) -> Iterator[Question | Check]:
    if suite.metric == "ndcg":
        gain = realised_value(rows, weights)
        if isinstance(gain, Check):
            yield gain
            return
        yield from value_ranking(rows, _everything(rows, policy, ~np.isnan(gain)), gain, policy, "block")
        return
    if suite.at_least is not None:
        pair = rule_scores(rows, RuleSet()).get(suite.action)
        if pair is None:
            raise ConfigError("a score is missing", got=f"no pair of scores {suite.action}")
        threshold = Threshold(suite.metric, suite.action, suite.at_least, suite.margin, pair, True, None)
        yield from traffic(threshold, [_everything(rows, policy)], policy, "block")
        return
    action = next((action for action in rows.actions if action.name == suite.action), None)
    missing = [prefix + suite.action for prefix in PAIR if action is None or prefix not in action.scores]
    if action is None or missing:
        raise ConfigError("a column is missing", got=" and ".join(missing))
    scope = _everything(rows, policy, ~np.isnan(action.label_N))
    if suite.metric == "calibration":
        yield from calibration(action, scope, policy, "block")
    elif suite.metric == "ecce":
        yield from cumulative(action, scope, policy, "block", seed)
    else:
        yield from quality(action, scope, policy, "block")


def _everything(rows: Predictions, policy: GatePolicy, ripe_N: np.ndarray | None = None) -> Scope:
    [scope] = scopes(replace(rows, slices=[]), policy, ripe_N)
    return scope


def _own_policy(suite: Suite, policy: GatePolicy) -> GatePolicy:
    """The run's policy with the suite's margin and nothing but the suite's action."""
    changes: dict[str, object] = {"slices": [], "actions": None if suite.metric == "ndcg" or suite.at_least else [suite.action]}
    if suite.metric in _MARGINS:
        changes[_MARGINS[suite.metric]] = suite.margin
    if suite.metric == "calibration":
        changes["calibration_slack"] = min(policy.calibration_slack, suite.margin)
    return replace(policy, **changes)  # type: ignore[arg-type]


def _empty(suite: Suite) -> Check:
    return Check(name=suite.metric, family=FAMILY, action=suite.action, margin=suite.margin, outcome="pass", sentence="no row")


def _named(suite: Suite, question: Question) -> Question:
    check = question.check
    named = replace(check, family=FAMILY, slice=f"{FAMILY}={suite.name}", severity="block", sentence=f"{suite.title}: {check.sentence}")
    return replace(question, check=named)


def rows_where(table: pa.Table, where: str) -> np.ndarray:
    """Returns which rows an expression selects; a row with a null in a column that it reads is not selected.

    Raises:
        ConfigError: If a column is missing, or the expression is no condition.
    """
    names = columns_of(where)
    found = evaluate(where, {name: _column(table[name]) for name in names if name in table.column_names}, _ZONE)
    if found.values_N.dtype.kind != "b":
        raise ConfigError("not a condition", where="where", got=where, expected="for example: country == 'TR' and new_user")
    chosen_N = np.broadcast_to(found.values_N, (len(table),))
    return chosen_N.copy() if found.valid_N is None else chosen_N & found.valid_N


def _column(column: pa.ChunkedArray) -> Column:
    valid_N = None if column.null_count == 0 else np.asarray(column.is_valid())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return Column(np.asarray(pc.fill_null(column, "").to_pylist(), object), valid_N)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    filled = pc.fill_null(column, pa.scalar(0, pa.int64()).cast(column.type)) if column.null_count else column
    return Column(np.asarray(filled), valid_N)


def rows_of_slice(table: pa.Table, policy: GatePolicy, slice_: str) -> np.ndarray:
    """Returns which rows make up a slice as the verdict names it, ``<column>=<value>`` or ``all``.

    Raises:
        ConfigError: If there is no such slice.
    """
    if slice_ == ALL:
        return np.ones(len(table), bool)
    name, _, value = slice_.partition("=")
    columns = prepare(table, replace(policy, slices=[name])).slices
    if not columns or value not in columns[0].values:
        known = ", ".join(f"{name}={one}" for one in columns[0].values[:5]) if columns else f"no column {name}"
        raise ConfigError("no such slice", where="check", got=slice_, expected=known)
    return columns[0].group_N == columns[0].values.index(value)


def threshold_of(table: pa.Table, rules: RuleSet, policy: GatePolicy, metric: str, action: str) -> float:
    """Returns the threshold behind a ``share_`` check: the rule's, or production's quantile over the whole table.

    Raises:
        ConfigError: If no rule and no quantile has that name.
    """
    live, _ = thresholds(prepare(table, replace(policy, slices=[])), rules, policy, None)
    for threshold in live:
        if (threshold.name, threshold.score) == (metric, action) and threshold.at_least is not None:
            return threshold.at_least
    known = ", ".join(f"{one.name}/{one.score}" for one in live) or "no threshold"
    raise ConfigError("no such threshold", where="check", got=f"{metric}/{action}", expected=known)
