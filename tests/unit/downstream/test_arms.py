import builtins
import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from trainer.downstream import lift
from trainer.errors import ConfigError, DataError
from trainer.schema.ids import hash_ids

PLAIN = ["feature_plain", "feature_tab"]


def test_useful_embeddings_are_found_useful_and_noise_is_not(log, config):
    table = log()
    good = lift(table, "click", PLAIN, ["dot", "user_vector", "item_vector"], config, seed=0)
    assert good.status == "ok"
    assert good.lift["ne"].high < 0 < good.lift["auc"].low
    assert good.arms["with"].features == 11
    assert next(iter(good.importance)) == "dot"
    assert sum(good.importance.values()) == pytest.approx(1)
    for arm in good.arms.values():
        assert 0.85 < arm.ratio.value < 1.15
    noise = lift(table, "click", PLAIN, ["noise"], config, seed=0)
    assert noise.lift["auc"].low < 0.005
    assert noise.lift["ne"].high > -0.005


def test_differences_are_those_of_the_arms_and_the_report_is_plain_json(log, config):
    report = lift(log(), "click", PLAIN, ["dot"], config, seed=3)
    for metric in ("ne", "auc"):
        arms = {name: getattr(arm, metric) for name, arm in report.arms.items()}
        assert report.lift[metric].value == pytest.approx(arms["with"].value - arms["without"].value)
        paired = report.lift[metric].high - report.lift[metric].low
        assert paired < sum(arm.high - arm.low for arm in arms.values()), "pairing narrows the interval"
    assert json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))["lift"]["ne"]["value"] == report.lift["ne"].value
    assert lift(log(), "click", PLAIN, ["dot"], config, seed=3) == report, "same inputs, same report"


@dataclass
class Recorder:
    """A booster that remembers what it saw and predicts the mean."""

    seen: list

    def fit(self, features, label_N, weight_N, stop_N=None):
        call = {"x": features, "label": label_N, "weight": weight_N, "stop": stop_N, "judged": None}
        self.seen.append(call)

        class Mean:
            trees = 1

            def predict(self, judged):
                call["judged"] = judged
                return np.full(len(judged.values_NF), label_N.mean())

            def importance(self):
                return {}

        return Mean()


def test_no_user_is_judged_by_a_model_that_was_trained_on_him(log, config):
    table = log(rows=3000)
    code = dict(zip(sorted(set(table["user"].to_pylist())), range(10_000), strict=False))
    table = table.append_column("who", pa.array([float(code[user]) for user in table["user"].to_pylist()]))
    table = table.append_column("weight", pa.array(np.arange(3000) % 3 + 1.0))
    recorder = Recorder([])
    report = lift(table, "click", ["who"], ["dot"], config, seed=0, booster=recorder)
    assert len(recorder.seen) == 4
    judged = 0
    for call in recorder.seen:
        trained_on, judged_on = set(call["x"].values_NF[:, 0]), set(call["judged"].values_NF[:, 0])
        assert not trained_on & judged_on
        stopping = set(call["x"].values_NF[call["stop"], 0])
        assert stopping
        assert not stopping & set(call["x"].values_NF[~call["stop"], 0])
        assert set(call["weight"]) == {1.0, 2.0, 3.0}
        judged += len(call["judged"].values_NF)
    assert judged == 2 * report.rows == 6000
    assert np.array_equal(recorder.seen[0]["label"], recorder.seen[2]["label"]), "both arms have the same rows"


def test_halves_do_not_depend_on_the_order_of_rows(log, config):
    table = log(rows=2000)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(2000)))
    first, second = (lift(t, "click", PLAIN, ["dot"], config, 0, Recorder([])) for t in (table, shuffled))
    assert first.lift["ne"].value == pytest.approx(second.lift["ne"].value, abs=1e-12)
    assert first.arms["with"].ratio.low == pytest.approx(second.arms["with"].ratio.low, abs=1e-9)


def labelled(table: pa.Table, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index("label_click"), "label_click", values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.slice(0, 200), "200 rows"), (lambda t: t.slice(0, 0), "0 rows"),
        (lambda t: t.filter(pc.less(pa.array(hash_ids(t["user"])), pa.scalar(2**64 // 30, pa.uint64()))), "users"),
        (lambda t: labelled(t, pa.array(np.zeros(len(t), np.float32))), "0 positives"),
        (lambda t: labelled(t, pa.nulls(len(t), pa.float32())), "0 rows"),
    ],
)  # fmt: skip
def test_rows_that_cannot_tell_are_not_testable_with_the_reason(log, config, change, words, monkeypatch: pytest.MonkeyPatch):
    if words == "users":
        monkeypatch.setattr("trainer.downstream.arms.MIN_ROWS", 10)
    report = lift(change(log()), "click", PLAIN, ["dot"], config, seed=0)
    assert report.status == "not_testable"
    assert words in (report.reason or "")
    assert report.arms == {}


def test_only_ripe_labels_and_the_newest_rows_count(log, config):
    table = log()
    label = pa.array([None if row % 2 else value for row, value in enumerate(table["label_click"].to_pylist())], pa.float32())
    table = labelled(table, label)
    assert lift(table, "click", PLAIN, ["dot"], config, 0, Recorder([])).rows == 3000
    recorder = Recorder([])
    small = dataclasses.replace(config, max_rows=1000)
    timed = table.append_column("clock", table["request_time"].cast(pa.float64()))
    assert lift(timed, "click", ["clock"], ["dot"], small, 0, recorder).rows == 1000
    assert min(call["x"].values_NF[:, 0].min() for call in recorder.seen) == 4000
    with pytest.raises(ConfigError, match="newest rows"):
        lift(table.drop_columns("request_time"), "click", PLAIN, ["dot"], small, 0)


def test_wrong_input_is_refused(log, config):
    table = log()
    for features, embeddings in (([], ["dot"]), (PLAIN, []), (PLAIN, ["dto"]), (PLAIN, ["feature_tab"])):
        with pytest.raises(ConfigError):
            lift(table, "click", features, embeddings, config, seed=0)
    with pytest.raises(ConfigError, match="label_click"):
        lift(table, "clock", PLAIN, ["dot"], config, seed=0)
    with pytest.raises(ConfigError, match="user"):
        lift(table.drop_columns("user"), "click", PLAIN, ["dot"], config, seed=0)
    half = labelled(table, pa.array(np.full(len(table), 0.5)))
    with pytest.raises(DataError, match="not a label"):
        lift(half, "click", PLAIN, ["dot"], config, seed=0)
    with pytest.raises(DataError, match="weight"):
        lift(table.append_column("weight", pa.array(np.full(len(table), -1.0))), "click", PLAIN, ["dot"], config, seed=0)


def test_without_the_library_the_extra_is_named(log, config, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *rest, **more):
        if name == "lightgbm":
            raise ImportError("No module named 'lightgbm'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"rewarm\[downstream\]"):
        lift(log(), "click", PLAIN, ["dot"], config, seed=0)
