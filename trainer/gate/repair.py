"""Repairs: brings a challenger that is not promoted onto production's scale, or onto the labels', and judges it again.

Users are split in two. Curves are fitted on one part and judged on the other, which alone decides; what no increasing curve can change
(an action's AUC, a suite) stands as it was found on all rows. A challenger that failed at something else than its
scale is not repaired: half the rows see less, and that must not be what saves it.

Map or calibrate? A map keeps every threshold's traffic, and with it whatever error of calibration production has. After a map a global
calibrator would have nothing left of it, so a score gets one of the two. A value function is computed again from the repaired actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.gate.compatibility import rule_scores
from trainer.gate.decide import measure
from trainer.gate.fitting import Unfit, best_calibrator, fit_calibrator, fit_map
from trainer.gate.judge import conclude, judge
from trainer.gate.quality import recover_weights
from trainer.gate.table import BINARY, ActionColumns, Predictions, compared_rows, prepare, read_table, sliced
from trainer.metrics import arrange, normalised_loss, ratio
from trainer.schema import predictions as names
from trainer.schema.ids import hash_ids, splitmix64
from trainer.schema.policy import VALUE, GatePolicy, RuleSet
from trainer.schema.record import Recorded
from trainer.schema.repair import AUTO, CALIBRATE, LINEAR, LOG, LOGIT, MAP, Curve, Repair
from trainer.schema.suite import SuiteCase
from trainer.schema.verdict import (
    ALL,
    APPLIED,
    HOLD,
    NO_HELP,
    NOT_ATTEMPTED,
    PROMOTE,
    REFUSED,
    REJECT,
    Check,
    RepairReport,
    Verdict,
)

_MENDED = ("calibration", "scores", "loss")  # families whose failures a curve can mend
_CHANGED = (*_MENDED, "slate", "baseline")  # families that a curve changes in any way
_RANK = {REJECT: 0, HOLD: 1, PROMOTE: 2}
_SALT = np.uint64(0x9AC7)  # rebuild buckets users by the same hash: a split of its own keeps every bucket on both sides
_VALUE_ERROR = 1e-4  # of the value's largest amount: rounding of float32 columns


def judge_and_repair(
    predictions: pa.Table | Path | str,
    policy: GatePolicy,
    rules: RuleSet,
    *,
    value_weights: dict[str, float] | None = None,
    suites: Sequence[SuiteCase] = (),
    record: Mapping[str, Recorded] | None = None,
    seed: int = 0,
) -> tuple[Verdict, Repair | None]:
    """Judges a challenger; if it is not promoted and the policy names repairs, repairs it and judges it again.

    Args:
        predictions: As `judge`.
        policy: As `judge`; `repair`, `calibrator` and `repair_share` say what is tried.
        rules: As `judge`.
        value_weights: As `judge`.
        suites: As `judge`; they are judged on the challenger as it came.
        record: As `judge`.
        seed: As `judge`.

    Returns:
        The verdict, and the curves that belong to it: null unless the repaired challenger got a better one.

    Raises:
        DataError: As `judge`.
        ConfigError: As `judge`.
    """
    source = read_table(predictions)
    first = judge(source, policy, rules, value_weights=value_weights, suites=suites, record=record, seed=seed)
    if not policy.repair or first.verdict == PROMOTE:
        return first, None
    if beyond := [check.path for check in first.checks if _blocks(check) and check.outcome == "fail" and check.family not in _MENDED]:
        words = f"not repaired: {beyond[0]} is nothing that an increasing curve could mend"
        return _unrepaired(first, NOT_ATTEMPTED, words, policy), None
    source, _ = compared_rows(source, policy)
    split = _split(source, policy)
    fitted = _fit(split, policy, rules, value_weights)
    if not fitted.repair.curves:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(fitted.refused.items())) or "there is no score to repair"
        return _refused(first, split, fitted, f"not repaired: {why}", policy), None
    table = repaired_table(split.judged, fitted.repair)
    scaled = replace(policy, rows_per_quantile=policy.rows_per_quantile * len(split.judged) / len(source) * (1 - 1e-9))
    slices = [replace(column, group_N=column.group_N[~split.fitted_N]) for column in sliced(source, policy)]
    second = judge(table, scaled, rules, value_weights=value_weights, slices=slices, seed=seed)
    return _settled(first, second, split, fitted, table, policy)


@dataclass(frozen=True)
class _Split:
    """The two parts of a table: the one that curves are fitted on (`fitted_N` marks its rows), and the one that decides."""

    fitted_N: np.ndarray
    fitted: pa.Table
    judged: pa.Table
    fitted_users: int
    judged_users: int

    @property
    def rows(self) -> int:
        return len(self.fitted) + len(self.judged)


@dataclass(frozen=True)
class _Fitted:
    """Curves, why each action got its own, and why others got none."""

    repair: Repair
    reasons: dict[str, str]
    refused: dict[str, str] = field(default_factory=dict)


def _split(table: pa.Table, policy: GatePolicy) -> _Split:
    """Splits by a hash of the user: the same user falls on the same side in every table."""
    user = table["user"].combine_chunks()
    if pa.types.is_dictionary(user.type):
        user = user.dictionary_decode()
    hash_N = splitmix64(hash_ids(pc.fill_null(user.cast(pa.string()), "")) ^ _SALT)
    fitted_N = hash_N < np.uint64(int(policy.repair_share * 2**64))
    parts = [table.filter(pa.array(kept_N)) for kept_N in (fitted_N, ~fitted_N)]
    return _Split(fitted_N, *parts, *(len(np.unique(hash_N[kept_N])) for kept_N in (fitted_N, ~fitted_N)))


def _fit(split: _Split, policy: GatePolicy, rules: RuleSet, weights: Mapping[str, float] | None) -> _Fitted:
    """Fits one curve an action, also of actions that are not judged: the value function may be made of them."""
    if not len(split.fitted) or not len(split.judged):
        return _Fitted(Repair(), {}, {ALL: "one user cannot be split in two parts"})
    part = prepare(split.fitted, replace(policy, actions=None, slices=[]))
    curves, reasons, refused = {}, {}, {}
    for action in part.actions:
        if names.CHALLENGER not in action.scores:
            continue
        try:
            curves[action.name], reasons[action.name] = _curve(action, part, split.rows, policy, rules)
        except Unfit as error:
            refused[action.name] = str(error)
    value, known = _value(part, split.rows, policy, rules, weights) if curves else (None, None)
    return _Fitted(Repair(curves=curves, value=value, weights=known, rows=part.rows), reasons, refused)


def _curve(action: ActionColumns, part: Predictions, rows: int, policy: GatePolicy, rules: RuleSet) -> tuple[Curve, str]:
    """Fits the curve that suits an action, and says why it is this one."""
    scale = LOGIT if action.kind == BINARY else LOG
    mapped = MAP in policy.repair and names.PRODUCTION in action.scores
    why = "onto production's scale"
    if mapped and CALIBRATE in policy.repair and not _read_by_rules(action.name, rules):
        off = _production_off(action, part, policy)
        mapped, why = off is None, off or f"{why}, where production is calibrated"
    if mapped:
        at = _live(action.name, part, rows, policy, rules)
        ours_N, theirs_N = action.scores[names.CHALLENGER], action.scores[names.PRODUCTION]
        return fit_map(ours_N, theirs_N, part.weight_N, scale, at), why
    if CALIBRATE not in policy.repair:
        raise Unfit("production has no score to map onto")
    curve, chosen = _calibrator(action, part, scale, policy)
    return curve, f"onto the labels ({chosen})" + (f": {why}" if names.PRODUCTION in action.scores and MAP in policy.repair else "")


def _calibrator(action: ActionColumns, part: Predictions, scale: str, policy: GatePolicy) -> tuple[Curve, str]:
    """Fits the calibrator that the policy names, or the best one, and says which."""
    ripe_N = ~np.isnan(action.label_N)
    score_N, label_N, weight_N = action.scores[names.CHALLENGER][ripe_N], action.label_N[ripe_N], part.weight_N[ripe_N]
    rarer = min(int((label_N > 0).sum()), int((label_N == 0).sum()) if action.kind == BINARY else len(label_N))
    needed = math.ceil(policy.calibration_margin**-2)  # so many positives fix sum y to the margin
    if rarer < needed:
        raise Unfit(f"{rarer:,} labels of the rarer class to calibrate on, {needed:,} needed")
    if policy.calibrator != AUTO:
        return fit_calibrator(policy.calibrator, score_N, label_N, weight_N, scale), policy.calibrator
    half_N = (splitmix64(part.user_N[ripe_N].astype(np.uint64)) & np.uint64(1)).astype(int)
    curve, losses = best_calibrator(score_N, label_N, weight_N, half_N, scale)
    return curve, f"{curve.method}, held-out loss " + ", ".join(f"{method} {loss:.5f}" for method, loss in losses.items())


def _production_off(action: ActionColumns, part: Predictions, policy: GatePolicy) -> str | None:
    """Says how far production's sum p is from the labels', where it is shown to be farther than the margin."""
    ripe_N = ~np.isnan(action.label_N)
    rows = arrange(part.user_N[ripe_N], weight_N=part.weight_N[ripe_N])
    [found] = measure(ratio(action.scores[names.PRODUCTION][ripe_N], action.label_N[ripe_N], rows).log(rows), rows)
    margin = math.log1p(policy.calibration_margin)
    if not (math.isfinite(found.se) and found.p_outside(-margin, margin) < 1 - policy.confidence):
        return None
    return f"production's sum p / sum y is {math.exp(found.value):.3f}, and a map would keep that"


def _read_by_rules(name: str, rules: RuleSet) -> bool:
    read = {rule.score for rule in rules.thresholds.values()} | {cap.score for cap in rules.caps.values()}
    return name in read | {part for blend, weights in rules.blends.items() if blend in read for part in weights}


def _live(name: str, part: Predictions, rows: int, policy: GatePolicy, rules: RuleSet) -> list[tuple[float, float | None]]:
    """Shares of traffic above the live thresholds that a score decides, and the thresholds that lie on the score itself.

    Raises:
        Unfit: If the rows are too few for the smallest: quantiles of two independent samples of n rows agree at a share q to 5 per cent
            from n = 800 / q on; of paired rows half of them, the fitted part, do.
    """
    scores = rule_scores(part, rules)
    declared = [(rule.score, rule.at_least) for rule in rules.thresholds.values()] + [
        (cap.score, cap.at_most) for cap in rules.caps.values()
    ]
    total = max(float(part.weight_N.sum()), 1e-300)
    found: list[tuple[float, float | None]] = []
    for score, at in declared:
        if score in scores and (score in (name, VALUE) or name in rules.blends.get(score, {})):
            share = float(part.weight_N @ (scores[score][0] >= at)) / total
            found.append((share, at if score == name else None))
    if not found:
        enough = [share for share in policy.quantiles if rows >= policy.rows_per_quantile / share]
        found = [(share, None) for share in enough or [max(policy.quantiles)]]
    smallest = min(share for share, _ in found)
    if smallest <= 0:
        raise Unfit("production sends nothing over one of its live thresholds, so there is no share to keep")
    if rows < (needed := math.ceil(policy.rows_per_quantile / smallest)):
        raise Unfit(
            f"{rows:,} rows, {needed:,} needed for a map that keeps its smallest live threshold (top {smallest:.3%} of the traffic)"
        )
    return found


def _value(
    part: Predictions, rows: int, policy: GatePolicy, rules: RuleSet, weights: Mapping[str, float] | None
) -> tuple[Curve | None, dict[str, float] | None]:
    """Finds the weights with which the value follows from the repaired actions, else maps the value itself."""
    if not part.value:
        return None, None
    ours_N, theirs_N = part.value[names.CHALLENGER], part.value[names.PRODUCTION]
    scored = [action for action in part.actions if {names.CHALLENGER, names.PRODUCTION} <= set(action.scores)]
    if weights is None:
        found = recover_weights([action.scores[names.PRODUCTION] for action in scored], theirs_N)
        weights = dict(zip((action.name for action in scored), found, strict=True)) if found is not None else None
    if weights is not None:
        total_N = np.sum([weights.get(action.name, 0.0) * action.scores[names.CHALLENGER] for action in scored], axis=0)
        if np.abs(total_N - ours_N).max(initial=0.0) <= _VALUE_ERROR * max(float(np.abs(ours_N).max(initial=0.0)), 1e-12):
            return None, {action.name: float(weights.get(action.name, 0.0)) for action in scored}
    scale = LOG if min(ours_N.min(), theirs_N.min()) > 0 else LINEAR
    try:
        return fit_map(ours_N, theirs_N, part.weight_N, scale, _live(VALUE, part, rows, policy, rules)), None
    except Unfit:
        return None, None


def repaired_table(table: pa.Table, repair: Repair) -> pa.Table:
    """Returns predictions with the challenger's scores and value repaired; production's and all else as they are."""
    change_N = np.zeros(len(table))
    for action, curve in repair.curves.items():
        column = names.CHALLENGER + action
        if column not in table.column_names:
            continue
        raw_N = table[column].cast(pa.float64()).to_numpy()
        new_N = curve(raw_N)
        change_N += (repair.weights or {}).get(action, 0.0) * (new_N - raw_N)
        table = _replaced(table, column, new_N)
    if names.VALUE_CHALLENGER in table.column_names and (repair.weights or repair.value):
        value_N = table[names.VALUE_CHALLENGER].cast(pa.float64()).to_numpy()
        table = _replaced(table, names.VALUE_CHALLENGER, repair.value(value_N) if repair.value else value_N + change_N)
    return table


def _replaced(table: pa.Table, column: str, values_N: np.ndarray) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values_N))


def _settled(
    first: Verdict, second: Verdict, split: _Split, fitted: _Fitted, table: pa.Table, policy: GatePolicy
) -> tuple[Verdict, Repair | None]:
    """Puts together what stands and what was judged again; keeps the repair if that is a better verdict."""
    failed = {check.path: check for check in first.checks if _blocks(check) and check.outcome == "fail"}
    standing = {check.path: check for check in first.checks if _stands(check)}
    again = [_mended(check, policy) if check.path in failed else check for check in second.checks if _changed(check)]
    lost = [_lost(check) for path, check in failed.items() if path not in {check.path for check in again}]
    kept = [check for check in again if check.path not in standing]
    final = conclude([*standing.values(), *kept, *lost, *_told(split, fitted)], policy)
    better = _RANK[final.verdict] > _RANK[first.verdict]
    methods = ", ".join(f"{name} {curve.method}" for name, curve in sorted(fitted.repair.curves.items()))
    parts = f"fitted on {len(split.fitted):,} rows, judged on {len(split.judged):,} rows of {split.judged_users:,} other users"
    words = f"{'repaired' if better else 'repairs did not help'} ({methods}; {parts})"
    report = RepairReport(
        status=APPLIED if better else NO_HELP, sentence=words, sha256=fitted.repair.sha256 if better else None,
        fitted_rows=len(split.fitted), fitted_users=split.fitted_users, judged_rows=len(split.judged), judged_users=split.judged_users,
        before=_summary(first), after=_summary(final), actions=_measured(split.judged, table, fitted, policy),
        mended={
            path: {"before": check.estimate, "after": _estimate(final, path), "margin": check.margin} for path, check in failed.items()
        },
    )  # fmt: skip
    if not better:
        return replace(first, repair=report), None
    return conclude(final.checks, policy, report), fitted.repair


def _blocks(check: Check) -> bool:
    return check.severity == "block"


def _changed(check: Check) -> bool:
    """Whether a curve changes the answer: per-action ranking it does not, NDCG of the value it may."""
    return check.family in _CHANGED or (check.family == "ranking" and check.action == VALUE) or check.name == "slice_coverage"


def _stands(check: Check) -> bool:
    """What was found on all rows and is not asked again: no curve changes it, or it held for a reason that half the rows may lose.

    Such reasons are too few rows, and a gain of NE that is too good to be true; harm to NE that comes from the scale is asked again.
    """
    if not _changed(check) or not _blocks(check) or check.outcome != "hold":
        return not _changed(check)
    return check.family not in _MENDED or (check.family == "loss" and not (check.estimate is not None and check.estimate > 0))


def _mended(check: Check, policy: GatePolicy) -> Check:
    """Holds a check that failed on all rows to a stricter standard than one among many: fewer rows must not be what mends it.

    On all rows its estimate has to lie within the margin; on a slice harm must not be shown at the plain level, without Holm.
    """
    level = 0.5 if check.slice == ALL else 1 - policy.confidence
    if check.outcome == "not_applicable" or check.p is None:
        return replace(_lost(check), sentence=f"{check.sentence}: it failed on all rows, and the judged part cannot show it mended")
    if check.outcome == "fail" or check.p >= level:
        return check if check.outcome != "not_testable" else replace(check, outcome="pass")
    return replace(check, outcome="fail", sentence=f"{check.sentence}, but it failed on all rows and the repair did not mend it")


def _lost(check: Check) -> Check:
    return replace(check, outcome="hold", severity="block", sentence=f"{check.sentence}; not judged again after the repair")


def _told(split: _Split, fitted: _Fitted) -> list[Check]:
    """One line an action: its curve, or why it has none."""
    rows = len(split.fitted)
    told = [
        Check(
            name=f"repair_{curve.method}", family="repair", action=name, n=rows, outcome="pass", severity="info",
            sentence=f"{name} {fitted.reasons[name]}; {len(curve.x)} knots, fitted on {rows:,} rows of {split.fitted_users:,} users",
        )
        for name, curve in fitted.repair.curves.items()
    ]  # fmt: skip
    return told + [
        Check(
            name="repair", family="repair", action=name, n=rows, outcome="not_testable", severity="warn",
            sentence=f"{name} is not repaired: {reason}",
        )
        for name, reason in fitted.refused.items()
    ]  # fmt: skip


def _summary(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.verdict, "reason": verdict.reason, "failed": verdict.failed}


def _estimate(verdict: Verdict, path: str) -> float | None:
    return next((check.estimate for check in verdict.checks if check.path == path), None)


def _measured(before: pa.Table, after: pa.Table, fitted: _Fitted, policy: GatePolicy) -> dict[str, Any]:
    """Calibration of the judged part before and after, by action: what later runs hold production's record to."""
    tables = {key: prepare(table, replace(policy, actions=None, slices=[])) for key, table in (("before", before), ("after", after))}
    found: dict[str, Any] = {}
    for name, curve in sorted(fitted.repair.curves.items()):
        found[name] = {"method": curve.method, "reason": fitted.reasons[name], "knots": len(curve.x)}
        for key, table in tables.items():
            found[name][key] = asdict(_recorded(next(action for action in table.actions if action.name == name), table))
    return found


