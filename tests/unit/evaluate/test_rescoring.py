"""Logged scores against the bundle's: equal where nothing is skewed, and the skewed feature named where one is."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import EvaluationConfig
from trainer.errors import CheckpointError
from trainer.evaluate import Rescoring, rescoring_checks
from trainer.evaluate.scorer import ScoredPartition, sealed_repair
from trainer.schema.logs import ActionSpec, LogSpec, TimeSpec
from trainer.schema.release import RECORD
from trainer.schema.repair import FILE, from_scale

LIVE = "2026-03-05-abcdef0123"
DAY_MS = 86_400_000
START_MS = 20_500 * DAY_MS
SPEC = LogSpec(
    name="log", root="/nowhere", user="user", item="item", event_time=TimeSpec(column="t", unit="ms"),
    actions={"click": ActionSpec(expression="click", kind="binary"), "watch": ActionSpec(expression="watch", kind="duration")},
    logged_scores={"click": "score_click", "watch": "score_watch"}, serving_version="version",
)  # fmt: skip
CONFIG = EvaluationConfig()


class Model:
    """Depends on the features alone; a missing duration counts as its mean."""

    def score(self, examples, tail, known_until_ms):
        del tail, known_until_ms
        duration_N, rate_N = (np.nan_to_num(examples[f"feature_{name}"].to_numpy().astype(float), nan=3.0) for name in ("duration", "rate"))
        tab_N = np.array([{"a": 0.3, "b": -0.2}.get(tab, 0.0) for tab in examples["feature_tab"].to_pylist()])
        z_N = -2 + 0.6 * (duration_N - 3) + 0.4 * (rate_N - 3) + tab_N
        return ScoredPartition({"click": from_scale(z_N, "logit"), "watch": np.exp(z_N + 3)}, np.zeros(0), np.zeros((0, 0)))


def _examples(rows=2_000, seed=0, version=LIVE):
    rng = np.random.default_rng(seed)
    columns = {
        "user": rng.integers(0, 50, rows), "item": rng.integers(0, 90, rows), "request": rng.integers(0, rows // 10, rows),
        "request_time": START_MS + rng.integers(0, 2 * DAY_MS, rows), "feature_duration": rng.normal(3, 1, rows),
        "feature_rate": rng.normal(3, 1, rows), "feature_tab": pa.array([None if x == 2 else "ab"[x] for x in rng.integers(0, 3, rows)]),
        "carried_serving_version": [version] * rows,
    }  # fmt: skip
    return pa.table(columns)


def _logged(examples, served=None):
    """Examples with the scores that serving logged when it saw `served`; float32, as logs are."""
    scores = Model().score(examples if served is None else served, None, 0).score_N
    for name, score_N in scores.items():
        examples = examples.append_column(f"logged_{name}", pa.array(score_N.astype(np.float32).astype(np.float64)))
    return examples


def _compare(*partitions, version=LIVE, spec=SPEC):
    rescoring = Rescoring(spec, CONFIG, version, 0)
    for examples in partitions:
        rescoring.add(examples, None, Model().score(examples, None, 0).score_N)
    report = rescoring.report(Model())
    return report, rescoring_checks(report, CONFIG)


def _with(examples, feature, values):
    return examples.set_column(examples.column_names.index(feature), feature, pa.array(values))


def test_the_scores_that_were_served_are_repeated():
    report, checks = _compare(_logged(_examples()), _logged(_examples(seed=1)))
    assert report["rows"] == 4_000 and report["suspects"] == []
    assert {check.outcome for check in checks} == {"pass"} and {check.action for check in checks} == {"click", "watch"}
    assert all(entry["within"] == 1.0 and entry["rank_agreement"] == 1.0 for entry in report["actions"].values())
    assert report["actions"]["click"]["max_abs"] < 1e-6


def test_a_feature_that_serving_did_not_have_is_named():
    examples = _examples()
    absent = _with(examples, "feature_duration", pa.nulls(len(examples), pa.float64()))
    report, checks = _compare(_logged(examples, served=absent))
    assert {check.outcome for check in checks} == {"hold"} and {check.severity for check in checks} == {"block"}
    assert report["suspects"][0]["feature"] == "duration" and report["suspects"][0]["absent"] == 1.0
    assert "duration (absent when it was served)" in checks[0].sentence and "feature skew" in checks[0].sentence


@pytest.mark.parametrize("feature", ["duration", "rate"])
def test_a_feature_in_another_unit_is_named(feature):
    examples = _examples()
    skewed = _with(examples, f"feature_{feature}", 3 + 1.5 * (examples[f"feature_{feature}"].to_numpy() - 3))
    report, checks = _compare(_logged(examples, served=skewed))
    assert checks[0].outcome == "hold" and report["suspects"][0]["feature"] == feature
    assert report["suspects"][0]["explained"] > 0.95 and report["suspects"][0]["absent"] < 0.01


def test_the_days_that_are_off_are_told():
    examples = _examples()
    late_N = examples["request_time"].to_numpy() >= START_MS + DAY_MS
    duration_N = examples["feature_duration"].to_numpy()
    report, checks = _compare(_logged(examples, served=_with(examples, "feature_duration", np.where(late_N, 0.0, duration_N))))
    first, second = sorted(report["days"])
    assert report["days"][first] == 0 and report["days"][second] > 0.95
    assert second in checks[0].sentence


def test_a_few_odd_rows_are_no_skew():
    examples = _examples()
    duration_N = examples["feature_duration"].to_numpy().copy()
    duration_N[0] += 5
    report, checks = _compare(_logged(examples, served=_with(examples, "feature_duration", duration_N)))
    assert report["actions"]["click"]["max_abs"] > 0.01 and {check.outcome for check in checks} == {"pass"}


def test_rare_scores_are_compared_by_their_order():
    """Probabilities below the tolerance are all within it; that they are shuffled shows in their order."""
    examples = _examples()
    score_N = np.random.default_rng(0).random(2_000) * 1e-5
    rescoring = Rescoring(SPEC, CONFIG, LIVE, 0)
    logged = examples.append_column("logged_click", pa.array(score_N[::-1].copy()))
    rescoring.add(logged, None, {"click": score_N})
    entry = rescoring.report(Model())["actions"]["click"]
    assert entry["within"] == 1.0 and entry["rank_agreement"] < 0.7 and rescoring.mismatch(entry)


def test_only_rows_of_the_live_version_count():
    skewed = _with(_examples(), "feature_duration", np.zeros(2_000))
    other = _logged(_examples(version="older"), served=skewed)
    report, checks = _compare(_logged(_examples(seed=1)), other)
    assert report["rows"] == 2_000 and {check.outcome for check in checks} == {"pass"}
    report, [check] = _compare(other)
    assert check.outcome == "not_applicable" and "evaluation.served_as" in check.sentence


def test_a_log_that_cannot_tell_says_so():
    plain = _examples().drop_columns("carried_serving_version")
    for spec, words in ((replace(SPEC, logged_scores={}), "data.logged_scores"), (replace(SPEC, serving_version=None), "serving_version")):
        _, [check] = _compare(_logged(plain), spec=spec)
        assert check.outcome == "not_applicable" and words in check.sentence
    assert rescoring_checks(None, CONFIG) == []


def test_a_row_without_a_logged_score_is_left_out():
    examples = _logged(_examples())
    holes = examples["logged_click"].to_numpy().copy()
    holes[::2] = np.nan
    report, checks = _compare(_with(examples, "logged_click", pa.array(holes, from_pandas=True)))
    assert report["actions"]["click"]["n"] == 1_000 and report["actions"]["watch"]["n"] == 2_000
    assert {check.outcome for check in checks} == {"pass"}


def test_a_repair_belongs_to_a_sealed_bundle_only(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / FILE).write_text('{"rows": 5}')
    assert sealed_repair(tmp_path / "bundle") is None, "a run's folder is no release"
    (tmp_path / RECORD).write_text("{}")
    assert sealed_repair(tmp_path / "bundle").rows == 5
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError):
        sealed_repair(tmp_path / "bundle")
