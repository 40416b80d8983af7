"""After PROMOTE, a copy that has learned the holdout is served where it stays close, and the judged trunk goes on."""

import dataclasses
import json
import shutil

import pytest
import torch

from tests.integration.conftest import configure
from trainer.checkpoint import read_bundle
from trainer.pipeline import retrain
from trainer.release import Registry
from trainer.schema.bundle import OPTIMIZER, SERVING, TRUNK

pytestmark = pytest.mark.integration
WIDE = ("release.absorb_mean=5", "release.absorb_quantile=9", "release.absorb_ratio=5", "release.absorb_traffic=50")


def arguments(simulated, folder, run, *overrides):
    paths = (f"registry.root={folder}/registry", f"rebuild.root={folder}/examples", f"run_dir={folder}/{run}")
    return (f"data.root={simulated}", *paths, "gate.first=promote", "export.enabled=false", *overrides)


@pytest.fixture(scope="module")
def absorbed(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("absorbed")
    first = retrain(
        configure(*arguments(simulated, folder, "first", "as_of=2026-03-05", "release.absorb=true", "fit.day_weights=true", *WIDE))
    )
    return folder, first


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_the_absorbed_copy_is_served_over_the_judged_trunk(absorbed):
    folder, first = absorbed
    assert first.verdict == "PROMOTE" and first.release["absorbed"]["served"], first.release["sentence"]
    judged = read_bundle(folder / "first" / "challenger")
    live = read_bundle(Registry(folder / "registry").production_path() / "bundle")
    assert equal(live.tensors(TRUNK), judged.tensors(TRUNK)) and equal(live.tensors(OPTIMIZER), judged.tensors(OPTIMIZER))
    assert not equal(live.tensors(SERVING), judged.tensors(SERVING)), "the copy has learned something"
    assert list(live.manifest.absorbed) == ["2026-03-05"] and "2026-03-05" not in live.manifest.trained
    days = {name for name in judged.manifest.files if name.startswith("days/")}
    assert days and days == {name for name in live.manifest.files if name.startswith("days/")}, "past days are scored by these"
    names = {check["name"] for check in first.release["absorbed"]["checks"]}
    assert names == {"finite", "mean", "quantiles", "ratio", "traffic"}


def test_the_next_run_starts_from_the_judged_trunk_and_learns_the_holdout_once(absorbed, simulated, tmp_path):
    for name in ("registry", "examples"):
        shutil.copytree(absorbed[0] / name, tmp_path / name)
    still = ("as_of=2026-03-06", "optimizer.lr=1e-12", "optimizer.embedding_lr=1e-12", "optimizer.weight_decay=0", "release.auto=false")
    second = retrain(configure(*arguments(simulated, tmp_path, "second", *still)))
    assert second.data["train"] == ["2026-03-05"], "the absorbed day is new to the trunk"
    judged = read_bundle(absorbed[0] / "first" / "challenger").tensors(TRUNK)
    started = read_bundle(tmp_path / "second" / "challenger").tensors(TRUNK)
    assert second.transfer["exact"]
    for name in ("context.output", "blocks.0.up.weight"):
        assert torch.allclose(started[name], judged[name], atol=1e-6), name


def test_a_copy_that_moved_too_far_is_not_served(simulated, tmp_path):
    strict = ("release.absorb=true", "release.absorb_quantile=1e-6")
    summary = retrain(configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-05", *strict)))
    assert summary.verdict == "PROMOTE" and not summary.release["absorbed"]["served"]
    assert "the judged copy is served" in summary.release["sentence"]
    live = read_bundle(Registry(tmp_path / "registry").production_path() / "bundle")
    assert live.sha256 == read_bundle(tmp_path / "run" / "challenger").sha256 and live.manifest.absorbed == {}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["release"]["absorbed"]["checks"]


def test_a_verdict_that_is_not_promote_absorbs_nothing(simulated, tmp_path):
    config = configure(*arguments(simulated, tmp_path, "run", "as_of=2026-03-05", "release.absorb=true"))
    config = dataclasses.replace(config, gate=dataclasses.replace(config.gate, first="hold"))
    summary = retrain(config)
    assert summary.verdict != "PROMOTE" and "absorbed" not in summary.release and not (tmp_path / "run" / "absorbed").exists()
