"""Nightly losses that cannot be shown in one night add up against a frozen reference; churn has a floor."""

import numpy as np
import pytest

from trainer.gate import judge
from trainer.schema.policy import RuleSet, ThresholdRule


def _logit(p):
    return np.log(p / (1 - p))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _find(verdict, name, action="click"):
    return next(c for c in verdict.checks if (c.name, c.action, c.slice) == (name, action, "all"))


def test_small_losses_add_up(world, policy, no_rules, table):
    columns = world(rows=60_000, noise=0.0)
    rng, z_N = np.random.default_rng(1), _logit(columns["production_click"])
    drift_N = rng.normal(0, 1, len(z_N))
    columns["reference_click"] = columns["production_click"]
    columns["production_click"] = _sigmoid(z_N + 0.55 * drift_N)
    columns["challenger_click"] = _sigmoid(z_N + 0.57 * drift_N)
    alone = judge(table({n: x for n, x in columns.items() if n != "reference_click"}), policy(slices=[]), no_rules)
    assert not [path for path in alone.failed if path.split("/")[1] == "click"], "one night's loss is within the margin"
    verdict = judge(table(columns), policy(slices=[]), no_rules)
    assert {"auc_vs_reference/click/all", "ne_vs_reference/click/all"} <= set(verdict.failed)
    assert _find(verdict, "auc_vs_reference").family == "reference"


def test_calibration_may_not_creep_away(world, policy, no_rules, table):
    """Two per cent a night are excused against production for ever; against the reference they are counted."""
    columns = world(rows=200_000, users=20_000, noise=0.0)
    columns["reference_click"] = columns["production_click"]
    columns["production_click"] = np.minimum(1, 1.15 * columns["reference_click"])
    columns["challenger_click"] = np.minimum(1, 1.165 * columns["reference_click"])
    verdict = judge(table(columns), policy(slices=[]), no_rules)
    assert _find(verdict, "calibration").outcome == "pass"
    assert _find(verdict, "calibration_vs_reference").outcome == "fail"


def test_traffic_against_the_reference_warns_at_stand_ins_and_blocks_at_declared_thresholds(world, policy, no_rules, table):
    columns = world(rows=60_000, noise=0.0)
    columns["reference_click"] = _sigmoid(0.8 * _logit(columns["production_click"]) - 0.4)
    found = _find(judge(table(columns), policy(slices=[]), no_rules), "share_top_10%_vs_reference")
    assert found.severity == "warn"
    rules = RuleSet(thresholds={"push": ThresholdRule(score="click", at_least=0.3)})
    found = _find(judge(table(columns), policy(slices=[]), rules), "share_push_vs_reference")
    expected = (columns["challenger_click"] >= 0.3).sum() / (columns["reference_click"] >= 0.3).sum() - 1
    assert found.estimate == pytest.approx(expected) and found.severity == "block" and found.outcome == "fail"


def test_the_factor_widens_every_margin_against_the_reference(world, policy, no_rules, table):
    columns = world(rows=20_000)
    columns["reference_click"] = columns["production_click"]
    verdict = judge(table(columns), policy(slices=[], reference_factor=3.0), no_rules)
    for name in ("auc", "ne", "calibration"):
        one = _find(verdict, f"{name}_vs_reference")
        assert one.margin == pytest.approx(3 * _find(verdict, name).margin)


def test_an_unsound_reference_fails_closed(world, policy, no_rules, table):
    columns = world(rows=5_000)
    columns["reference_click"] = np.where(np.arange(5_000) == 7, np.nan, columns["production_click"])
    verdict = judge(table(columns), policy(slices=[]), no_rules)
    assert verdict.failed == ["scores/click/all"] and "reference_click" in verdict.reason


def test_churn_is_measured_against_what_another_seed_replaces(world, policy, no_rules, table):
    columns = world(rows=40_000, noise=0.3)
    z_N = _logit(columns["production_click"])
    rng = np.random.default_rng(1)
    budget = _find(judge(table(columns), policy(slices=[]), no_rules), "churn_top_10%")
    assert budget.margin == 0.3 and "budget" in budget.sentence
    for noise, outcome in ((0.3, "pass"), (0.02, "fail")):
        columns["repeat_click"] = _sigmoid(z_N + rng.normal(0, noise, len(z_N)))
        found = _find(judge(table(columns), policy(slices=[]), no_rules), "churn_top_10%")
        assert found.outcome == outcome and "A/A" in found.sentence
