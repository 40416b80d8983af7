"""Suites from the command that adds them to the verdict that they decide."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.suites.conftest import DAY, POLICY, model
from trainer.config import SuiteRunConfig
from trainer.errors import ConfigError, DataError, RegistryError
from trainer.gate import judge
from trainer.gate.suites import doubted, rows_where, settle_suites
from trainer.release import Registry
from trainer.schema.policy import RuleSet
from trainer.schema.predictions import CHALLENGER, PRODUCTION
from trainer.schema.suite import SUITES
from trainer.schema.verdict import Check
from trainer.suites import Model, SuiteStore, collect, run
from trainer.suites.capture import whole_users

FAILURE = {"kind": "failure", "check": "calibration/click/country=TR", "reason": "push storm of March", "note": "ask the TR team"}
Suite = Callable[..., SuiteRunConfig]


def no_models(*_: object) -> dict[str, Model]:
    raise AssertionError("nothing has to be scored")


def judged(config: SuiteRunConfig, predictions: Path, challenger: Model, production: Model | None = None) -> list[Check]:
    """Judges a run's predictions with the suites of a registry, and returns the suites' checks and the deciding one."""
    models = {CHALLENGER: challenger} | ({PRODUCTION: production} if production else {})
    cases = collect(store(config), lambda: models, {"click": 1.0})
    verdict = judge(predictions, POLICY, RuleSet(), value_weights={"click": 1.0}, suites=cases)
    return [check for check in verdict.checks if check.family == "suite" or check.path in verdict.failed]


def store(config: SuiteRunConfig) -> SuiteStore:
    return SuiteStore(Registry(Path(config.registry.root)).folder / SUITES)


def test_a_past_failure_that_is_back_rejects_and_says_why(suite: Suite, bad_run: Path, good_run: Path):
    run(suite("add", name="push_storm", from_run=str(bad_run), **FAILURE), no_models)
    kept = store(suite("list")).read("push_storm")
    assert (kept.metric, kept.action, kept.added) == ("calibration", "click", DAY)
    assert kept.source is not None
    assert kept.source.failed == "calibration/click/country=TR"
    predictions = good_run / "predictions.parquet"  # tonight's own rows are fine
    [fine] = judged(suite("list"), predictions, model(), model())
    assert (fine.outcome, fine.slice) == ("pass", "suite=push_storm")
    [back] = judged(suite("list"), predictions, model(scale=1.5, country="TR"), model())
    assert back.outcome == "fail"
    assert back.path == "calibration/click/suite=push_storm"
    for words in ("push_storm", "push storm of March", "ask the TR team", "a past failure is back"):
        assert words in back.sentence


def test_a_failure_is_kept_only_if_its_rows_show_it(suite: Suite, bad_run: Path, good_run: Path):
    with pytest.raises(ConfigError, match="these rows do not show the failure"):
        run(suite("add", name="few", from_run=str(bad_run), rows=60, **FAILURE), no_models)
    with pytest.raises(ConfigError, match="did not fail a check of this name"):
        run(suite("add", name="fine", from_run=str(good_run), **FAILURE), no_models)
    assert store(suite("list")).names() == []


def test_golden_rows_compare_with_the_live_model_on_the_stored_rows(suite: Suite, good_run: Path):
    add = {"kind": "golden", "check": "ne/click", "margin": 0.02, "reason": "a month of care"}
    run(suite("add", name="march", from_run=str(good_run), where="country == 'FR'", **add), no_models)
    kept = store(suite("list")).read("march")
    assert kept.source is not None
    table = pq.read_table(good_run / "predictions.parquet")
    assert kept.source.rows == table["country"].to_pylist().count("FR")
    [equal] = judged(suite("list"), good_run / "predictions.parquet", model(scale=0.5), model(scale=0.5))
    assert (equal.outcome, equal.estimate, equal.n) == ("pass", 0.0, kept.source.rows), "both equally bad: no harm, and the rows are FR"
    [worse] = judged(suite("list"), good_run / "predictions.parquet", model(scale=0.5), model())
    assert worse.outcome == "fail"
    alone = judged(suite("list"), good_run / "predictions.parquet", model(scale=0.5))
    assert alone[0].outcome == "fail", "without a live bundle the scores of the day stand in"
    assert f"against production's scores of {DAY}" in alone[0].sentence


@pytest.mark.parametrize(
    ("challenger", "production", "words"),
    [((DAY,), (DAY,), "both models were trained"), ((DAY,), (), "its result is flattered"), ((), (DAY,), "looks too bad"), ((), (), None)],
)
def test_golden_rows_that_a_model_was_trained_on_say_so(suite: Suite, good_run: Path, challenger, production, words):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="auc/click", margin=0.01, reason="r"), no_models)
    [check] = judged(suite("list"), good_run / "predictions.parquet", model(trained=challenger), model(trained=production))
    assert check.outcome == "pass"
    assert (words in check.sentence) if words else ("trained" not in check.sentence)


def test_golden_rows_too_few_to_tell_are_refused(suite: Suite, tmp_path: Path):
    from tests.unit.suites.conftest import write_run

    noisy = write_run(tmp_path / "noisy", model(feature="feature_truth", scale=1.02), rows=2_000, users=200)
    golden = {"kind": "golden", "check": "calibration/click", "margin": 0.001, "reason": "r", "from_run": str(noisy)}
    with pytest.raises(ConfigError, match="cannot tell a harm of the margin from chance"):
        run(suite("add", name="tight", **golden), no_models)
    with pytest.raises(ConfigError, match="these rows can tell nothing"):
        run(suite("add", name="two", **{**golden, "margin": 0.5, "rows": 40}), no_models)
    run(suite("add", name="wide", **{**golden, "margin": 0.5}), no_models)


def test_a_slice_is_judged_on_each_nights_rows(suite: Suite, bad_run: Path, good_run: Path):
    where = {"kind": "slice", "check": "calibration/click", "margin": 0.1, "reason": "loud", "as_of": DAY}
    run(suite("add", name="turkey", where="country == 'TR'", **where), no_models)
    run(suite("add", name="germany", where="country == 'DE'", **where), no_models)
    run(suite("add", name="moon", where="country == 'XX'", **where), no_models)
    by_name = {check.slice: check for check in judged(suite("list"), bad_run / "predictions.parquet", model())}
    assert by_name["suite=turkey"].outcome == "fail"
    assert by_name["suite=germany"].outcome == "pass"
    assert by_name["suite=moon"].outcome == "not_testable"
    assert "no row" in by_name["suite=moon"].sentence
    quiet = [check for check in judged(suite("list"), good_run / "predictions.parquet", model()) if check.outcome == "fail"]
    assert quiet == []


def test_a_slice_without_its_column_fails_closed(suite: Suite, good_run: Path):
    demand = {"kind": "slice", "check": "ne/click", "margin": 0.1, "reason": "r"}
    run(suite("add", name="planet", where="planet == 'mars'", as_of=DAY, **demand), no_models)
    [check] = judged(suite("list"), good_run / "predictions.parquet", model())
    assert (check.outcome, check.severity) == ("fail", "block")
    assert "planet" in check.sentence
    with pytest.raises(ConfigError, match="missing column"):
        run(suite("add", name="planets", where="planet == 'mars'", from_run=str(good_run), **demand), no_models)


def test_a_model_that_cannot_be_scored_on_golden_rows_fails_closed(suite: Suite, good_run: Path):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="auc/click", margin=0.01, reason="r"), no_models)
    [check] = judged(suite("list"), good_run / "predictions.parquet", model(feature="feature_new"), model())
    assert check.outcome == "fail"
    assert "feature_new" in check.sentence
    assert "nothing says that the challenger passes" in check.sentence


def test_an_action_that_the_challenger_no_longer_has_fails_closed(suite: Suite, good_run: Path):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="auc/click", margin=0.01, reason="r"), no_models)
    other = Model(lambda examples, tail, until_ms: {"purchase": examples["feature_truth"].to_numpy()}, {})
    [check] = judged(suite("list"), good_run / "predictions.parquet", other, model())
    assert check.outcome == "fail", "the scores of the challenger of that day are not this challenger's"
    assert "challenger_click" in check.sentence


def test_golden_rows_that_can_no_longer_tell_fail_closed(suite: Suite, good_run: Path):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="ne/click", margin=0.02, reason="r"), no_models)
    case = collect(store(suite("list")), lambda: {CHALLENGER: model(scale=0.9), PRODUCTION: model()}, None)
    [check] = settle_suites(case, pq.read_table(good_run / "predictions.parquet"), replace(POLICY, min_positives=10**6), None, 0)
    assert (check.outcome, check.severity) == ("fail", "block")
    assert "cannot tell" in check.sentence


@pytest.mark.parametrize("damage", ["rows", "record", "missing part", "no record"])
def test_a_damaged_suite_fails_closed(suite: Suite, good_run: Path, damage: str):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="auc/click", margin=0.01, reason="r"), no_models)
    folder = store(suite("list")).folder / "march"
    if damage == "rows":
        table = pq.read_table(folder / "rows.parquet")
        pq.write_table(table.slice(0, len(table) - 1), folder / "rows.parquet")  # a sound file with other rows
    elif damage == "missing part":
        shutil.rmtree(folder / "part-00")
    elif damage == "record":
        (folder / "suite.json").write_text('{"version": 1, "name": "march"}')
    else:
        (folder / "suite.json").unlink()
    [check] = judged(suite("list"), good_run / "predictions.parquet", model(), model())
    assert (check.outcome, check.severity, check.slice) == ("fail", "block", "suite=march")
    run(suite("list"), no_models)
    run(suite("remove", name="march", reason="damaged"), no_models)
    assert store(suite("list")).names() == []


def test_a_share_keeps_the_threshold_of_its_day(suite: Suite, good_run: Path):
    demand = {"kind": "golden", "check": "share_top_10%/click", "margin": 0.1, "reason": "push budget", "from_run": str(good_run)}
    run(suite("add", name="push", **demand), no_models)
    kept = store(suite("list")).read("push")
    production_N = pq.read_table(good_run / "predictions.parquet")["production_click"].to_numpy()
    assert kept.at_least == pytest.approx(np.quantile(production_N, 0.9, method="inverted_cdf"))
    [louder] = judged(suite("list"), good_run / "predictions.parquet", model(scale=1.3), model())
    assert louder.outcome == "fail", "a scale that no rank metric sees"
    with pytest.raises(ConfigError, match="no such threshold"):
        run(suite("add", name="other", **{**demand, "check": "share_x/click"}), no_models)


def test_without_models_golden_rows_are_not_applicable_and_slices_are_judged(suite: Suite, good_run: Path):
    run(suite("add", name="march", from_run=str(good_run), kind="golden", check="auc/click", margin=0.01, reason="r"), no_models)
    run(
        suite("add", name="turkey", kind="slice", where="country == 'TR'", check="auc/click", margin=0.05, reason="r", as_of=DAY), no_models
    )
    verdict = judge(good_run / "predictions.parquet", POLICY, RuleSet(), suites=collect(store(suite("list")), None, None))
    found = {check.slice: check.outcome for check in verdict.checks if check.family == "suite"}
    assert found == {"suite=march": "not_applicable", "suite=turkey": "pass"}
    assert verdict.verdict == "PROMOTE"


def test_action_run_judges_a_runs_challenger(suite: Suite, bad_run: Path):
    run(suite("add", name="push_storm", from_run=str(bad_run), **FAILURE), no_models)
    asked: list[Path] = []

    def models(challenger: Path, production: Path | None) -> dict[str, Model]:
        asked.append(challenger)
        assert production is None, "nothing is live here"
        return {CHALLENGER: model(scale=1.5, country="TR")}

    [check] = run(suite("run", from_run=str(bad_run)), models)
    assert (check.outcome, asked) == ("fail", [bad_run / "challenger"])
    with pytest.raises(RegistryError, match="push_storm"):
        run(suite("run", from_run=str(bad_run), name="push_stomr"), models)


def test_a_suite_never_changes_and_what_happens_to_it_is_history(suite: Suite, bad_run: Path, capsys: pytest.CaptureFixture[str]):
    run(suite("add", name="push_storm", from_run=str(bad_run), author="Ada", **FAILURE), no_models)
    before = store(suite("list")).digests()
    with pytest.raises(ConfigError, match="suites never change"):
        run(suite("add", name="push_storm", from_run=str(bad_run), **FAILURE), no_models)
    assert store(suite("list")).digests() == before
    assert [path.name for path in store(suite("list")).folder.iterdir()] == ["push_storm"], "nothing temporary stays"
    run(suite("list"), no_models)
    with pytest.raises(ConfigError, match="needs this"):
        run(suite("remove", name="push_storm"), no_models)
    run(suite("remove", name="push_storm", reason="fixed for good"), no_models)
    entries = Registry(Path(suite("list").registry.root)).status().history
    assert [(entry.event, entry.reason) for entry in entries] == [
        ("suite added", "push storm of March"),
        ("suite removed", "fixed for good"),
    ]
    printed = capsys.readouterr().out
    for words in ("push_storm", "Ada", "ask the TR team"):
        assert words in printed


def test_the_same_suite_from_the_same_run_is_the_same_bytes(suite: Suite, bad_run: Path):
    hashes = []
    for _ in range(2):
        run(suite("add", name="push_storm", from_run=str(bad_run), **FAILURE), no_models)
        hashes.append(store(suite("list")).digests())
        run(suite("remove", name="push_storm", reason="again"), no_models)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "../up"}, "not a name"), ({"reason": " "}, "needs this"), ({"margin": -1.0}, "tolerates some harm"),
        ({"check": "ne"}, "not a check"), ({"check": "nee/click"}, "unknown choice"), ({"kind": "gloden"}, "golden"),
        ({"margin": None}, "margin"), ({"where": None}, "a slice needs an expression"), ({"where": "country ="}, "not an expression"),
        ({"as_of": None}, "as_of"), ({"check": "share_top_1%/click"}, "needs a run"), ({"check": "ne/click/country=TR"}, "expression"),
        ({"kind": "golden"}, "golden rows come from a run"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error_and_nothing_is_written(suite: Suite, settings: dict, message: str):
    good = {
        "name": "turkey", "kind": "slice", "where": "country == 'TR'", "check": "ne/click", "margin": 0.1, "reason": "r", "as_of": DAY
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        run(suite("add", **{**good, **settings}), no_models)
    assert not Path(suite("list").registry.root).exists()


def test_settings_without_effect_are_refused(suite: Suite):
    for action, settings in (("list", {"name": "x"}), ("remove", {"margin": 0.1}), ("run", {"note": "x"}), ("list", {"rows": 5})):
        with pytest.raises(ConfigError, match="does not use this setting"):
            run(suite(action, **settings), no_models)


def test_examples_that_are_not_those_of_the_run_are_refused(suite: Suite, bad_run: Path, tmp_path: Path):
    copied = tmp_path / "copy"
    shutil.copytree(bad_run, copied)
    np.save(copied / "holdout_order.npy", np.arange(30_000)[::-1])
    with pytest.raises(DataError, match="not those that the run judged"):
        run(suite("add", name="push_storm", from_run=str(copied), **FAILURE), no_models)
    (copied / "summary.json").unlink()
    with pytest.raises(DataError, match="no golden rows can be taken"):
        run(suite("add", name="push_storm", from_run=str(copied), **FAILURE), no_models)


def test_thinning_keeps_whole_users():
    user_N = np.array([f"u{number % 40}" for number in range(400)])
    chosen_N = np.arange(400) < 200
    kept_N = whole_users(user_N, chosen_N, 50)
    assert 0 < kept_N.sum() <= 50
    assert not (kept_N & ~chosen_N).any()
    for user in np.unique(user_N[kept_N]):
        assert (kept_N == chosen_N)[user_N == user].all()
    assert (whole_users(user_N[::-1], chosen_N[::-1], 50)[::-1] == kept_N).all(), "the choice depends on ids alone"
    assert (whole_users(user_N, chosen_N, 1_000) == chosen_N).all()


def test_a_null_selects_nothing(good_run: Path):
    table = pq.read_table(good_run / "predictions.parquet").slice(0, 4)
    country = ["TR", None, "TR", "DE"]
    table = table.set_column(table.column_names.index("country"), "country", [country])
    assert rows_where(table, "country == 'TR'").tolist() == [True, False, True, False]
    assert rows_where(table, "country != 'TR'").tolist() == [False, False, False, True]
    with pytest.raises(ConfigError, match="not a condition"):
        rows_where(table, "label_click + 1")


def test_records_are_read_strictly(suite: Suite, bad_run: Path):
    run(suite("add", name="push_storm", from_run=str(bad_run), **FAILURE), no_models)
    path = store(suite("list")).folder / "push_storm" / "suite.json"
    values = json.loads(path.read_text())
    for change in ({"version": 2}, {"margn": 1}, {"name": "other"}, {"margin": "0.1"}):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(RegistryError):
            store(suite("list")).read("push_storm")


@pytest.mark.parametrize(("family", "outcome", "p", "held"), [
    ("suite", "pass", 0.01, True), ("suite", "not_testable", 0.01, True), ("suite", "pass", 0.2, False), ("suite", "pass", None, False),
    ("suite", "fail", 0.001, False), ("ranking", "pass", 0.01, False),
])  # fmt: skip
def test_a_chosen_slice_that_looks_worse_alone_is_held(family: str, outcome: str, p: float | None, held: bool):
    check = Check(name="ne", family=family, action="click", slice="suite=turkey", outcome=outcome, p=p, sentence="NE of click")
    [found] = doubted([check], POLICY)
    assert found.outcome == ("hold" if held else outcome)
    assert ("somebody should look" in found.sentence) == held
