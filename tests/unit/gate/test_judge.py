"""What the gate must say about challengers whose fault is known."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import ConfigError, DataError
from trainer.gate import conclude, judge, write_verdict
from trainer.schema.policy import RuleSet, ThresholdRule
from trainer.schema.verdict import Check

ACTIONS = ("click", "like")


def _logit(p):
    return np.log(p / (1 - p))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _names(verdict, scope=None):
    """Names of failed checks; `scope` all or slice."""
    found = [path.split("/", 2) for path in verdict.failed]
    return {name for name, _, place in found if scope is None or (place == "all") == (scope == "all")}


def _slices(verdict):
    return {path.split("/", 2)[2] for path in verdict.failed} - {"all"}


def _find(verdict, name, action, place="all"):
    return next(c for c in verdict.checks if (c.name, c.action, c.slice) == (name, action, place))


def test_small_noise_is_promoted(world, policy, no_rules, table):
    verdict = judge(table(world()), policy(), no_rules)
    assert verdict.verdict == "PROMOTE", verdict.reason
    assert verdict.failed == []


def test_identical_columns_differ_by_exactly_nothing(world, policy, no_rules, table):
    columns = world()
    for action in ACTIONS:
        columns[f"challenger_{action}"] = columns[f"production_{action}"].copy()
    columns["value_challenger"] = columns["value_production"].copy()
    for name in ("refresh", "launch"):
        verdict = judge(table(columns), policy(name), no_rules)
        assert verdict.verdict == "PROMOTE", verdict.reason
        compared = [c for c in verdict.checks if c.estimate is not None and c.name != "slice_coverage"]
        assert len(compared) > 200
        assert {c.estimate for c in compared} == {0.0}
        assert {c.outcome for c in verdict.checks} == {"pass", "not_applicable"}


def test_a_scaled_score_keeps_its_ranking_and_is_rejected_for_calibration_and_thresholds(world, policy, no_rules, table, revalued):
    columns = world()
    for action in ACTIONS:
        columns[f"challenger_{action}"] = np.minimum(1, 1.3 * columns[f"production_{action}"])
    verdict = judge(table(revalued(columns)), policy(), no_rules)
    assert verdict.verdict == "REJECT"
    assert {"calibration", "ecce", "share_top_10%"} <= _names(verdict, "all")
    assert not {"auc", "gauc", "ndcg"} & _names(verdict)
    assert _find(verdict, "auc", "click").estimate == pytest.approx(0, abs=1e-4)
    assert _find(verdict, "calibration", "click").estimate == pytest.approx(0.3, abs=0.06)


def test_one_scaled_country_is_named_and_no_other(world, policy, no_rules, table, revalued):
    for seed in range(4):
        columns = world(rows=100_000, seed=seed)
        there_N = columns["country"] == 7
        columns["challenger_click"] = np.minimum(1, np.where(there_N, 1.25, 1.0) * columns["challenger_click"])
        verdict = judge(table(revalued(columns)), policy(), no_rules)
        assert verdict.verdict == "REJECT"
        assert _slices(verdict) == {"country=7"}


def test_two_countries_that_cancel_are_both_named(world, policy, no_rules, table, revalued):
    columns = world(rows=100_000)
    factor_N = np.select([columns["country"] == 3, columns["country"] == 4], [1.3, 0.72], 1.0)
    columns["challenger_click"] = np.minimum(1, factor_N * columns["production_click"])
    verdict = judge(table(revalued(columns)), policy(), no_rules)
    assert _slices(verdict) == {"country=3", "country=4"}
    assert _find(verdict, "calibration", "click").outcome == "pass"


def test_a_raised_top_is_caught_at_the_thresholds_only(world, policy, no_rules, table):
    columns = world(rows=100_000, noise=0.0)
    z_N = _logit(columns["production_click"])
    columns["challenger_click"] = _sigmoid(z_N + 0.25 * (z_N >= np.quantile(z_N, 0.98)))
    verdict = judge(table(columns), policy(), no_rules)
    assert verdict.verdict == "REJECT"
    assert _names(verdict, "all") == {"share_top_1%"}


@pytest.mark.parametrize("seed", range(3))
def test_heavy_users_cause_no_false_alarm(world, policy, no_rules, table, seed):
    assert judge(table(world(heavy=True, noise=0.1, seed=seed)), policy(), no_rules).failed == []


def test_a_worse_model_is_rejected_for_ranking_and_loss(world, policy, no_rules, table):
    columns = world()
    noise_N = np.random.default_rng(1).normal(0, 1.0, len(columns["user"]))
    columns["challenger_click"] = _sigmoid(_logit(columns["production_click"]) + noise_N)
    verdict = judge(table(columns), policy(), no_rules)
    assert {"auc", "ne"} <= _names(verdict, "all")


def test_a_better_model_is_promoted_although_its_scores_spread(world, policy, no_rules, table, revalued):
    """Production knows less, so its calibrated scores are narrower; the labels back the challenger's wider ones."""
    columns = world(rows=100_000, noise=0.02)
    z_N = _logit(columns["production_click"])
    noise_N = np.random.default_rng(2).normal(0, 0.5, len(z_N))
    columns["production_click"] = _sigmoid(0.8 * (z_N + noise_N - z_N.mean()) + z_N.mean() + 0.05)
    verdict = judge(table(revalued(columns)), policy(), no_rules)
    assert verdict.verdict == "PROMOTE", verdict.reason
    share = _find(verdict, "share_top_1%", "click")
    assert share.estimate > 0.2 and "backed by labels" in share.sentence
    strict = judge(table(columns), policy(excuse_backed=False), no_rules)
    assert "share_top_1%" in _names(strict, "all")


