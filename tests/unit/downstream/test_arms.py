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

    def fit(self, features, label_N, weight_N, stop_N=None, slate_N=None):
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
    first, second = (lift(t, "click", PLAIN, ["dot"], config, 0, booster=Recorder([])) for t in (table, shuffled))
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
    assert lift(table, "click", PLAIN, ["dot"], config, 0, booster=Recorder([])).rows == 3000
    recorder = Recorder([])
    small = dataclasses.replace(config, max_rows=1000)
    timed = table.append_column("clock", table["request_time"].cast(pa.float64()))
    assert lift(timed, "click", ["clock"], ["dot"], small, 0, booster=recorder).rows == 1000
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
    def absent(name: str):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("trainer.downstream.booster.importlib.import_module", absent)
    with pytest.raises(ConfigError, match=r"rewarm\[downstream\]"):
        lift(log(), "click", PLAIN, ["dot"], config, seed=0)


def test_earlier_days_train_and_the_holdout_judges(log, config):
    holdout = log(rows=4000, seed=1)
    day = dataclasses.replace(config, max_rows=3000)
    earlier = log(rows=5000, seed=1).append_column("clock", pa.array(np.arange(5000.0)))
    holdout = holdout.append_column("clock", pa.array(np.arange(4000.0) + 10_000))
    recorder = Recorder([])
    report = lift(holdout, "click", ["clock"], ["dot"], day, 0, earlier=earlier, booster=recorder)
    assert report.trained_on.startswith("earlier days")
    assert report.rows == 3000
    for call in recorder.seen:
        assert call["x"].values_NF[:, 0].max() < 10_000 <= call["judged"].values_NF[:, 0].min()
        assert len(call["x"].values_NF) == 3000, "the newest rows of the earlier days"
    with pytest.raises(ConfigError, match="dot"):
        lift(holdout, "click", PLAIN, ["dot"], config, 0, earlier=earlier.drop_columns("dot"))


def test_ablation_tells_scalars_from_vectors(log, config):
    report = lift(log(strength=3.0), "click", PLAIN, ["dot", "noise", "user_vector", "item_vector"], config, seed=0)
    assert set(report.arms) == {"without", "with", "scalars", "vectors"}
    assert report.ablation["scalars"]["ne"].value < report.ablation["vectors"]["ne"].value < 0, "trees multiply badly"
    quick = lift(log(), "click", PLAIN, ["dot", "user_vector"], dataclasses.replace(config, ablation=False), seed=0)
    assert set(quick.arms) == {"without", "with"}
    assert quick.ablation == {}


def test_calibration_is_told_slice_by_slice(log, config):
    report = lift(log(), "click", ["feature_plain"], ["dot"], config, seed=0, slices=["feature_tab"])
    assert set(report.slices) == {f"feature_tab=tab{tab}" for tab in range(3)}
    entry = report.slices["feature_tab=tab1"]["with"]
    assert entry.value < 0.9, "the feature that raises tab 1 was left out"
    assert entry.low < entry.value < entry.high


@pytest.mark.parametrize("library", ["lightgbm", "catboost"])
@pytest.mark.parametrize("requests", [True, False])
def test_ranking_orders_slates(log, config, library: str, requests: bool):
    pytest.importorskip(library)
    table = log(rows=5000, users=300, strength=4.0)
    day = pa.array(np.arange(5000) * 100_000)
    table = table.set_column(table.schema.get_field_index("request_time"), "request_time", day)
    if requests:
        table = table.append_column("request", pa.array([f"{user}/{row // 2500}" for row, user in enumerate(table["user"].to_pylist())]))
    ranking = dataclasses.replace(config, objective="ranking", library=library, ablation=False)
    report = lift(table, "click", PLAIN, ["dot"], ranking, seed=0)
    assert (report.objective, report.library) == ("ranking", library)
    assert report.arms["with"].ne is None
    assert report.lift["ndcg"].low > 0
    with pytest.raises(ConfigError, match="slates cannot be told"):
        lift(table.select([n for n in table.column_names if n not in ("request", "request_time")]), "click", PLAIN, ["dot"], ranking, 0)


def test_catboost_learns_what_lightgbm_learns(log, config):
    pytest.importorskip("catboost")
    cat = dataclasses.replace(config, library="catboost", ablation=False)
    report = lift(log(), "click", PLAIN, ["dot", "user_vector"], cat, seed=0)
    other = lift(log(), "click", PLAIN, ["dot", "user_vector"], dataclasses.replace(cat, library="lightgbm"), seed=0)
    assert report.lift["ne"].high < 0
    assert report.arms["with"].auc.value == pytest.approx(other.arms["with"].auc.value, abs=0.03)
    assert next(iter(report.importance)) == "dot"
    assert set(report.importance) == {"dot", "feature_plain", "feature_tab", *(f"user_vector_e{d:03d}" for d in range(4))}
    assert lift(log(), "click", PLAIN, ["dot", "user_vector"], cat, seed=0) == report, "same inputs, same report"
    weighted = log().append_column("weight", pa.array(np.arange(6000) % 2 + 1.0))
    with pytest.raises(ConfigError, match="without weights"):
        lift(weighted, "click", PLAIN, ["dot"], dataclasses.replace(cat, objective="ranking"), seed=0)
