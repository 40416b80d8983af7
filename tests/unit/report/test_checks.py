"""Forests and lists of checks."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trainer.report.checks import (
    MOST_FINDINGS,
    MOST_LINES,
    MOST_ROWS,
    STRIP_WIDTH,
    _extent,
    findings,
    forest,
    lines,
    strip,
    tally,
    warnings,
)
from trainer.report.numbers import percent
from trainer.schema.verdict import ALL, Check


def check(
    estimate: float | None, half: float = 0.01, slice_: str = ALL, outcome: str = "pass", name: str = "ne", action: str = "click"
) -> Check:
    low, high = (None, None) if estimate is None else (estimate - half, estimate + half)
    return Check(
        name=name, family="loss", action=action, slice=slice_, estimate=estimate, low=low, high=high, margin=0.02, n=100, outcome=outcome,
        sentence=f"{name} {slice_}",
    )  # fmt: skip


def dot(svg: str) -> float:
    found = re.search(r'cx="([\d.]+)"', svg)
    assert found
    return float(found[1])


def test_a_warning_warns_and_what_informs_stays_in_the_list() -> None:
    judged = [
        replace(check(0.1, name=f"{severity}_{outcome}", outcome=outcome), severity=severity)
        for severity in ("block", "warn", "info") for outcome in ("pass", "fail", "hold")
    ]  # fmt: skip
    run = SimpleNamespace(checks=judged)
    assert [one.name for one in warnings(run)] == ["warn_fail", "warn_hold"]  # type: ignore[arg-type]


def test_strip_places_zero_in_the_middle_and_harm_to_the_right() -> None:
    assert dot(strip(check(0.0), 0.1)) == STRIP_WIDTH / 2
    assert dot(strip(check(0.05), 0.1)) - STRIP_WIDTH / 2 == pytest.approx(STRIP_WIDTH / 2 - dot(strip(check(-0.05), 0.1)))
    assert dot(strip(check(0.05), 0.1)) > STRIP_WIDTH / 2


def test_what_leaves_the_scale_gets_an_arrow_and_no_dot() -> None:
    svg = strip(check(0.5), 0.1)
    assert "<circle" not in svg and svg.count('class="whisker"') == 2
    assert strip(check(0.05), 0.1).count('class="whisker"') == 1


def test_scale_holds_nearly_all_ends_and_the_margin() -> None:
    assert _extent([check(0.001, 0.001)]) >= 0.02
    assert 0.9 <= _extent([check(0.8, 0.1) for _ in range(20)]) <= 1.0
    assert _extent([check(0.01, 0.005) for _ in range(40)] + [check(50.0)]) < 1.0  # one outlier does not flatten the rest


def test_long_forest_keeps_all_rows_failures_and_the_largest_deviations() -> None:
    checks = [check(i / 1000, slice_=f"country={i:03d}") for i in range(90)] + [check(0.0), check(0.0001, slice_="tab=1", outcome="fail")]
    found = forest("t", "slice", checks, ("better", "worse"), percent)
    labels = [row.label for row in found.rows]
    assert (
        len(labels) == MOST_ROWS
        and labels[0] == "all rows"
        and "tab=1" in labels
        and "country=089" in labels
        and "country=000" not in labels
    )
    assert "62 with smaller deviations" in found.omitted


def test_untestable_slices_are_counted_not_drawn() -> None:
    found = forest(
        "t", "slice", [check(0.1), check(None, slice_="a=1"), check(0.2, slice_="a=2", outcome="not_testable")], ("b", "w"), percent
    )
    assert [row.label for row in found.rows] == ["all rows"] and "2 too small to be tested" in found.omitted


def test_findings_of_one_check_are_told_once() -> None:
    found = findings([check(0.1, outcome="fail"), check(0.1, slice_="c=1", outcome="fail"), check(0.1, name="auc", outcome="fail")])
    assert [(f.check.name, f.also) for f in found.shown] == [("ne", ["c=1"]), ("auc", [])] and found.more == 0
    assert findings([check(0.1, name=f"n{i}", outcome="fail") for i in range(MOST_FINDINGS + 3)]).more == 3


def test_a_finding_names_the_baseline_it_is_about() -> None:
    found = findings([check(0.1, name="auc_vs_counting", outcome="fail"), check(0.1, outcome="fail")])
    assert [finding.against for finding in found.shown] == ["counting", ""]


def test_tally_counts_every_outcome() -> None:
    assert tally([check(0.0), check(0.0), check(0.0, outcome="fail")]) == "1 failed, 2 passed"
    assert tally([]) == "none"


def test_the_list_is_cut_at_what_a_page_can_carry() -> None:
    assert len(lines([check(0.0)] * (MOST_LINES + 5))) == MOST_LINES