def test_a_declared_threshold_is_never_excused(world, policy, table, revalued):
    columns = world(rows=100_000, noise=0.02)
    z_N = _logit(columns["production_click"])
    noise_N = np.random.default_rng(2).normal(0, 0.5, len(z_N))
    columns["production_click"] = _sigmoid(0.8 * (z_N + noise_N - z_N.mean()) + z_N.mean() + 0.05)
    rules = RuleSet(thresholds={"push": ThresholdRule(score="click", at_least=float(np.quantile(columns["production_click"], 0.99)))})
    verdict = judge(table(revalued(columns)), policy(), rules)
    assert _names(verdict, "all") == {"share_push"}


def test_a_leak_holds(world, policy, no_rules, table):
    columns = world()
    z_N = _logit(columns["production_click"])
    columns["challenger_click"] = _sigmoid(z_N + 1.2 * (columns["label_click"] - columns["production_click"]))
    verdict = judge(table(columns), policy(severity={"scores": "warn", "calibration": "warn"}), no_rules)
    assert verdict.verdict == "HOLD"
    assert "leak" in _find(verdict, "auc", "click").sentence


@pytest.mark.parametrize("bad", [np.nan, np.inf, None, 1.5, -0.1])
@pytest.mark.parametrize("column", ["challenger_click", "production_click"])
def test_an_unsound_score_is_rejected_with_the_reason(world, policy, no_rules, table, bad, column):
    columns = world(rows=5_000)
    columns[column] = pa.array([bad, *columns[column][1:].tolist()])
    verdict = judge(pa.table(columns), policy(slices=[]), no_rules)
    if column == "production_click" and bad == 1.5:
        return  # production above 1 says that the action is no probability; nothing is wrong then
    assert verdict.verdict == "REJECT"
    assert "scores/click/all" in verdict.failed
    assert any(column in check.sentence for check in verdict.checks if check.outcome == "fail")


def test_scores_out_of_range_do_not_hide_what_else_is_wrong(world, policy, no_rules, table):
    columns = world()
    columns["challenger_click"] = 1.3 * columns["production_click"]
    assert columns["challenger_click"].max() > 1
    verdict = judge(table(columns), policy(), no_rules)
    assert {"scores", "calibration", "share_top_10%"} <= _names(verdict, "all")


def test_an_unsound_value_is_rejected(world, policy, no_rules, table):
    columns = world(rows=5_000)
    columns["value_challenger"][3] = np.nan
    assert judge(table(columns), policy(slices=[]), no_rules).failed == ["scores/value/all"]


