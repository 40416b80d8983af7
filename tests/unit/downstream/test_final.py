"""The final model that is released with the embeddings: the judged one, byte for byte, and never one of another space."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.downstream.test_replay import moved, rotation
from trainer.config import DownstreamConfig
from trainer.downstream import Choice, Fitted, choose_final, final_scores, first_final, lift, read_final, write_final
from trainer.errors import CheckpointError, ConfigError
from trainer.gate.fitting import fit_map
from trainer.metrics import arrange, auc
from trainer.schema.downstream import FINAL_FILE
from trainer.schema.ids import hash_ids
from trainer.schema.repair import LOGIT, from_scale, to_scale

PLAIN, EXPORTED = ["feature_plain", "feature_tab", "item"], ["dot", "user_vector", "item_vector"]


def days(table: pa.Table) -> pa.Table:
    return table.append_column("day", pa.array([f"2026-03-0{1 + index % 3}" for index in range(table.num_rows)]))


def train(folder: Path, earlier: pa.Table, judged: pa.Table, space: str, config: DownstreamConfig, **settings) -> tuple[Fitted, float]:
    """Saves the judged final model; returns it and the AUC that it was judged by."""
    kept: list[Fitted] = []
    report = lift(judged, "click", PLAIN, EXPORTED, config, seed=0, earlier=earlier, keep=kept.append)
    write_final(folder, kept[0], library=config.library, objective=config.objective, action="click", feature_space=space)
    return kept[0], report.arms["with"].auc.value


def severities(choice: Choice) -> dict[str, set[str]]:
    """Severities of the checks, by the model that they are about."""
    kinds = {check.name.split("_")[0] for check in choice.checks}
    return {kind: {check.severity for check in choice.checks if check.name.startswith(kind)} for kind in kinds}


@pytest.fixture(scope="module")
def judged(log) -> pa.Table:
    return log(rows=10_000, strength=4.0, seed=0)


@pytest.fixture(scope="module")
def live(log, judged, tmp_path_factory) -> Path:
    """A live final model in the space `old`."""
    folder = tmp_path_factory.mktemp("final") / "live"
    train(folder, days(judged), judged, "old", DownstreamConfig(trees=40, leaves=15, learning_rate=0.1, ablation=False))
    return folder


@pytest.fixture
def choose(live: Path, judged: pa.Table, tmp_path: Path):
    return partial(choose_final, tmp_path / "out", live, before=judged, action="click", live_space="old", reason="no earlier days")


@pytest.mark.parametrize("library", ["lightgbm", "catboost"])
def test_the_saved_model_is_the_judged_one(log, tmp_path: Path, library: str):
    pytest.importorskip(library)
    config = DownstreamConfig(library=library, trees=80, leaves=8, learning_rate=0.5, ablation=False)  # so that boosting stops early
    judged = log(rows=3000, seed=1)
    fitted, judged_auc = train(tmp_path / "final", days(log(rows=4000, seed=2)), judged, "a", config)
    rows = judged.set_column(judged.schema.get_field_index("feature_tab"), "feature_tab", pa.array(["tab0", "tab2", "new"] * 1000))
    rows = rows.set_column(rows.schema.get_field_index("item"), "item", pa.array([*range(60)] * 50, pa.int64()))
    for table in (judged, rows):
        expected_N = fitted.model.predict(fitted.encoder.encode(table))
        assert np.array_equal(final_scores(tmp_path / "final", [table])[0], expected_N)
    assert len(np.unique(expected_N)) > 100
    score_N = final_scores(tmp_path / "final", [judged])[0]
    again = auc(score_N, judged["label_click"].to_numpy().astype(float), arrange(hash_ids(judged["user"])))
    assert again.value_G[0] == judged_auc, "what is saved is what the report judged"
    about = read_final(tmp_path / "final")
    assert (about.library, about.action, about.feature_space) == (library, "click", "a")
    assert about.days == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert about.columns["feature_tab"] == about.columns["item"] == "categorical"
    assert about.categories["item"].type == "int64"


def test_without_earlier_days_there_is_no_judged_model_to_keep(log, config):
    kept: list[Fitted] = []
    assert lift(log(rows=3000), "click", PLAIN, EXPORTED, config, seed=0, keep=kept.append).status == "ok"
    assert lift(log(rows=300), "click", PLAIN, EXPORTED, config, seed=0, earlier=log(rows=900), keep=kept.append).status == "not_testable"
    assert not kept


@pytest.mark.parametrize("damage", ["no json", "half a json", "a list", "version", "library", "kind", "categories", "model", "no model"])
def test_a_damaged_or_foreign_model_is_one_error(live: Path, judged: pa.Table, tmp_path: Path, damage: str):
    folder = tmp_path / "damaged"
    shutil.copytree(live, folder)
    path, model = folder / FINAL_FILE, folder / "model.txt"
    about = json.loads(path.read_text())
    edits = {
        "version": {"version": 99}, "library": {"library": "../../elsewhere"}, "kind": {"columns": {**about["columns"], "dot": "rank"}},
        "categories": {"categories": {}}, "a list": {"columns": ["dot"]},
    }  # fmt: skip
    if damage in edits:
        path.write_text(json.dumps({**about, **edits[damage]}))
    elif damage == "no json":
        path.unlink()
    elif damage == "half a json":
        path.write_text(path.read_text()[:200])
    elif damage == "model":
        model.write_text(model.read_text().replace("learning_rate", "learning_rite", 1) + " ")
    else:
        model.unlink()
    with pytest.raises(CheckpointError, match="not a whole final model"):
        final_scores(folder, [judged])


def test_vectors_of_another_width_and_absent_columns_are_refused(live: Path, judged: pa.Table):
    with pytest.raises(ConfigError, match="feature_tab"):
        final_scores(live, [judged.drop_columns(["feature_tab"])])
    index = judged.schema.get_field_index("user_vector")
    narrow = judged.set_column(index, "user_vector", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(30_000, np.float32)), 3))
    with pytest.raises(ConfigError, match="user_vector_e003"):
        final_scores(live, [narrow])


def test_in_the_same_space_the_live_model_is_replayed_and_stays(choose, live: Path, judged: pa.Table, tmp_path: Path):
    same = choose(table=judged, space="old")
    assert [(check.name, check.outcome, check.severity, check.estimate) for check in same.checks] == [
        (name, "pass", "block", 0.0) for name in ("replay_mean", "replay_ne", "replay_auc")
    ]
    assert "stays" in same.sentence and "no earlier days" in same.sentence
    assert read_final(tmp_path / "out") == read_final(live) and same.sha256 == read_final(live).sha256
    hurt = choose(table=moved(judged, rotation), space="old")
    assert {"replay_ne", "replay_auc"} <= {check.name for check in hurt.checks if check.outcome == "fail"}


def test_in_the_same_space_a_retrained_model_goes_out_only_if_it_is_as_good(choose, live: Path, log, judged, config, tmp_path: Path):
    shutil.copytree(live, tmp_path / "out")
    good = choose(table=judged, space="old")
    assert severities(good) == {"joint": {"block"}, "replay": {"info"}}
    assert "trained in this run" in good.sentence
    shutil.rmtree(tmp_path / "out")
    noise = moved(days(judged), lambda x: np.random.default_rng(0).normal(size=x.shape))
    noise = noise.set_column(noise.schema.get_field_index("dot"), "dot", pa.array(np.zeros(10_000, np.float32)))
    train(tmp_path / "out", noise, judged, "old", config)
    kept = choose(table=judged, space="old")
    assert "not shown to be as good" in kept.sentence
    assert kept.sha256 == read_final(live).sha256 == read_final(tmp_path / "out").sha256
    assert severities(kept) == {"joint": {"info"}, "replay": {"block"}}
    assert not [check.name for check in kept.checks if check.outcome == "fail" and check.severity == "block"]


def test_what_goes_out_in_the_same_space_is_what_is_judged(choose, live: Path, judged: pa.Table, tmp_path: Path):
    """The replay of a live model that nobody will serve any more fails; the retrained one, which goes out, is as good as the live one."""
    turned = moved(judged, rotation)
    train(tmp_path / "out", days(turned), turned, "old", DownstreamConfig(trees=80, leaves=31, learning_rate=0.1, ablation=False))
    ours = read_final(tmp_path / "out")
    choice = choose(table=turned, space="old")
    found = {check.name: (check.outcome, check.severity) for check in choice.checks}
    assert found["replay_auc"] == found["replay_ne"] == ("fail", "info")
    assert [found[f"joint_{name}"] for name in ("mean", "ne", "auc")] == [("pass", "block")] * 3
    assert choice.sha256 == ours.sha256 == read_final(tmp_path / "out").sha256


def test_in_a_new_space_nothing_goes_out_without_a_retrained_model(choose, judged: pa.Table, tmp_path: Path):
    choice = choose(table=moved(judged, rotation), space="new")
    assert [(check.path, check.outcome, check.severity) for check in choice.checks] == [("joint_release/click/all", "fail", "block")]
    for words in ("from old to new", "no earlier days", "export.as_of", "fit.day_weights=true", "keep the space"):
        assert words in choice.checks[0].sentence
    assert choice.sha256 is None and not (tmp_path / "out").exists()


def test_in_a_new_space_each_model_is_judged_on_its_own_features(choose, live: Path, judged: pa.Table, tmp_path: Path):
    config, rotated = DownstreamConfig(trees=40, leaves=15, learning_rate=0.1, ablation=False), moved(judged, rotation)
    train(tmp_path / "out", days(rotated), rotated, "new", config)
    choice = choose(table=rotated, space="new")
    assert {check.name: (check.outcome, check.severity) for check in choice.checks if check.name != "joint_ne"} == {
        "joint_mean": ("pass", "block"), "joint_auc": ("pass", "block"),
    }  # fmt: skip
    assert choice.sha256 == read_final(tmp_path / "out").sha256 != read_final(live).sha256
    assert "from old to new" in choice.sentence
    noise = moved(judged, lambda x: np.random.default_rng(0).normal(size=x.shape))
    hurt = {check.name: check.outcome for check in choose(table=noise, space="new").checks}
    assert hurt["joint_auc"] == hurt["joint_ne"] == "fail"


def test_a_live_model_of_other_embeddings_or_of_another_action_is_refused(choose, judged: pa.Table):
    with pytest.raises(CheckpointError, match="belongs to other embeddings"):
        choose(table=judged, space="old", live_space="older")
    with pytest.raises(ConfigError, match="another action"):
        choose(table=judged, space="old", action="like")


def test_the_first_final_model_and_none(live: Path, tmp_path: Path):
    assert first_final(live, "").sha256 == read_final(live).sha256
    none = first_final(tmp_path / "nothing", "no earlier days")
    assert none.sha256 is None and "no earlier days" in none.sentence and not none.checks


def test_no_ripe_row_is_not_testable(choose, judged: pa.Table):
    index = judged.schema.get_field_index("label_click")
    unripe = judged.set_column(index, "label_click", pa.nulls(judged.num_rows, pa.float32()))
    choice = choose(table=unripe, before=unripe, space="old")
    assert {check.outcome for check in choice.checks} == {"not_testable"}


def test_scores_on_another_scale_fail_the_replay_that_their_map_passes(log, tmp_path: Path):
    """Why scores are judged and repaired before the live model is replayed on them: raw, the gate would see harm that nobody gets."""

    def scored(table: pa.Table, score_N: np.ndarray) -> pa.Table:
        return table.append_column("score_click", pa.array(score_N.astype(np.float32)))

    config = DownstreamConfig(trees=40, leaves=15, learning_rate=0.1, ablation=False)
    rows = log(rows=10_000, strength=4.0, seed=0)
    old_N = from_scale(rows["dot"].to_numpy() - 1.0, LOGIT)
    before, kept = scored(rows, old_N), []
    lift(before, "click", PLAIN, ["score_click"], config, seed=0, earlier=days(before), keep=kept.append)
    write_final(tmp_path / "live", kept[0], library="lightgbm", objective="binary", action="click", feature_space="s")
    raw_N = from_scale(to_scale(old_N, LOGIT) + 0.5, LOGIT)
    curve = fit_map(raw_N[::2], old_N[::2], np.ones(5000), LOGIT, [(0.1, None)])
    chosen = partial(
        choose_final, tmp_path / "out", tmp_path / "live", before=before, action="click", reason="none", space="s", live_space="s"
    )
    raw, delivered = ({check.name: check for check in chosen(table=scored(rows, score_N)).checks} for score_N in (raw_N, curve(raw_N)))
    assert (raw["replay_mean"].outcome, raw["replay_ne"].outcome) == ("fail", "fail")
    assert {check.outcome for check in delivered.values()} == {"pass"}
    assert max(abs(check.estimate) for check in delivered.values()) < 1e-3
