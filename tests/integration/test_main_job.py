"""The main job on a small simulated log: cold, warm and grown, judged twice, stopped and gone on with."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import configure
from trainer import stages
from trainer.checkpoint import read_bundle
from trainer.fit.learner import Optimizers
from trainer.pipeline import retrain, train
from trainer.release import Registry
from trainer.schema.predictions import CHALLENGER

pytestmark = pytest.mark.integration
FILES = (
    "config.yaml",
    "summary.json",
    "report.html",
    "scan.json",
    "quarantine/ledger.parquet",
    "predictions.parquet",
    "eval.json",
    "verdict.json",
)
METRICS = {"auc", "gauc", "ne", "log_loss", "ratio", "ece", "n", "positives"}


def arguments(simulated, folder, run, *overrides):
    return (
        f"data.root={simulated}",
        f"registry.root={folder}/registry",
        f"rebuild.root={folder}/examples",
        f"run_dir={folder}/{run}",
        *overrides,
    )


@pytest.fixture(scope="module")
def history(simulated, tmp_path_factory):
    """Two nights: a first model, then a challenger with another layer and wider feed-forward layers."""
    folder = tmp_path_factory.mktemp("history")
    first = retrain(configure(*arguments(simulated, folder, "first", "as_of=2026-03-06", "gate.first=promote")))
    grown = ("model.layers=2", "model.ffn_dim=48", "release.auto=false")
    second = retrain(configure(*arguments(simulated, folder, "second", "as_of=2026-03-07", *grown)))
    return folder, first, second


def test_the_first_model_is_promoted_into_an_empty_registry(history):
    folder, first, _ = history
    assert first.verdict == "PROMOTE", first.reason
    registry = Registry(folder / "registry")
    assert registry.aliases().production == first.release["version"]
    assert {path.name for path in registry.production_path().iterdir()} >= {"bundle", "embeddings", "verdict.json", "release.json"}


def test_a_run_leaves_the_files_and_keys_of_the_interface(history):
    folder, _, _second = history
    for name in (*FILES, "transfer.json"):
        assert (folder / "second" / name).exists(), name
    summary = json.loads((folder / "second" / "summary.json").read_text())
    assert set(summary) >= {
        "verdict",
        "as_of",
        "status",
        "stages",
        "data",
        "transfer",
        "production",
        "challenger",
        "baselines",
        "changes",
        "export",
        "downstream",
        "release",
        "versions",
        "cost",
    }
    assert set(summary["challenger"]["click"]) >= METRICS and set(summary["baselines"]["counting"]["click"]) >= METRICS
    assert {"read", "used", "quarantined"} <= set(summary["data"])
    assert all({"seconds", "rows", "status"} <= set(stage) for stage in summary["stages"].values())
    assert summary["as_of"] == "2026-03-07" and summary["verdict"] in ("PROMOTE", "HOLD", "REJECT")


def test_the_second_model_grows_exactly_from_the_first(history):
    folder, first, second = history
    transfer = json.loads((folder / "second" / "transfer.json").read_text())
    assert transfer["exact"] and transfer["parity"]["max_difference"] <= transfer["parity"]["bound"]
    fates = {fate["fate"] for fate in transfer["fates"]}
    assert {"inserted as identity", "grown", "row-remapped"} <= fates and "refused" not in fates
    assert transfer["vocabularies"]["item"]["new"] > 0 and transfer["vocabularies"]["item"]["dropped"] == 0
    assert second.data["train"] == ["2026-03-06"], "only the day that production had not seen"
    assert second.versions["production"] == first.release["version"]


def test_every_score_is_a_probability_or_an_expectation(history):
    folder, *_ = history
    table = pq.read_table(folder / "second" / "predictions.parquet")
    for name in table.column_names:
        if name.startswith(CHALLENGER):
            score_N = table[name].to_numpy()
            assert np.isfinite(score_N).all() and (score_N >= 0).all()
            assert name.endswith("watch_time") or (score_N <= 1).all()


def test_the_same_question_is_not_judged_twice(history, simulated):
    folder, *_ = history
    before = Registry(folder / "registry").aliases()
    again = retrain(configure(*arguments(simulated, folder, "again", "as_of=2026-03-06", "gate.first=promote")))
    assert again.status == "nothing to do" and again.verdict is None
    assert Registry(folder / "registry").aliases() == before


def test_bundles_know_what_they_have_seen(history):
    folder, *_ = history
    first = read_bundle(Registry(folder / "registry").production_path() / "bundle").manifest
    assert sorted(first.trained) == ["2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05"]
    second = read_bundle(folder / "second" / "challenger").manifest
    assert sorted(second.trained) == [*sorted(first.trained), "2026-03-06"]
    assert second.space_id == first.space_id and second.steps > first.steps


@pytest.mark.parametrize("stage", ["rebuild", "train", "evaluate", "export", "gate"])
def test_a_run_stopped_before_any_stage_goes_on_from_its_artefacts(history, simulated, tmp_path, stage, monkeypatch):
    done = history[0]
    for name in ("registry", "examples"):
        shutil.copytree(done / name, tmp_path / name)
    config = configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-07", "release.auto=false"))
    original = getattr(stages, stage)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, stage, stopped)
    with pytest.raises(KeyboardInterrupt):
        retrain(config)
    monkeypatch.setattr(stages, stage, original)
    before = Registry(tmp_path / "registry").aliases()
    summary = retrain(config)
    kept = [name for name, record in summary.stages.items() if record.status == "kept"]
    order = ["scan", "train", "evaluate", "export"]
    reached = {"rebuild": 1, "train": 1, "evaluate": 2, "export": 3, "gate": 4}[stage]
    assert kept == order[:reached]
    assert Registry(tmp_path / "registry").aliases() == before


def test_train_evaluates_without_touching_the_registry(simulated, tmp_path):
    summary = train(configure(*arguments(simulated, tmp_path, "run", "model=hstu", "as_of=2026-03-05")))
    assert summary.verdict is None and summary.objective == pytest.approx(summary.challenger["click"]["ne"])
    assert not (tmp_path / "registry").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_two_runs_give_the_same_bundle(simulated, tmp_path):
    hashes = []
    for name in ("a", "b"):
        train(configure(*arguments(simulated, tmp_path / name, "run", "as_of=2026-03-04")))
        hashes.append(read_bundle(tmp_path / name / "run" / "challenger").manifest.files)
    assert hashes[0] == hashes[1]


def test_a_launch_stands_beside_production_continued(history, simulated, tmp_path):
    folder, *_ = history
    for name in ("registry", "examples"):
        shutil.copytree(folder / name, tmp_path / name)
    summary = retrain(
        configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-07", "gate=launch", "model.layers=2", "release.auto=false"))
    )
    assert set(summary.baselines) >= {"counting", "continued"}
    assert "continued_click" in pq.read_table(tmp_path / "run" / "predictions.parquet").column_names
    continued = read_bundle(tmp_path / "run" / "continued").manifest
    assert continued.shape["layers"] == 1 and "2026-03-06" in continued.trained


def test_a_dry_run_prints_the_plan_and_trains_nothing(history, simulated, tmp_path, capsys):
    folder, *_ = history
    for name in ("registry", "examples"):
        shutil.copytree(folder / name, tmp_path / name)
    summary = train(configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-07", "model.layers=2", "warm_start.dry_run=true")))
    assert summary.status == "dry run" and summary.transfer["exact"]
    assert "inserted as identity" in capsys.readouterr().out
    assert not (tmp_path / "run" / "challenger").exists()


def test_production_that_is_no_bundle_is_judged_from_its_logged_scores(simulated, tmp_path):
    summary = retrain(configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-05")))
    assert summary.versions["production"] is None and summary.production is not None
    table = pq.read_table(tmp_path / "run" / "predictions.parquet")
    assert {"production_click", "value_production"} <= set(table.column_names)
    assert any(
        check["name"] == "ne" and check["action"] == "click"
        for check in json.loads((tmp_path / "run" / "verdict.json").read_text())["checks"]
    )


def test_replay_that_trains_tables_shares_the_steps_of_the_new_day(history, simulated, tmp_path):
    folder, *_ = history
    for name in ("registry", "examples"):
        shutil.copytree(folder / name, tmp_path / name)
    replay = ("as_of=2026-03-07", "warm_start.replay_share=0.4", "fit.batch_targets=64")
    new = {}
    for tables in ("frozen", "train"):
        train(configure(*arguments(simulated, tmp_path, tables, *replay, f"warm_start.replay_tables={tables}")))
        log = (tmp_path / tables / "challenger-fit" / "steps.jsonl").read_text().splitlines()
        new[tables] = [json.loads(line)["new"] for line in log]
    assert new["frozen"].count(False) / len(new["frozen"]) == pytest.approx(0.4, abs=0.05), "rows that stay need steps of their own"
    assert all(new["train"]) and len(new["train"]) == pytest.approx(len(new["frozen"]), rel=0.15)


def test_what_production_did_not_have_learns_at_its_own_rate(history, simulated, tmp_path, monkeypatch):
    """The rates that the optimizers of a grown night work with, as they were handed down from the plan of the transfer."""
    folder, *_ = history
    for name in ("registry", "examples"):
        shutil.copytree(folder / name, tmp_path / name)
    given = []

    def noted(learner, config, fresh=None):
        given.append((learner.ranker, fresh))
        return Optimizers(learner, config, fresh)

    monkeypatch.setattr("trainer.fit.task.Optimizers", noted)
    grown = ("as_of=2026-03-07", "model.layers=2", "schedule.warm_factor=0.25", "schedule.fresh_factor=1")
    train(configure(*arguments(simulated, tmp_path, "run", *grown)))
    ranker, fresh = given[0]
    slower = {name for name, _ in ranker.named_parameters() if name in fresh.shares}
    added = {name for name, _ in ranker.named_parameters() if name.startswith("blocks.1.")}
    assert fresh.rate == 4 and added and not slower & added
    assert {name for name, _ in ranker.named_parameters() if name.startswith("blocks.0.")} <= slower
    assert all(fresh.shares[name].eq(0.25).all() for name in slower if name.startswith("blocks.0."))
