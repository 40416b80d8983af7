"""Embeddings that must not go out do not: the run says why with the documented code, and what is live stays live, byte by byte."""

import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import configure
from tests.integration.test_exit_codes import one_message, retrain
from trainer import pipeline
from trainer.errors import ConfigError, ExportError
from trainer.evaluate import RankerVectors
from trainer.export import read_embeddings, read_manifest
from trainer.release import Registry
from trainer.schema.embeddings import VectorBlock, wide_names
from trainer.schema.verdict import PROMOTE, REJECT

pytestmark = pytest.mark.integration

DIM = 16


def overrides(log: Path, folder: Path) -> list[str]:
    return [
        "data=simulated", f"data.root={log}", f"registry.root={folder / 'registry'}", f"rebuild.root={folder / 'rebuild'}",
        f"run_dir={folder / 'run'}", "as_of=2026-03-07",
    ]  # fmt: skip


def published(folder: Path) -> dict[str, str]:
    """What readers see: the pointer, and every byte behind it; the vectors are read as a consumer would."""
    version = Registry(folder / "registry").production_path()
    assert version is not None
    for entity in ("user", "item"):
        assert all(np.isfinite(block.vectors_MD).all() for block in read_embeddings(version / "embeddings", entity))
    files = [path for path in sorted(version.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, folder / "registry" / "default" / "aliases.json"]}


@pytest.fixture(scope="module")
def live(simulated, tmp_path_factory) -> Path:
    """A release of the evening before. Runs of the next evening share a folder, so that each begins where the last was stopped."""
    folder = tmp_path_factory.mktemp("live")
    first = [*overrides(simulated, folder)[:-2], f"run_dir={folder / 'first'}", "as_of=2026-03-06", "gate.first=promote"]
    assert pipeline.retrain(configure(*first)).verdict == PROMOTE
    return folder


def with_nan(self: RankerVectors):
    for block in USERS(self):
        vectors_MD = block.vectors_MD.copy()
        vectors_MD[len(vectors_MD) // 2, 3] = np.nan
        yield VectorBlock(block.ids, vectors_MD)


def few(self: RankerVectors):
    for block in ITEMS(self):
        yield VectorBlock(block.ids.slice(0, 3), block.vectors_MD[:3])


def twice(self: RankerVectors):
    yield from USERS(self)
    yield from USERS(self)


def narrow(self: RankerVectors):
    for block in USERS(self):
        yield VectorBlock(block.ids, np.ascontiguousarray(block.vectors_MD[:, 1:]))


USERS, ITEMS = RankerVectors.user_vectors, RankerVectors.item_vectors


@pytest.mark.parametrize(
    ("method", "damaged", "words"),
    [
        ("user_vectors", with_nan, "user vector is not finite"), ("item_vectors", few, "item without a vector"),
        ("user_vectors", twice, "a user has several vectors"), ("user_vectors", narrow, "user vectors have the wrong width"),
        ("user_vectors", lambda self: iter(()), "no user has a vector"),
    ],
    ids=["a NaN vector", "missing items", "every user twice", "another width", "no user"],
)  # fmt: skip
def test_vectors_that_no_consumer_could_use(live, simulated, monkeypatch, method, damaged, words):
    before = published(live)
    monkeypatch.setattr(RankerVectors, method, damaged)
    with pytest.raises(ExportError, match=words) as error:
        pipeline.retrain(configure(*overrides(simulated, live)))
    assert error.value.exit_code == 6
    assert published(live) == before
    assert not (live / "run" / "embeddings").exists()


def test_a_disk_that_is_full_when_the_vectors_are_written(live, simulated):
    before = published(live)

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = [f"rebuild.root={live / 'rebuild'}", "as_of=2026-03-07"]
    result = retrain(simulated, live, *arguments, preexec_fn=small_files)
    message = one_message(result, 6, "cannot be written")
    assert "embeddings" in message
    assert "evaluate" in result.stdout and "(kept)" in result.stdout, "the stages before it are not what failed"
    assert published(live) == before


def test_killed_in_the_middle_of_the_export(live, simulated, monkeypatch):
    before = published(live)
    monkeypatch.setattr("trainer.export.write._write_manifest", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        pipeline.retrain(configure(*overrides(simulated, live)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert published(live) == before


def frozen(path: Path, dim: int) -> Path:
    """A live model behind the embeddings, on scores and vectors of width `dim`."""
    lightgbm = pytest.importorskip("lightgbm")
    names = ["dot", "score_click", *wide_names(dim, "user_vector_"), *wide_names(dim, "item_vector_")]
    generator = np.random.default_rng(0)
    value_NF = generator.normal(size=(500, len(names)))
    data = lightgbm.Dataset(value_NF, label=generator.random(500) < 0.3, feature_name=names)
    lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, num_boost_round=3).save_model(path)
    return path


@pytest.mark.parametrize("dim", [DIM - 1, DIM + 1])
def test_a_width_that_the_live_model_does_not_expect(live, simulated, tmp_path, dim: int):
    before = published(live)
    model = frozen(tmp_path / "live.txt", dim)
    with pytest.raises(ConfigError, match="vector_e0") as error:
        pipeline.retrain(configure(*overrides(simulated, live), "downstream.enabled=true", f"downstream.live={model}"))
    assert error.value.exit_code == 2
    assert published(live) == before


def test_a_wider_challenger_opens_a_space_of_its_own_and_is_not_refused_for_its_width(live, simulated):
    """Growth is what a warm start is for. Who reads vectors has to be retrained with it, as in any new space, and is told."""
    before = read_manifest(Registry(live / "registry").production_path() / "embeddings")
    pipeline.retrain(configure(*overrides(simulated, live), f"model.dim={2 * DIM}", "release.auto=false"))
    after = read_manifest(live / "run" / "embeddings")
    assert (before.dim, after.dim) == (DIM, 2 * DIM)
    assert after.space_id != before.space_id and after.feature_space == after.space_id
    checks = [c for c in json.loads((live / "run" / "verdict.json").read_text())["checks"] if c["family"] == "embeddings"]
    assert {(c["name"], c["outcome"], c["severity"]) for c in checks} == {
        ("embedding_space", "fail", "warn"), ("embedding_dim", "fail", "warn"),
    }  # fmt: skip


def test_an_entity_that_consumers_have_is_gone(live, simulated, tmp_path):
    before = published(live)
    summary = pipeline.retrain(configure(*overrides(simulated, live), "export.entities=[item]"))
    verdict = json.loads((live / "run" / "verdict.json").read_text())
    assert summary.verdict == verdict["verdict"] == REJECT
    assert "embedding_coverage/all/entity=user" in verdict["failed"]
    assert published(live) == before


def test_the_live_model_is_replayed_on_its_own_columns(live, simulated, tmp_path):
    """The same night with nothing damaged: what the others were refused for is not merely always refused."""
    model = frozen(tmp_path / "live.txt", DIM)
    pipeline.retrain(configure(*overrides(simulated, live), "downstream.enabled=true", f"downstream.live={model}", "release.auto=false"))
    replayed = [c for c in json.loads((live / "run" / "verdict.json").read_text())["checks"] if c["name"].startswith("replay_")]
    assert {c["name"] for c in replayed if c["family"] == "downstream"} == {"replay_mean", "replay_ne", "replay_auc"}
    assert read_manifest(live / "run" / "embeddings").dim == DIM
