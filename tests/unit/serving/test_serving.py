"""The artefact repeats the ranker on every edge, whatever the format; a model that differs, is slower or larger is found."""

import copy
import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.dense import DenseRanker
from trainer.config import ServingConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.schema.hash_function import HashFunction
from trainer.schema.serving import FILES, ONNX, TORCH_EXPORT, read_serving_manifest
from trainer.serving import judge_serving, load_artefact, write_artefact
from trainer.serving.artefact import check_installed
from trainer.serving.judge import _distance, latency, parity, reference, sizes
from trainer.serving.requests import random_requests

stage = importlib.import_module("trainer.stages.serving")  # the package has a function of that name
CONFIG = ServingConfig(enabled=True, candidates=12, requests=4)
HASHES = {"user": HashFunction(rows=9, seed=2)}


@pytest.fixture(scope="module")
def ranker(kit):
    torch.manual_seed(0)
    model = kit.model(kit.shape("sasrec", layers=1), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


@pytest.fixture(scope="module")
def folder(ranker, tmp_path_factory):
    out = tmp_path_factory.mktemp("artefact") / "serving"
    write_artefact(ranker, out, [TORCH_EXPORT], producer="p", max_history=9, hashes=HASHES)
    return out


def moved(ranker, by):
    other = copy.deepcopy(ranker)
    with torch.no_grad():
        other.context.bias.add_(by)
    return other


def test_the_artefact_repeats_the_ranker_on_the_whole_edge_set(ranker, folder):
    checks = judge_serving(ranker, folder, CONFIG, None)
    assert [(check.name, check.outcome, check.slice) for check in checks] == [("serving_parity", "pass", "format=torch_export")]
    assert checks[0].estimate < 1e-5 and checks[0].n == (2 * 12 * 5 + 1 + 4 * 12) * 3


def test_who_feeds_the_graph_is_told_the_hashes(folder):
    assert read_serving_manifest(folder).hashes == HASHES


def test_the_stage_takes_the_hashes_from_the_bundle(monkeypatch):
    """Not from the configuration of the moment."""
    told = {}
    monkeypatch.setattr(stage, "build_ranker", lambda bundle: "ranker")
    monkeypatch.setattr("trainer.serving.write_artefact", lambda *_, **values: told.update(values))
    bundle = SimpleNamespace(sha256="p", manifest=SimpleNamespace(hashes=HASHES, inputs=SimpleNamespace(max_history=9)))
    stage._write(SimpleNamespace(config=SimpleNamespace(serving=CONFIG)), bundle, None)
    assert told == {"producer": "p", "max_history": 9, "hashes": HASHES}
    live = SimpleNamespace(production=bundle, config=SimpleNamespace(serving=CONFIG), run=SimpleNamespace(path=Path("run")))
    live.registry = SimpleNamespace(production_path=lambda: None)
    told.clear()
    stage._live(live)
    assert told["hashes"] == HASHES


def test_another_model_fails_parity_and_the_edge_is_named(ranker, folder):
    manifest = read_serving_manifest(folder)
    check = parity(moved(ranker, 1e-3), folder, TORCH_EXPORT, manifest, CONFIG)
    assert check.outcome == "fail" and check.severity == "block" and "does not repeat" in check.sentence
    assert parity(moved(ranker, 1e-3), folder, TORCH_EXPORT, manifest, replace(CONFIG, tolerance=0.1)).outcome == "pass"


def test_one_edge_alone_is_enough_to_fail(ranker, folder, monkeypatch):
    """As in an export under an old operator set: right everywhere but on an empty history."""
    real = load_artefact(folder, TORCH_EXPORT)

    def run(inputs):
        scores, dot = real.run(inputs)
        empty_B = inputs["token_mask"].sum(1) == 0
        return scores + 2.2 * empty_B[:, None, None], dot

    monkeypatch.setattr("trainer.serving.judge.load_artefact", lambda *_: replace(real, run=run))
    check = parity(ranker, folder, TORCH_EXPORT, read_serving_manifest(folder), CONFIG)
    assert check.outcome == "fail" and "empty history" in check.sentence


def test_a_score_that_is_not_finite_and_another_order_are_problems():
    expected = torch.tensor([[[0.1], [0.2], [0.3]]]).repeat(1, 5, 1), torch.zeros(1, 15)
    nan = expected[0].clone()
    nan[0, 3, 0] = float("nan")
    assert _distance((nan, expected[1]), expected, 1e-5)[1] == "a score that is not finite"
    assert _distance((expected[0].flip(1), expected[1]), expected, 1e-5)[1].startswith("other items")
    assert _distance(expected, expected, 1e-5) == (0.0, "")
    assert "shape" in _distance((expected[0][:, :2], expected[1]), expected, 1e-5)[1]


def test_latency_fails_when_every_block_is_beyond_the_budget_and_holds_when_some_are():
    def judged(*ratios):
        ratio = np.array(ratios)
        return latency("p95", np.stack([ratio, np.ones_like(ratio), ratio]), ONNX, CONFIG).outcome

    assert judged(1.0, 1.05, 1.3) == "pass"
    assert judged(1.0, 1.2, 1.3) == "hold"
    assert judged(1.2, 1.15, 1.3) == "fail"


def test_a_larger_file_fails_and_a_smaller_one_passes(folder):
    manifest = read_serving_manifest(folder)
    larger = replace(manifest, bytes={TORCH_EXPORT: int(manifest.bytes[TORCH_EXPORT] * 1.2)})
    assert [check.outcome for check in sizes(larger, manifest, CONFIG)] == ["fail"]
    assert [check.outcome for check in sizes(manifest, larger, CONFIG)] == ["pass"]
    assert not sizes(replace(manifest, bytes={}), manifest, CONFIG)


def test_both_models_are_timed_on_the_same_format(ranker, folder):
    from trainer.serving.judge import Live

    names = {check.name for check in judge_serving(ranker, folder, CONFIG, Live(folder, ranker))}
    assert names == {"serving_parity", "serving_latency_p50", "serving_latency_p95", "serving_size"}


def test_damage_and_unknown_formats_are_told(ranker, folder, tmp_path):
    with pytest.raises(ConfigError, match="no such format"):
        load_artefact(folder, ONNX)
    for name, content in (("manifest.json", "{}"), (FILES[TORCH_EXPORT], "x")):
        out = tmp_path / name
        out.mkdir()
        for file in folder.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        (out / name).write_text(content)
        with pytest.raises(CheckpointError):
            load_artefact(out, TORCH_EXPORT)


def test_onnx_without_its_packages_is_a_configuration_error(monkeypatch):
    monkeypatch.setattr("trainer.serving.artefact.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="onnx is not installed"):
        check_installed([ONNX])
    check_installed([TORCH_EXPORT])


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_onnx_repeats_the_ranker(kit, architecture, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = kit.model(kit.shape(architecture, layers=1), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    manifest = write_artefact(model, tmp_path, [ONNX], producer="p", max_history=9)
    check = parity(model, tmp_path, ONNX, manifest, CONFIG)
    assert check.outcome == "pass", check.sentence
    requests = random_requests(model.shape, [4], tokens=4, candidates=3, seed=0)
    got, expected = load_artefact(tmp_path, ONNX).run(requests), reference(model, requests)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(DenseRanker(model)(requests)[0], got[0], rtol=1e-4, atol=1e-5)
