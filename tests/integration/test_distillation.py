"""Distillation in the main job: from logged scores into an empty registry, and from a live bundle of another architecture."""

import json
import shutil

import numpy as np
import pytest

from tests.integration.conftest import configure
from trainer.checkpoint import build_ranker, read_bundle
from trainer.data.shards import ShardKey, ShardStore
from trainer.errors import CheckpointError
from trainer.pipeline import retrain, train
from trainer.release import Registry
from trainer.schema.bundle import OPTIMIZER, SERVING, TRUNK

pytestmark = pytest.mark.integration


def arguments(simulated, folder, run, *overrides):
    paths = (f"registry.root={folder}/registry", f"rebuild.root={folder}/examples", f"run_dir={folder}/{run}")
    return (f"data.root={simulated}", *paths, *overrides)


@pytest.fixture(scope="module")
def replaced(simulated, tmp_path_factory):
    """An incumbent known only by its logged scores is judged, learned from and replaced."""
    folder = tmp_path_factory.mktemp("replaced")
    summary = retrain(configure(*arguments(simulated, folder, "first", "as_of=2026-03-05", "distill=logged", "gate.first=promote")))
    return folder, summary


def test_an_incumbent_that_is_no_bundle_is_distilled_from_and_replaced(replaced):
    folder, summary = replaced
    assert summary.verdict == "PROMOTE", summary.reason
    assert summary.production is not None, "it is judged by its logged scores"
    assert Registry(folder / "registry").aliases().production == summary.release["version"]
    taught = summary.transfer["distilled"]
    assert taught["teacher"] == "logged scores" and taught["left_out"] == {}
    assert 0 < taught["scored"]["click"] <= taught["rows"]
    report = json.loads((folder / "first" / "transfer.json").read_text())
    assert {fate["fate"] for fate in report["fates"]} == {"distilled"} == set(report["elements"])


def test_the_teachers_head_is_no_part_of_the_bundle(replaced):
    folder, _ = replaced
    bundle = read_bundle(Registry(folder / "registry").production_path() / "bundle")
    for name in (TRUNK, SERVING, OPTIMIZER):
        assert not [key for key in bundle.tensors(name) if "teacher" in key]
    assert set(bundle.tensors(SERVING)) == set(build_ranker(bundle).state_dict())


def test_shards_hold_the_scores_of_their_own_rows(replaced, simulated):
    folder, _ = replaced
    import pyarrow.parquet as pq

    shard = ShardStore(folder / "first" / "challenger-shards").read(ShardKey("2026-03-03", 0))
    logged = pq.read_table(folder / "examples" / "examples" / "day=2026-03-03" / "bucket=00.parquet")["logged_click"].to_numpy()
    assert np.allclose(shard.teacher_NA[:, 0], logged[shard.row_N], equal_nan=True) and np.isfinite(logged).any()


def test_a_live_bundle_teaches_another_architecture_with_which_it_shares_nothing(replaced, simulated, tmp_path):
    for name in ("registry", "examples"):
        shutil.copytree(replaced[0] / name, tmp_path / name)
    live = read_bundle(Registry(tmp_path / "registry").production_path() / "bundle")
    hstu = ("model=hstu", "model.dim=24", "model.head_dim=4", "as_of=2026-03-06")
    with pytest.raises(CheckpointError, match="distill=production"):
        train(configure(*arguments(simulated, tmp_path, "refused", *hstu)))
    student = ("warm_start=none", "distill=production", "distill.decay_to=0.2")
    summary = train(configure(*arguments(simulated, tmp_path, "taught", *hstu, *student)))
    taught = summary.transfer["distilled"]
    assert taught["teacher"] == live.sha256 and taught["decay_to"] == 0.2
    assert taught["scored"]["click"] == taught["rows"] > 0, "a live teacher scores every row"
    manifest = read_bundle(tmp_path / "taught" / "challenger").manifest
    assert manifest.parent is None and manifest.shape["architecture"] == "hstu"


def test_without_production_there_is_no_live_teacher(simulated, tmp_path):
    with pytest.raises(CheckpointError, match="distill=logged"):
        train(configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-05", "distill=production")))


def test_a_bundle_knows_the_latest_event_it_has_learned(replaced):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder, summary = replaced
    manifest = read_bundle(folder / "first" / "challenger").manifest
    files = [file for day in summary.data["train"] for file in (folder / "examples" / "examples" / f"day={day}").glob("*.parquet")]
    assert manifest.watermark_ms == max(pc.max(pq.read_table(file)["event_time"]).as_py() for file in files)


def test_scratch_of_an_attempt_with_other_settings_is_not_gone_on_from(replaced, simulated, tmp_path):
    shutil.copytree(replaced[0] / "examples", tmp_path / "examples")
    same = ("as_of=2026-03-05", "warm_start=none", "fit.checkpoint_steps=1")
    train(configure(*arguments(simulated, tmp_path, "run", *same)))
    shard = ShardStore(tmp_path / "run" / "challenger-shards").read(ShardKey("2026-03-03", 0))
    assert shard.teacher_NA is None
    train(configure(*arguments(simulated, tmp_path, "run", *same, "distill=logged")))
    assert ShardStore(tmp_path / "run" / "challenger-shards").read(ShardKey("2026-03-03", 0)).teacher_NA is not None