def test_a_declared_slice_column_that_is_missing_rejects(world, policy, no_rules, table):
    verdict = judge(table(world(rows=20_000)), policy(slices=["region"]), no_rules)
    assert verdict.verdict == "REJECT"
    assert verdict.failed == ["slice_column/all/region=*"]
    assert "region" in verdict.reason


def test_an_action_that_the_challenger_lost_rejects(world, policy, no_rules, table):
    columns = world(rows=20_000)
    del columns["challenger_like"], columns["value_challenger"]
    verdict = judge(table(columns), policy(), no_rules)
    assert verdict.failed == ["columns/like/all"]


def test_a_metric_that_raises_rejects(world, policy, no_rules, table, monkeypatch):
    def broken(*arguments):
        raise FloatingPointError("no luck")

    monkeypatch.setattr(sys.modules["trainer.gate.judge"], "calibration", broken)
    verdict = judge(table(world(rows=5_000)), policy(slices=[]), RuleSet())
    assert verdict.verdict == "REJECT"
    assert set(verdict.failed) == {"calibration/click/all", "calibration/like/all"}
    assert "FloatingPointError: no luck" in verdict.reason


def test_a_small_slice_is_not_testable_and_says_what_it_would_have_shown(world, policy, no_rules, table):
    columns = world(noise=0.3)
    columns["country"][:150] = 99
    verdict = judge(table(columns), policy(), no_rules)
    found = _find(verdict, "auc", "click", "country=99")
    assert found.outcome == "not_testable"
    assert found.mde is not None and found.mde > found.margin
    assert not any(path.endswith("country=99") for path in verdict.failed)


def test_slices_that_are_mostly_untestable_hold_a_launch(world, policy, no_rules, table):
    columns = world(rows=20_000, noise=0.3, countries=150)
    verdict = judge(table(columns), policy("launch", slices=["country"]), no_rules)
    held = _find(verdict, "slice_coverage", "all", "country=*")
    assert held.outcome == "hold" and held.estimate > 0.2


def test_too_few_rows_hold_and_say_how_many_it_would_take(world, policy, no_rules, table):
    verdict = judge(table(world(rows=3_000, users=300, noise=0.15)), policy("launch", slices=[]), no_rules)
    assert verdict.verdict == "HOLD"
    held = _find(verdict, "auc", "click")
    assert held.outcome == "hold" and held.mde > held.margin
    assert "rows would tell" in held.sentence


def test_no_ripe_label_holds(world, policy, no_rules, table):
    columns = world(rows=3_000)
    for action in ACTIONS:
        columns[f"label_{action}"] = np.full(3_000, np.nan)
    assert judge(table(columns), policy(slices=[]), no_rules).verdict == "HOLD"


def _first(columns):
    return {name: x_N for name, x_N in columns.items() if not name.startswith("production_") and not name.startswith("value_")}


def test_without_production_the_policy_decides(world, policy, no_rules, table):
    columns = _first(world())
    verdict = judge(table(columns), policy(), no_rules)
    assert verdict.verdict == "HOLD" and _find(verdict, "first", "all").outcome == "hold"
    verdict = judge(table(columns), policy(first="promote"), no_rules)
    assert verdict.verdict == "PROMOTE" and _find(verdict, "first", "all").outcome == "pass"


def test_without_production_the_sanity_checks_still_reject(world, policy, no_rules, table):
    columns = _first(world())
    flat_N = np.full(len(columns["user"]), columns["challenger_click"].mean())
    counting = {**columns, "counting_click": columns["challenger_click"], "challenger_click": flat_N}
    assert judge(table(counting), policy(first="promote"), no_rules).failed == ["auc_vs_counting/click/all"]
    doubled = {**columns, "challenger_click": np.minimum(1, 2 * columns["challenger_click"])}
    assert judge(table(doubled), policy(first="promote"), no_rules).failed == ["calibration/click/all"]