def _recorded(action: ActionColumns, table: Predictions) -> Recorded:
    ripe_N = ~np.isnan(action.label_N)
    rows = arrange(table.user_N[ripe_N], weight_N=table.weight_N[ripe_N])
    score_N, label_N = action.scores[names.CHALLENGER][ripe_N], action.label_N[ripe_N]
    numbers = (ratio(score_N, label_N, rows).value_G[0], normalised_loss(action.kind, score_N, label_N, rows).value_G[0])
    ratio_, ne = (float(number) if math.isfinite(number) else None for number in numbers)
    rate = float(rows.weight_N @ label_N / rows.weight_N.sum()) if len(label_N) and rows.weight_N.sum() > 0 else None
    return Recorded(ratio=ratio_, ne=ne, base_rate=rate, n=len(label_N))


def _unrepaired(first: Verdict, status: str, words: str, policy: GatePolicy) -> Verdict:
    told = Check(name="repair", family="repair", outcome="not_applicable", severity="info", sentence=words)
    report = RepairReport(status=status, sentence=words, before=_summary(first))
    return conclude([*first.checks, told], policy, report)


def _refused(first: Verdict, split: _Split, fitted: _Fitted, words: str, policy: GatePolicy) -> Verdict:
    report = RepairReport(
        status=REFUSED, sentence=words, fitted_rows=len(split.fitted), fitted_users=split.fitted_users, judged_rows=len(split.judged),
        judged_users=split.judged_users, before=_summary(first),
    )  # fmt: skip
    return conclude([*first.checks, *_told(split, fitted)], policy, report)
