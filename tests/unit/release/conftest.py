import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.release import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "feed")


@pytest.fixture
def stage() -> Callable[..., Path]:
    """Fills a folder as the stages before a release do."""

    def fill(folder: Path, text: str = "weights", verdict: str = "PROMOTE") -> Path:
        (folder / "bundle").mkdir(parents=True, exist_ok=True)
        (folder / "bundle" / "serving.safetensors").write_text(text)
        (folder / "verdict.json").write_text(json.dumps({"verdict": verdict}))
        return folder

    return fill


@pytest.fixture
def sealed(registry: Registry, stage, tmp_path: Path) -> Callable[..., object]:
    """Seals a version whose weights are its name."""

    def seal(version: str, verdict: str = "PROMOTE") -> object:
        staged = stage(tmp_path / f"staged-{version}", text=version, verdict=verdict)
        return registry.seal(version, staged, as_of="2022-05-01", verdict=verdict, parent=None, inputs_sha256=f"inputs-{version}")

    return seal


@pytest.fixture
def two(registry: Registry, sealed) -> Registry:
    """A registry with two sealed versions, v1 and v2, and nothing live."""
    for version in ("v1", "v2"):
        sealed(version)
    return registry
