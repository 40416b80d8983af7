"""Rules that are code."""

import sys
import types

import numpy as np
import pytest

from trainer.errors import ConfigError
from trainer.gate import judge
from trainer.schema.policy import PythonRule, RuleSet


@pytest.fixture
def rule(monkeypatch):
    """Makes a rule set of one function."""

    def make(function) -> RuleSet:
        module = types.ModuleType("house_rules")
        module.notify = function
        monkeypatch.setitem(sys.modules, "house_rules", module)
        return RuleSet(python={"notify": PythonRule(function="house_rules:notify")})

    return make


def _check(verdict, name="share_notify"):
    return next(c for c in verdict.checks if c.name == name and c.slice == "all")


def test_a_rule_sees_the_rows_as_production_would_and_one_models_scores(world, policy, table, rule):
    seen = []

    def notify(batch):
        seen.append(batch)
        return (batch["score_click"] > 0.2) & (batch["country"] != 3)

    columns = world(rows=20_000)
    verdict = judge(table(columns), policy(slices=[]), rule(notify))
    assert len(seen) == 2 and set(seen[0]) == {"user", "request", "item", "time", "country", "score_click", "score_like", "value"}
    assert (seen[0]["score_like"] == columns["production_like"]).all() and (seen[1]["score_like"] == columns["challenger_like"]).all()
    fired = [((columns[f"{m}_click"] > 0.2) & (columns["country"] != 3)).sum() for m in ("production", "challenger")]
    assert _check(verdict).estimate == pytest.approx(fired[1] / fired[0] - 1)
    assert _check(verdict, "churn_notify").severity == "warn"
    assert not any(check.name.startswith("share_top") for check in verdict.checks), "rules replace the stand-in quantiles"


def test_a_rule_that_fires_more_rejects_and_names_the_slice(world, policy, table, rule, revalued):
    columns = world(rows=40_000, noise=0.0)
    columns["challenger_click"] = np.where(
        columns["country"] == 5, np.minimum(1, 2 * columns["production_click"]), columns["production_click"]
    )
    verdict = judge(table(revalued(columns)), policy(), rule(lambda batch: batch["score_click"] > 0.2))
    assert "share_notify/notify/country=5" in verdict.failed
    assert not any("country=6" in path for path in verdict.failed)


def test_a_final_score_is_compared_by_its_sum(world, policy, table, rule):
    columns = world(rows=20_000, noise=0.0)
    columns["challenger_click"] = np.minimum(1, 1.2 * columns["production_click"])
    verdict = judge(table(columns), policy(slices=[]), rule(lambda batch: batch["score_click"] * 10))
    expected = columns["challenger_click"].sum() / columns["production_click"].sum() - 1
    assert _check(verdict).estimate == pytest.approx(expected) and _check(verdict).outcome == "fail"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda batch: 1 / 0, "ZeroDivisionError"),
        (lambda batch: batch["label_click"], "KeyError"),
        (lambda batch: batch["score_click"][:5], "shape"),
        (lambda batch: -batch["score_click"], "negative"),
        (lambda batch: np.where(batch["item"] == batch["item"][0], np.nan, 1), "not finite"),
    ],
)
def test_a_rule_that_cannot_be_replayed_rejects_with_the_reason(world, policy, table, rule, function, words):
    verdict = judge(table(world(rows=5_000)), policy(slices=[]), rule(function))
    assert verdict.verdict == "REJECT" and verdict.failed == ["share_notify/notify/all"]
    assert words in verdict.reason


def test_a_rule_may_live_in_a_file(world, policy, table, tmp_path):
    path = tmp_path / "rules.py"
    path.write_text("def boost(batch):\n    return batch['value'] > 0.5\n")
    rules = RuleSet(python={"boost": PythonRule(function=f"{path}:boost")})
    assert _check(judge(table(world(rows=5_000)), policy(slices=[]), rules), "share_boost").n == 5_000


@pytest.mark.parametrize("function", ["no_such_module:notify", "json:no_such_function", "/nowhere/rules.py:notify", "json:__name__"])
def test_an_entry_point_that_is_not_there_is_a_configuration_error(world, policy, table, function):
    with pytest.raises(ConfigError, match=r"rules.python.r.function"):
        judge(table(world(rows=2_000)), policy(slices=[]), RuleSet(python={"r": PythonRule(function=function)}))
    with pytest.raises(ConfigError, match="no entry point"):
        PythonRule(function="just_a_name")