def test_a_first_model_is_told_from_chance(world, policy, no_rules, table):
    """`gate.first=promote` is the user's word; that nothing but this word backs a model is said where the verdict is read."""
    columns = _first(world())
    columns = {name: x_N for name, x_N in columns.items() if not name.endswith("_like")}
    shown = judge(table(columns), policy(first="promote"), no_rules)
    assert _find(shown, "auc_vs_chance", "click").outcome == "pass" and "CAUTION" not in shown.reason
    p_N, few = columns["challenger_click"], slice(0, 200)

    def permuted(rows: slice, seed: int) -> dict:
        score_N = np.random.default_rng(seed).permutation(p_N)
        return {name: x_N[rows] for name, x_N in {**columns, "challenger_click": score_N}.items()}

    for blind in (permuted(few, 0), permuted(slice(None), 1), {**columns, "challenger_click": np.full(len(p_N), p_N.mean())}):
        verdict = judge(table(blind), policy(first="promote", min_positives=5), no_rules)
        check = _find(verdict, "auc_vs_chance", "click")
        assert (verdict.verdict, check.outcome, check.severity) == ("PROMOTE", "hold", "warn")
        assert "CAUTION: not shown to rank click better than chance" in verdict.reason and "gate.first=promote" in verdict.reason
        assert judge(table(blind), policy(min_positives=5), no_rules).verdict == "HOLD"


def test_a_head_that_production_lacks_is_told_from_chance_too(world, policy, no_rules, table):
    columns = {name: x_N for name, x_N in world(rows=20_000).items() if name != "production_like" and not name.startswith("value_")}
    columns["challenger_like"] = np.random.default_rng(1).permutation(columns["challenger_like"])
    verdict = judge(table(columns), policy(slices=[]), no_rules)
    assert verdict.verdict == "PROMOTE", verdict.reason
    assert verdict.reason.endswith("CAUTION: not shown to rank like better than chance")


def test_a_first_model_that_ranks_worse_than_chance_is_rejected(world, policy, no_rules, table):
    columns = _first(world())
    order_N = np.argsort(columns["challenger_click"])
    columns["challenger_click"][order_N] = columns["challenger_click"][order_N[::-1]].copy()  # the same scores, upside down
    verdict = judge(table(columns), policy(first="promote"), no_rules)
    assert verdict.failed == ["auc_vs_chance/click/all"]


def test_checks_of_other_stages_decide_like_any_other(world, policy, no_rules, table):
    extra = Check(name="parity", family="serving", outcome="fail", sentence="served scores differ by 0.2")
    scores = judge(table(world(rows=20_000)), policy(slices=[]), no_rules)
    verdict = conclude([*scores.checks, extra], policy())
    assert verdict.verdict == "REJECT" and verdict.failed == ["parity/all/all"]
    held = Check(name="downstream", family="downstream", outcome="hold", sentence="cannot tell")
    assert conclude([*scores.checks, held], policy()).verdict == "HOLD"
    warned = Check(name="latency", family="serving", outcome="fail", severity="warn", sentence="slower")
    assert conclude([*scores.checks, warned], policy()).verdict == "PROMOTE"


def test_a_severity_turns_a_failure_into_a_warning(world, policy, no_rules, table):
    columns = world(rows=100_000, noise=0.0)
    z_N = _logit(columns["production_click"])
    columns["challenger_click"] = _sigmoid(z_N + 0.25 * (z_N >= np.quantile(z_N, 0.98)))
    verdict = judge(table(columns), policy(severity={"share_top_1%": "warn"}), no_rules)
    assert verdict.verdict == "PROMOTE"
    assert _find(verdict, "share_top_1%", "click").outcome == "fail"


def test_nothing_depends_on_the_order_of_the_rows(world, policy, no_rules, table):
    columns = world(rows=20_000)
    order_N = np.random.default_rng(3).permutation(20_000)
    shuffled = {name: x_N[order_N] for name, x_N in columns.items()}
    one, two = ({c.path: c.outcome for c in judge(table(x), policy(), no_rules).checks} for x in (columns, shuffled))
    assert one == two


def test_weights_count_like_repeated_rows(world, policy, no_rules, table):
    columns = world(rows=20_000)
    twice_N = np.random.default_rng(4).random(20_000) < 0.3
    repeated = {name: np.concatenate([x_N, x_N[twice_N]]) for name, x_N in columns.items()}
    weighted = {**columns, "weight": 1.0 + twice_N}
    one, two = (judge(table(c), policy(slices=[]), no_rules) for c in (repeated, weighted))
    for name in ("auc", "gauc", "ne", "calibration"):
        assert _find(one, name, "click").estimate == pytest.approx(_find(two, name, "click").estimate, abs=1e-9)
        assert _find(one, name, "click").high == pytest.approx(_find(two, name, "click").high, rel=1e-2, abs=1e-6)


