"""Labels flipped under production too hold; a challenger that moved by itself is rejected."""

import json

import numpy as np
import pytest

from tests.unit.gate.conftest import logit, sigmoid
from trainer.errors import DataError
from trainer.gate import judge, judge_and_repair
from trainer.gate.sanity import temper
from trainer.gate.table import prepare
from trainer.schema.record import Recorded, read_record
from trainer.schema.verdict import Check

FLIPS = 0.02


def _columns(base=0.07, seed=0, rows=30_000, flipped=0.0, learned=0.0, moved=1.0):
    """One action; `flipped` labels in the evaluation, `learned` flips in the challenger's training, its scores times `moved`."""
    rng = np.random.default_rng(seed)
    user_N = rng.integers(0, rows // 10, rows)
    z_N = logit(base) - 0.5 + rng.normal(0, 0.7, rows // 10)[user_N] + rng.normal(0, 1, rows)
    label_N = (rng.random(rows) < sigmoid(z_N)) ^ (rng.random(rows) < flipped)
    ours_N = sigmoid(z_N + rng.normal(0, 0.05, rows))
    ours_N = np.minimum(1, moved * (ours_N * (1 - learned) + (1 - ours_N) * learned))
    return {
        "user": user_N, "item": rng.integers(0, 500, rows), "country": rng.integers(0, 8, rows), "label_click": label_N.astype(float),
        "production_click": sigmoid(z_N), "challenger_click": ours_N,
    }  # fmt: skip


def _record(base=0.07, rows=30_000):
    """What production was worth on an earlier day with sound labels."""
    from trainer.metrics import arrange, normalised_loss, ratio

    columns = _columns(base, seed=99, rows=rows)
    score_N, label_N, own = columns["production_click"], columns["label_click"], arrange(columns["user"])
    numbers = (
        metric(*args).value_G[0]
        for metric, args in ((ratio, (score_N, label_N, own)), (normalised_loss, ("binary", score_N, label_N, own)))
    )
    return {"click": Recorded(**dict(zip(("ratio", "ne"), map(float, numbers), strict=True)), base_rate=float(label_N.mean()), n=rows)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("base", [0.005, 0.02, 0.07, 0.15])
def test_labels_flipped_in_the_evaluation_only_hold(policy, no_rules, table, base, seed):
    verdict = judge(table(_columns(base, seed, flipped=FLIPS)), policy(), no_rules, record=_record(base))
    assert verdict.verdict == "HOLD" and verdict.failed == []
    assert "label_sanity" in {check.name for check in verdict.checks if check.outcome == "hold"}
    assert "look at the data" in verdict.reason


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("base", [0.005, 0.02, 0.07, 0.15])
def test_labels_flipped_in_the_training_only_reject(policy, no_rules, table, base, seed):
    verdict = judge(table(_columns(base, seed, learned=FLIPS)), policy(), no_rules, record=_record(base))
    assert verdict.verdict == "REJECT" and "calibration/click/all" in verdict.failed


@pytest.mark.parametrize("base", [0.005, 0.07, 0.3])
def test_sound_labels_promote(policy, no_rules, table, base):
    for seed in range(3):
        verdict = judge(table(_columns(base, seed)), policy(), no_rules, record=_record(base))
        assert verdict.verdict == "PROMOTE", verdict.reason


def test_frequent_actions_show_flips_in_their_loss(policy, no_rules, table):
    verdict = judge(table(_columns(0.3, rows=300_000, flipped=0.03)), policy(), no_rules, record=_record(0.3, rows=300_000))
    held = next(check for check in verdict.checks if check.name == "label_sanity")
    assert verdict.verdict == "HOLD" and held.outcome == "hold"


@pytest.mark.parametrize("moved", [1.3, 0.75])
def test_flipped_labels_excuse_no_challenger_that_moved(policy, no_rules, table, moved):
    verdict = judge(table(_columns(flipped=FLIPS, moved=moved)), policy(), no_rules, record=_record())
    assert verdict.verdict == "REJECT"


def test_a_small_move_is_held_and_not_rejected_only_where_production_is_off_as_well(policy, no_rules, table):
    """Three per cent away from production: tolerated against sound labels, blamed against flipped ones unless the record is known."""
    columns = _columns(rows=100_000, flipped=FLIPS, moved=0.97)
    blamed = judge(table(columns), policy(), no_rules)
    assert blamed.verdict == "REJECT" and "calibration/click/all" in blamed.failed
    held = judge(table(columns), policy(), no_rules, record=_record())
    assert held.verdict == "HOLD"
    check = next(c for c in held.checks if c.path == "calibration/click/all")
    assert check.outcome == "hold" and "stayed with it" in check.sentence


@pytest.mark.parametrize(("moved", "worse", "outcome"), [(1.0, False, "hold"), (1.3, False, "fail"), (1.0, True, "fail")])
def test_only_a_challenger_that_stayed_and_is_no_worse_is_excused(policy, table, moved, worse, outcome):
    held = Check(name="label_sanity", family="data", action="click", outcome="hold", sentence="moved")
    failed = [
        Check(name="calibration", family="calibration", action="click", slice=place, outcome="fail", sentence="")
        for place in ("all", "country=3")
    ]
    worse_check = [Check(name="ne", family="loss", action="click", outcome="fail" if worse else "pass", sentence="")]
    tempered = temper([held, *failed, *worse_check], prepare(table(_columns(moved=moved)), policy()), policy())
    assert [check.outcome for check in tempered if check.name == "calibration"] == [outcome, outcome]


def test_flipped_labels_are_not_calibrated_to(policy, no_rules, table):
    verdict, repair = judge_and_repair(table(_columns(flipped=FLIPS)), policy(repair=["calibrate", "map"]), no_rules, record=_record())
    assert verdict.verdict == "HOLD" and repair is None


def test_a_small_record_counts_for_less(policy, no_rules, table):
    recorded = _record()["click"]
    uncertain = {"click": Recorded(ratio=recorded.ratio, n=200)}
    for known, outcome in ((uncertain, "pass"), ({"click": Recorded(ratio=recorded.ratio, n=30_000)}, "hold")):
        checks = judge(table(_columns(flipped=FLIPS)), policy(slices=[]), no_rules, record=known).checks
        assert next(c for c in checks if c.name == "label_sanity").outcome == outcome


def test_without_a_record_the_verdict_says_what_it_lacks(policy, no_rules, table):
    for record, words in ((None, "not at hand"), ({"like": Recorded(ratio=1.0)}, "says nothing of click")):
        check = next(c for c in judge(table(_columns()), policy(), no_rules, record=record).checks if c.name == "label_sanity")
        assert check.outcome == "not_applicable" and words in check.sentence


def test_a_record_is_read_from_any_of_its_forms(tmp_path):
    plain = {"click": {"ratio": 1.01, "ne": 0.8, "base_rate": 0.07, "n": 1000}}
    (tmp_path / "small.json").write_text(json.dumps(plain))
    evaluated = {"challenger": {"click": {"ratio": 1.01, "ne": 0.8, "n": 1000, "positives": 70, "slices": {}}}, "production": {}}
    (tmp_path / "eval.json").write_text(json.dumps(evaluated))
    assert read_record(tmp_path / "small.json") == read_record(tmp_path / "eval.json") == read_record(tmp_path)
    repaired = {"repair": {"status": "applied", "actions": {"click": {"after": {**plain["click"], "ratio": 1.2}}}}}
    (tmp_path / "verdict.json").write_text(json.dumps(repaired))
    assert read_record(tmp_path)["click"].ratio == 1.2, "a repaired release is served repaired"


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"click": 3}', '{"click": {"ratio": "high"}}', '{"click": {"n": 5}}', '{"click": {"ratio": -1}}']
)
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match="no record of production"):
        read_record(tmp_path / "record.json")
    with pytest.raises(DataError, match="no record of production"):
        read_record(tmp_path / "absent.json")
