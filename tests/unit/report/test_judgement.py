"""Live thresholds on the quantile plot, suites and repairs on the page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.gate import judge, write_verdict
from trainer.gate.repair import judge_and_repair
from trainer.report import render
from trainer.report.artefacts import read_artefacts
from trainer.report.scores import read_scores
from trainer.report.svg import LEFT, RIGHT, WIDTH, Panel, linear_axis
from trainer.report.thresholds import live_thresholds
from trainer.schema.plain import as_plain
from trainer.schema.policy import GatePolicy, RuleSet, ThresholdRule
from trainer.schema.suite import Suite, SuiteCase

RULES = RuleSet(thresholds={"push <all>": ThresholdRule(score="click", at_least=0.3), "other": ThresholdRule(score="like", at_least=0.1)})


def table(scale: float, rows: int = 20_000) -> pa.Table:
    rng = np.random.default_rng(3)
    truth_N = 1 / (1 + np.exp(2.0 - rng.normal(0, 0.7, rows)))
    return pa.table({
        "user": rng.integers(0, 4_000, rows), "item": rng.integers(0, 200, rows), "country": rng.choice(["DE", "TR"], rows),
        "label_click": (rng.random(rows) < truth_N).astype(float), "production_click": truth_N,
        "challenger_click": np.clip(scale * truth_N, 0, 1),
        "label_like": np.zeros(rows), "production_like": truth_N / 9, "challenger_like": truth_N / 9,
    })  # fmt: skip


def gated(folder: Path, scale: float, rules: RuleSet, policy: GatePolicy, **more) -> Path:
    """A run of the gate alone."""
    folder.mkdir()
    predictions = table(scale)
    pq.write_table(predictions, folder / "predictions.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump({"rules": as_plain(rules), "gate": as_plain(policy)}))
    if policy.repair:
        verdict, repair = judge_and_repair(predictions, policy, rules, **more)
        write_verdict(verdict, folder, repair)
    else:
        write_verdict(judge(predictions, policy, rules, **more), folder)
    return folder


@pytest.fixture
def policy() -> GatePolicy:
    return GatePolicy(name="refresh")


def test_declared_thresholds_of_the_action_are_marked(tmp_path: Path, policy: GatePolicy):
    run = read_artefacts(gated(tmp_path / "run", 1.3, RULES, policy))
    action = next(one for one in read_scores(tmp_path / "run" / "predictions.parquet") if one.name == "click")
    [found] = live_thresholds(run, action)
    production_N, challenger_N = action.scores["production"], action.scores["challenger"]
    assert (found.name, found.at) == ("push <all>", 0.3)
    assert found.share == pytest.approx((production_N >= 0.3).mean())
    assert found.now == pytest.approx((challenger_N >= 0.3).mean())
    assert (challenger_N >= found.same).mean() == pytest.approx(found.share, abs=2e-4), "the same traffic"
    assert found.same == pytest.approx(0.39, rel=1e-3), "1.3 times the threshold"
    html = render(tmp_path / "run").read_text()
    assert f"{found.now / found.share:.2f} times the traffic" in html
    assert "push &lt;all&gt;" in html
    assert "<all>" not in html, "names are data"


def test_without_rules_the_quantiles_that_the_gate_compared_are_marked(tmp_path: Path, policy: GatePolicy):
    run = read_artefacts(gated(tmp_path / "run", 1.0, RuleSet(), policy))
    action = next(one for one in read_scores(tmp_path / "run" / "predictions.parquet") if one.name == "click")
    against = [replace(check, name=f"{check.name}_vs_reference") for check in run.checks if check.name.startswith("share_top_")]
    run = replace(run, verdict=replace(run.verdict, checks=[*against, *run.checks]))
    found = live_thresholds(run, action)
    compared = [check for check in run.checks if not check.name.endswith("_vs_reference")]
    compared = [check for check in compared if (check.action, check.slice, check.outcome) == ("click", "all", "pass")]
    compared = [check for check in compared if check.name.startswith("share_top_")]
    assert len(found) == len(compared) > 0
    assert "top 1 %" not in {threshold.name for threshold in found}, "20,000 rows fix none"
    assert found[0].name == "top 10 %", "lowest first"
    assert found[0].share == found[0].now == pytest.approx(0.1, abs=1e-3)


def test_a_marker_stands_where_its_threshold_is_and_beside_the_plot_is_none():
    panel = Panel("k", "t", "d", linear_axis(0.0, 1.0, "x"), linear_axis(0.0, 1.0, "y"))
    panel.marker(0.5, "middle", 0)
    panel.marker(2.0, "outside", 1)
    [line, text] = panel.marks
    middle = LEFT + (WIDTH - RIGHT - LEFT) / 2
    assert f"M{middle:.1f} " in line.replace(f"M{middle:g} ", f"M{middle:.1f} ")
    assert ">middle<" in text


def test_suites_have_a_section_with_reason_and_outcome(tmp_path: Path, policy: GatePolicy):
    suite = Suite(name="turkey", kind="slice", metric="calibration", action="click", margin=0.05, reason="pushes <b>", note="ask Ada",
                  added="2026-03-28", where="country == 'TR'")  # fmt: skip
    lost = SuiteCase(name="lost", problem="golden rows are missing")
    folder = gated(tmp_path / "run", 1.3, RuleSet(), policy, suites=[SuiteCase(name="turkey", suite=suite), lost])
    section = render(folder).read_text().split('<section id="suites">')[1].split("</section>")[0]
    for words in ("turkey", "pushes &lt;b&gt;; ask Ada", "failed", "golden rows are missing"):
        assert words in section
    slices = (folder / "report.html").read_text().split('<section id="slices">')[1].split("</section>")[0]
    assert "suite=" not in slices, "a suite is no slice of the table"


def test_a_repair_is_shown_before_and_after(tmp_path: Path):
    folder = gated(tmp_path / "run", 1.3, RuleSet(), GatePolicy(name="refresh", repair=["calibrate", "map"]))
    html = render(folder).read_text()
    section = html.split('<section id="repair">')[1].split("</section>")[0]
    for words in ("As it came", "REJECT", "Repaired", "calibration/click/all", "1.3"):
        assert words in section, words
    assert 'class="line repaired"' in html
    plain = render(gated(tmp_path / "plain", 1.0, RuleSet(), GatePolicy(name="refresh"))).read_text()
    assert "No repair was tried" in plain
    assert 'class="line repaired"' not in plain
