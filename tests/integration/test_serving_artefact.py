"""The artefact in the main job: written, judged, sealed with the release, and compared with production's on the next night."""

import json

import pytest

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.checkpoint import read_bundle
from trainer.release import Registry
from trainer.schema.serving import FOLDER, TORCH_EXPORT, read_serving_manifest

pytestmark = [pytest.mark.integration, pytest.mark.proof]  # two runs of the main job with graphs: half a minute


def night(root, log, as_of, *overrides):
    config = configure(
        "data=simulated", f"data.root={log}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}",
        f"run_dir={root / as_of}", f"as_of={as_of}", "gate.first=promote", "serving.enabled=true", "serving.format=[torch_export]",
        "serving.requests=3", "serving.candidates=10", "export.enabled=false", *overrides,
    )  # fmt: skip
    pipeline.retrain(config)
    checks = json.loads((root / as_of / "verdict.json").read_text())["checks"]
    return {check["name"]: check for check in checks if check["family"] == "serving"}


def test_the_artefact_is_sealed_and_the_next_one_is_judged_against_it(simulated, tmp_path):
    first = night(tmp_path, simulated, "2026-03-06")
    assert set(first) == {"serving_parity"} and first["serving_parity"]["outcome"] == "pass"
    live = Registry(tmp_path / "registry").production_path()
    manifest = read_serving_manifest(live / FOLDER)
    assert list(manifest.files) == [TORCH_EXPORT] and manifest.producer == read_bundle(live / "bundle").sha256
    second = night(tmp_path, simulated, "2026-03-07", "serving.latency_budget=100")
    assert set(second) == {"serving_parity", "serving_latency_p50", "serving_latency_p95", "serving_size"}
    assert second["serving_latency_p95"]["outcome"] == "pass" and second["serving_latency_p95"]["n"] > 0
    assert not (tmp_path / "2026-03-07" / "serving-live").exists(), "production's own artefact was at hand"
