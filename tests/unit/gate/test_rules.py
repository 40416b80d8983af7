"""Rules replayed on both models' scores, slates, and the value function."""

import numpy as np
import pytest

from trainer.gate import judge
from trainer.gate.quality import realised_value
from trainer.gate.slate import top_of_slates
from trainer.gate.table import prepare
from trainer.schema.policy import CapRule, RuleSet, ThresholdRule, TopKRule


def _find(verdict, name, action):
    return next(c for c in verdict.checks if (c.name, c.action, c.slice) == (name, action, "all"))


def test_declared_thresholds_replace_the_quantiles(world, policy, table):
    rules = RuleSet(thresholds={"push": ThresholdRule(score="click", at_least=0.3)})
    columns = world()
    verdict = judge(table(columns), policy(slices=[]), rules)
    push = _find(verdict, "share_push", "click")
    expected = (columns["challenger_click"] >= 0.3).sum() / (columns["production_click"] >= 0.3).sum() - 1
    assert push.estimate == pytest.approx(expected)
    assert not any(check.name.startswith("share_top") for check in verdict.checks)


def test_a_challenger_that_sends_nothing_over_a_threshold_fails(world, policy, table):
    columns = world()
    columns["challenger_click"] = np.minimum(columns["production_click"], 0.29)
    verdict = judge(table(columns), policy(slices=[]), RuleSet(thresholds={"push": ThresholdRule(score="click", at_least=0.3)}))
    assert "share_push/click/all" in verdict.failed


def test_a_challenger_that_wakes_a_threshold_production_never_reached_fails(world, policy, table):
    columns = world()
    columns["production_click"] = np.minimum(columns["production_click"], 0.29)
    columns["challenger_click"] = columns["production_click"].copy()
    columns["challenger_click"][:200] = 0.35
    verdict = judge(table(columns), policy(slices=[]), RuleSet(thresholds={"push": ThresholdRule(score="click", at_least=0.3)}))
    assert "share_push/click/all" in verdict.failed


def test_a_threshold_that_neither_reaches_passes(world, policy, table):
    rules = RuleSet(thresholds={"never": ThresholdRule(score="click", at_least=2.0)})
    assert _find(judge(table(world()), policy(slices=[]), rules), "share_never", "click").outcome == "pass"


def test_blends_see_capped_scores(world, policy, table):
    columns = world()
    rules = RuleSet(
        blends={"final": {"click": 1.0, "like": 2.0}}, caps={"cap": CapRule(score="click", at_most=0.5)},
        thresholds={"cut": ThresholdRule(score="final", at_least=0.6)},
    )  # fmt: skip
    verdict = judge(table(columns), policy(slices=[]), rules)
    shares = [
        (np.minimum(columns[f"{model}_click"], 0.5) + 2 * columns[f"{model}_like"] >= 0.6).sum() for model in ("production", "challenger")
    ]
    assert _find(verdict, "share_cut", "final").estimate == pytest.approx(shares[1] / shares[0] - 1)
    assert _find(verdict, "share_cap", "click").outcome == "pass"


def test_top_k_rules_report_what_is_replaced(world, policy, table):
    rules = RuleSet(top_k={"screen": TopKRule(score="value", k=3)})
    still = judge(table(world(noise=0.0)), policy(slices=[]), rules)
    assert _find(still, "churn_screen", "value").estimate == 0.0
    moved = judge(table(world(noise=2.0)), policy(slices=[]), rules)
    churn = _find(moved, "churn_screen", "value")
    assert churn.estimate > 0.3 and churn.outcome == "fail" and churn.severity == "warn"


def test_rules_on_absent_scores_are_not_applicable(world, policy, table):
    columns = world()
    del columns["production_like"]
    rules = RuleSet(thresholds={"like_cut": ThresholdRule(score="like", at_least=0.3)})
    verdict = judge(table(columns), policy(slices=[]), rules)
    assert _find(verdict, "share_like_cut", "like").outcome == "not_applicable"


def test_a_quantile_needs_the_rows_that_fix_it(world, policy, table, no_rules):
    verdict = judge(table(world(rows=9_000)), policy(slices=[]), no_rules)
    assert _find(verdict, "share_top_10%", "click").outcome == "pass"
    assert _find(verdict, "share_top_1%", "click").outcome == "not_applicable"


def test_the_top_of_a_slate_is_at_most_its_better_half():
    slate_N = np.array([0, 0, 0, 0, 1, 1, 2])
    score_N = np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.6, 0.9])
    assert top_of_slates(score_N, slate_N, 10).tolist() == [False, True, True, False, False, True, False]
    assert top_of_slates(score_N, slate_N, 1).tolist() == [False, True, False, False, False, True, False]


def test_a_tilt_to_popular_items_is_named(world, policy, table, no_rules, revalued):
    columns = world()
    rng = np.random.default_rng(0)
    columns["item"] = np.minimum(rng.geometric(0.01, len(columns["user"])), 500)
    popular_N = columns["item"] < 60
    columns["challenger_click"] = np.where(popular_N, np.minimum(1, columns["production_click"] * 2), columns["production_click"])
    verdict = judge(table(revalued(columns)), policy(slices=[]), no_rules)
    named = {check.name for check in verdict.checks if check.family == "slate" and check.outcome == "fail"}
    assert "slate_head_items" in named


def test_a_tilt_to_new_or_long_items_is_named(world, policy, table, no_rules, revalued):
    columns = world()
    rng = np.random.default_rng(0)
    columns["new_item"] = rng.random(len(columns["user"])) < 0.2
    columns["duration"] = rng.gamma(2.0, 20.0, len(columns["user"]))
    factor_N = np.where(columns["new_item"], 0.6, 1.0) * np.where(columns["duration"] > 60, 4.0, 1.0)
    columns["challenger_like"] = np.minimum(1, columns["production_like"] * factor_N)
    verdict = judge(table(revalued(columns)), policy(slices=[]), no_rules)
    named = {check.name for check in verdict.checks if check.family == "slate" and check.outcome == "fail"}
    assert {"slate_new_item", "slate_duration"} <= named


def test_the_value_functions_weights_are_recovered_from_production(world, policy, table):
    columns = world(rows=5_000)
    found = realised_value(prepare(table(columns), policy(slices=[])), None)
    assert found == pytest.approx(columns["label_click"] + 3 * columns["label_like"])


def test_a_value_that_is_no_weighted_sum_is_not_guessed(world, policy, table):
    columns = world(rows=5_000)
    columns["value_production"] = columns["value_production"] ** 2
    prepared = prepare(table(columns), policy(slices=[]))
    assert realised_value(prepared, None).outcome == "not_applicable"
    assert realised_value(prepared, {"click": 2.0}) == pytest.approx(2 * columns["label_click"])
    assert realised_value(prepared, {"share": 2.0}).outcome == "not_applicable"
