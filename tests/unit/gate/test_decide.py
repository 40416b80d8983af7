import math

import pytest
from scipy import stats

from trainer.gate.decide import Measured, Question, either_side, excess_p, holm, reach, settle
from trainer.schema.verdict import Check


def _question(harm, se, *, p=None, margin=0.01, place="all", n=1000, confidence=0.95, **more):
    found = Measured(harm, se, 1e6)
    check = Check(
        name="auc", family="ranking", slice=place, estimate=harm, margin=margin, n=n, outcome="pass", sentence="auc",
        p=found.p_above(margin) if p is None else p,
    )  # fmt: skip
    return Question(check=check, upper=found.upper(confidence), se=se, dof=1e6, **more)


def test_holm_steps_down_and_stops_at_the_first_that_survives():
    assert holm([0.001, 0.03, 0.04, 0.012], 0.05) == [True, False, False, True]
    assert holm([0.04], 0.05) == [True]
    assert holm([0.04, 0.04], 0.05) == [False, False]
    assert holm([], 0.05) == []


def test_p_values_are_students():
    assert excess_p(2.0, 1.0, 7) == pytest.approx(stats.t.sf(2.0, 7))
    assert excess_p(1e-9, 0.0, 7) == 0.0 and excess_p(0.0, 0.0, 7) == 1.0
    assert reach(2.0, 7, 0.975) == pytest.approx(2 * stats.t.ppf(0.975, 7))
    assert reach(math.nan, 7, 0.975) == math.inf and reach(0.0, 7, 0.975) == 0.0


def test_two_sided_p_counts_both_tails():
    found = Measured(0.0, 1.0, 1e6)
    assert found.p_outside(-1.0, 1.0) == 1.0
    assert Measured(3.0, 1.0, 1e6).p_outside(-1.0, 1.0) == pytest.approx(stats.norm.sf(2) + stats.norm.sf(4), rel=1e-3)
    assert Measured(-3.0, 1.0, 1e6).p_outside(-1.0, 1.0) == pytest.approx(stats.norm.sf(2) + stats.norm.sf(4), rel=1e-3)
    assert either_side(0.0, 1.0) == 0.0


def test_harm_beyond_the_margin_fails_and_harm_within_it_passes(policy):
    shown, small, better = settle([_question(0.05, 0.002), _question(0.005, 0.002), _question(-0.02, 0.002)], policy())
    assert [check.outcome for check in (shown, small, better)] == ["fail", "pass", "pass"]


def test_harm_that_cannot_be_ruled_out_holds_and_names_the_rows_it_takes(policy):
    [check] = settle([_question(0.0, 0.05)], policy())
    assert check.outcome == "hold" and "rows would tell" in check.sentence
    # 5 margins must be ruled out with 95 % confidence and 80 % power: (1.645 + 0.842)^2 * (0.05 / 0.05)^2 * 1000 rows.
    assert "6,183" in check.sentence or "6,18" in check.sentence


def test_launch_demands_the_margin_itself(policy):
    question = _question(0.0, 0.01)
    assert settle([question], policy("refresh"))[0].outcome == "pass"
    assert settle([question], policy("launch"))[0].outcome == "hold"


def test_mde_is_what_would_have_been_shown_with_the_promised_power(policy):
    chosen = policy()
    [check] = settle([_question(0.0, 0.01)], chosen)
    power = stats.norm.sf((0.01 + stats.norm.isf(chosen.alpha) * 0.01 - check.mde) / 0.01)
    assert power == pytest.approx(chosen.power, abs=1e-3)


def test_a_small_slice_is_not_testable_but_a_gross_harm_on_it_still_fails(policy):
    quiet, gross = settle([_question(0.0, 0.05, place="country=1"), _question(0.5, 0.05, place="country=2")], policy())
    assert quiet.outcome == "not_testable" and gross.outcome == "fail"


def test_too_few_holds_on_all_rows_and_is_not_testable_on_a_slice(policy):
    checks = settle([_question(9.0, 0.01, too_few="3 rows"), _question(9.0, 0.01, place="a=b", too_few="3 rows")], policy())
    assert [check.outcome for check in checks] == ["hold", "not_testable"]
    assert all("3 rows" in check.sentence for check in checks)


def test_a_gain_that_is_too_good_holds(policy):
    [check] = settle([_question(-0.3, 0.01, gain_shown=0.28, gain_limit=0.1)], policy())
    assert check.outcome == "hold" and "leak" in check.sentence


def test_warnings_do_not_eat_the_budget_of_blocking_tests(policy):
    alpha = policy().alpha
    blocking = _question(0.05, 0.01, p=alpha * 0.9)
    warning = _question(0.05, 0.01, p=0.5)
    warning = Question(check=Check(**{**vars(warning.check), "severity": "warn"}), upper=0.0, se=0.01)
    assert settle([blocking] + [warning] * 50, policy())[0].outcome == "fail"
    assert settle([blocking, _question(0.0, 0.001, p=0.5)], policy())[0].outcome != "fail"