def test_the_verdict_file_has_the_published_shape(world, policy, no_rules, table, tmp_path):
    columns = world(rows=20_000)
    columns["challenger_click"] = np.minimum(1, 1.5 * columns["challenger_click"])
    verdict = judge(table(columns), policy(), no_rules)
    written = json.loads(write_verdict(verdict, tmp_path / "run").read_text())
    assert written["verdict"] == "REJECT" and "calibration/click/all" in written["failed"]
    wanted = ["name", "family", "action", "slice", "estimate", "low", "high", "margin", "p", "n", "mde", "outcome", "severity", "sentence"]
    for check in written["checks"]:
        assert list(check) == wanted
        assert check["outcome"] in ("pass", "fail", "hold", "not_testable", "not_applicable")
        assert check["severity"] in ("block", "warn", "info")
    assert written == json.loads(write_verdict(judge(table(columns), policy(), no_rules), tmp_path / "again").read_text())


def test_a_rule_on_an_unknown_score_is_a_configuration_error(world, policy, table):
    rules = RuleSet(thresholds={"push": ThresholdRule(score="clik", at_least=0.5)})
    with pytest.raises(ConfigError, match="did you mean 'click'"):
        judge(table(world(rows=2_000)), policy(slices=[]), rules)


def test_nothing_to_judge_is_an_error(policy, no_rules, tmp_path):
    with pytest.raises(DataError, match="nothing can be judged"):
        judge(pa.table({"user": [1], "item": [2], "label_click": [1.0]}), policy(), no_rules)
    with pytest.raises(DataError, match="column is missing"):
        judge(pa.table({"label_click": [1.0], "challenger_click": [0.5]}), policy(), no_rules)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    for path in ("absent.parquet", "torn.parquet"):
        with pytest.raises(DataError, match="cannot read the predictions"):
            judge(tmp_path / path, policy(), no_rules)


def _without_scores(columns, table, missing_N):
    judged = table(columns)
    for name in ("production_click", "production_like", "value_production"):
        place = judged.column_names.index(name)
        judged = judged.set_column(place, name, pa.array(np.where(missing_N, np.nan, judged[name].to_numpy()), from_pandas=True))
    return judged


def test_rows_that_production_logged_no_score_for_are_left_out_up_to_a_share(world, policy, no_rules, table):
    columns = world()
    missing_N = np.arange(len(columns["user"])) % 20 == 0  # a twentieth
    judged = _without_scores(columns, table, missing_N)
    verdict = judge(judged, policy(unscored_share=0.1), no_rules)
    rows = len(missing_N) - missing_N.sum()
    expected = judge(table({name: np.asarray(x)[~missing_N] for name, x in columns.items()}), policy(), no_rules)
    told = [check for check in verdict.checks if check.name == "unscored"]
    assert [check for check in verdict.checks if check.name != "unscored"] == expected.checks
    assert verdict.verdict == "PROMOTE" and _find(verdict, "auc", "click").n == rows
    assert [(check.outcome, check.n) for check in told] == [("pass", len(missing_N))] and "2,000 of 40,000" in told[0].sentence

    for share in (0.0, 0.04):
        refused = judge(judged, policy(unscored_share=share), no_rules)
        assert refused.verdict == "REJECT" and "scores/click/all" in refused.failed
        assert "gate.unscored_share" in _find(refused, "scores", "click").sentence


def test_a_score_of_production_that_is_not_a_number_rejects_whatever_share_may_be_missing(world, policy, no_rules, table):
    columns = world()
    columns["production_click"][7] = np.nan
    assert judge(table(columns), policy(unscored_share=0.5), no_rules).verdict == "REJECT"
    columns = world()
    judged = table(columns)
    place = judged.column_names.index("challenger_click")
    holes = judged.set_column(place, "challenger_click", pa.array([None, *columns["challenger_click"][1:]], pa.float64()))
    assert judge(holes, policy(unscored_share=0.5), no_rules).verdict == "REJECT"
