from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa
import pytest

from trainer.downstream import Encoder, replay
from trainer.errors import CheckpointError, ConfigError, DataError

COLUMNS = ["feature_plain", "user_vector", "item_vector"]


@pytest.fixture(scope="module")
def model_text(log) -> str:
    """A live model, trained on raw coordinates of the old embeddings."""
    table = log(rows=10_000, strength=4.0)
    features = Encoder.fit(table, COLUMNS).encode(table)
    data = lightgbm.Dataset(features.values_NF, label=table["label_click"].to_numpy(), feature_name=features.names)
    return lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, num_boost_round=60).model_to_string()


@pytest.fixture
def live(model_text: str, tmp_path: Path) -> Path:
    (tmp_path / "live.txt").write_text(model_text)
    return tmp_path / "live.txt"


def moved(table: pa.Table, change) -> pa.Table:
    for name in ("user_vector", "item_vector"):
        index = table.schema.get_field_index(name)
        value_ND = change(np.stack(table[name].to_numpy())).astype(np.float32)
        table = table.set_column(index, name, pa.FixedSizeListArray.from_arrays(pa.array(value_ND.reshape(-1)), 4))
    return table


def rotation(x_ND: np.ndarray) -> np.ndarray:
    return x_ND @ np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda x: x, set()), (lambda x: x + 1e-6, set()), (rotation, {"replay_auc", "replay_ne"}),
        (lambda x: -x * [1, -1, -1, -1], {"replay_auc", "replay_ne"}), (lambda x: x + 1.0, {"replay_auc", "replay_ne", "replay_mean"}),
    ],
)  # fmt: skip
def test_a_frozen_model_finds_moved_embeddings(log, live: Path, change, failed: set[str]):
    table = log(rows=10_000, strength=4.0)
    checks = replay(live, moved(table, change), COLUMNS, before=table, action="click")
    assert {check.family for check in checks} == {"downstream"}
    found = {check.name for check in checks if check.outcome == "fail"}
    assert failed <= found
    if not failed:
        assert {check.outcome for check in checks} == {"pass"}


def test_identical_features_differ_by_exactly_nothing_in_any_order_of_columns(log, live: Path):
    table = log(rows=2000)
    for columns in (COLUMNS, COLUMNS[::-1]):
        checks = replay(live, table, columns, before=table, action="click")
        assert [check.estimate for check in checks] == [0.0, 0.0, 0.0]


def test_feature_names_must_match(log, live: Path):
    table = log(rows=1000)
    with pytest.raises(ConfigError, match="item_vector_e000"):
        replay(live, table, COLUMNS[:2], before=table, action="click")
    with pytest.raises(ConfigError, match="no such feature"):
        replay(live, table, [*COLUMNS, "dot"], before=table, action="click")
    with pytest.raises(DataError, match="not a number"):
        replay(live, table, [*COLUMNS, "feature_tab"], before=table, action="click")
    with pytest.raises(DataError, match="same rows"):
        replay(live, table, COLUMNS, before=log(rows=1000, seed=2), action="click")


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "binary", "garbled"])
def test_a_damaged_model_is_refused_and_the_process_lives(log, live: Path, damage: str):
    text = live.read_text()
    if damage == "absent":
        live.unlink()
    else:
        content = {"empty": b"", "truncated": text[: len(text) // 2].encode(), "binary": b"\x80\x04pickle\xff"}
        live.write_bytes(content.get(damage, text.replace("num_leaves=", "mun_leaves=").encode()))
    table = log(rows=1000)
    with pytest.raises(CheckpointError):
        replay(live, table, COLUMNS, before=table, action="click")


def test_one_class_is_not_testable(log, live: Path):
    table = log(rows=1000)
    index = table.schema.get_field_index("label_click")
    table = table.set_column(index, "label_click", pa.array(np.zeros(1000, np.float32)))
    outcomes = {check.name: check.outcome for check in replay(live, table, COLUMNS, before=table, action="click")}
    assert outcomes["replay_auc"] == outcomes["replay_ne"] == "not_testable"
    assert outcomes["replay_mean"] == "pass"


def test_a_ranking_model_is_judged_by_its_order_only(log, tmp_path: Path):
    table = log(rows=8000, strength=4.0)
    features = Encoder.fit(table, COLUMNS).encode(table)
    data = lightgbm.Dataset(features.values_NF, label=table["label_click"].to_numpy(), group=[20] * 400, feature_name=features.names)
    model = lightgbm.train({"objective": "lambdarank", "verbosity": -1, "num_threads": 1}, data, num_boost_round=10)
    model.save_model(tmp_path / "rank.txt")
    unclocked = table.drop_columns(["request_time"])
    plain = replay(tmp_path / "rank.txt", unclocked, COLUMNS, before=unclocked, action="click")
    assert [(check.name, check.severity) for check in plain] == [("replay_auc", "block")]
    slates = table.append_column("request", pa.array(["one of each user"] * 8000))
    same = replay(tmp_path / "rank.txt", slates, COLUMNS, before=slates, action="click")
    assert [(check.name, check.severity, check.outcome, check.estimate) for check in same] == [
        ("replay_ndcg", "block", "pass", 0.0), ("replay_auc", "info", "pass", 0.0),
    ]  # fmt: skip
    hurt = replay(tmp_path / "rank.txt", moved(slates, rotation), COLUMNS, before=slates, action="click")
    assert hurt[0].outcome == "fail" and hurt[0].estimate > 0.005


def test_a_frozen_catboost_model_is_replayed_too(log, tmp_path: Path):
    catboost = pytest.importorskip("catboost")
    table = log(rows=6000, strength=4.0)
    features = Encoder.fit(table, COLUMNS).encode(table)
    pool = catboost.Pool(features.values_NF, label=table["label_click"].to_numpy(), feature_names=features.names)
    model = catboost.CatBoostClassifier(iterations=60, depth=5, thread_count=1, verbose=False, allow_writing_files=False).fit(pool)
    model.save_model(str(tmp_path / "live.cbm"))
    same = replay(tmp_path / "live.cbm", table, COLUMNS, before=table, action="click")
    assert {(check.name, check.outcome, check.estimate) for check in same} == {
        (n, "pass", 0.0) for n in ("replay_mean", "replay_ne", "replay_auc")
    }
    hurt = replay(tmp_path / "live.cbm", moved(table, rotation), COLUMNS, before=table, action="click")
    assert {"replay_auc", "replay_ne"} <= {check.name for check in hurt if check.outcome == "fail"}
    (tmp_path / "bad.cbm").write_bytes((tmp_path / "live.cbm").read_bytes()[:100])
    for path in (tmp_path / "bad.cbm", tmp_path / "absent.cbm"):
        with pytest.raises(CheckpointError):
            replay(path, table, COLUMNS, before=table, action="click")
