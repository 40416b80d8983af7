"""Embeddings and the final model that reads them go live together, also across a change of space, and are whole or refused."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

import trainer.downstream.replay  # noqa: F401
from tests.integration.conftest import configure
from trainer import pipeline
from trainer.downstream import read_final
from trainer.errors import CheckpointError
from trainer.export import read_manifest
from trainer.release import Registry
from trainer.schema.verdict import PROMOTE, REJECT

pytestmark = pytest.mark.integration

# Six small days show nothing within the margins of a real gate; here the flow is judged, not the numbers.
WIDE = (
    "gate.auc_margin=1", "gate.gauc_margin=1", "gate.rank_margin=2", "gate.ndcg_margin=100", "gate.ne_margin=100",
    "gate.calibration_margin=100", "gate.ecce_margin=100", "gate.quantile_share_margin=1000", "gate.churn_budget=1",
    "gate.composition_margin=1000", "gate.suspicious_auc=1", "gate.suspicious_relative=100", "gate.untestable_share=1",
    "gate.record_margin=100", "gate.record_ne_margin=100", "gate.repair=[]",
)  # fmt: skip


def night(root: Path, log: Path, as_of: str, *overrides: str, past: tuple[str, ...] = ()) -> Path:
    out = root / as_of
    days = [f"export.as_of=[{','.join(past)}]"] if past else []
    config = configure(
        "data=simulated", f"data.root={log}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}", f"run_dir={out}",
        f"as_of={as_of}", "gate.first=promote", "fit.day_weights=true", "downstream.enabled=true", *WIDE, *days, *overrides,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for margin in ("MEAN_MARGIN", "NE_MARGIN", "AUC_MARGIN", "NDCG_MARGIN"):
            patch.setattr(sys.modules["trainer.downstream.replay"], margin, 100.0)  # the package's `replay` is the function
        pipeline.retrain(config)
    return out


def verdict_of(out: Path) -> dict:
    return json.loads((out / "verdict.json").read_text())


def final_checks(out: Path) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["outcome"], check["severity"]) for check in verdict_of(out)["checks"] if check["family"] == "downstream"}


def live(root: Path) -> Path:
    """The live release, whose final model reads the very space of its embeddings."""
    folder = Registry(root / "registry").production_path()
    assert folder is not None
    assert read_final(folder / "downstream").feature_space == read_manifest(folder / "embeddings").feature_space
    return folder


def contents(root: Path) -> dict[str, bytes]:
    kept = ("versions", "aliases.json")
    files = (path for path in (root / "registry").rglob("*") if path.is_file() and set(kept) & set(path.parts))
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def first(simulated, tmp_path_factory) -> Path:
    """A first release, with a final model."""
    root = tmp_path_factory.mktemp("joint")
    night(root, simulated, "2026-03-05", past=("2026-03-03", "2026-03-04"))
    assert live(root)
    return root


@pytest.fixture
def root(first: Path, tmp_path: Path) -> Path:
    """The registry of the first release, for this test alone."""
    for name in ("registry", "rebuild"):
        shutil.copytree(first / name, tmp_path / name)
    return tmp_path


def test_a_new_space_goes_live_with_its_final_model_and_the_next_night_replays_that(root: Path, simulated):
    old = live(root)
    anew = night(root, simulated, "2026-03-06", "warm_start=none", past=("2026-03-03", "2026-03-04", "2026-03-05"))
    assert verdict_of(anew)["verdict"] == PROMOTE, verdict_of(anew)["reason"]
    assert final_checks(anew) == {f"joint_{name}": ("pass", "block") for name in ("mean", "ne", "auc")}
    new = live(root)
    spaces = [read_manifest(folder / "embeddings").feature_space for folder in (old, new)]
    finals = [read_final(folder / "downstream") for folder in (old, new)]
    assert spaces[0] != spaces[1] and finals[0].sha256 != finals[1].sha256
    assert finals[1].days == ["2026-03-03", "2026-03-04", "2026-03-05"]
    after = night(root, simulated, "2026-03-07")
    assert verdict_of(after)["verdict"] == PROMOTE, verdict_of(after)["reason"]
    assert final_checks(after) == {f"replay_{name}": ("pass", "block") for name in ("mean", "ne", "auc")}
    assert live(root) not in (old, new) and read_final(live(root) / "downstream") == finals[1]
    assert read_manifest(live(root) / "embeddings").feature_space == spaces[1]
    registry = Registry(root / "registry")
    for _ in range(2):
        registry.rollback()
        live(root)  # rolled back, the two are a pair as well


def test_a_new_space_without_a_retrained_final_model_is_refused_for_that_alone(root: Path, simulated):
    before = contents(root)
    out = night(root, simulated, "2026-03-06", "warm_start=none")
    assert (verdict_of(out)["verdict"], verdict_of(out)["failed"]) == (REJECT, ["joint_release/click/all"])
    assert "export.as_of" in verdict_of(out)["reason"]
    assert contents(root) == before and not (out / "downstream").exists()


def test_a_final_model_that_ranks_takes_the_place_of_one_of_another_library(root: Path, simulated):
    pytest.importorskip("catboost")
    kind = ("downstream.library=catboost", "downstream.objective=ranking")
    out = night(root, simulated, "2026-03-06", *kind, past=("2026-03-04", "2026-03-05"))
    assert verdict_of(out)["verdict"] == PROMOTE, verdict_of(out)["reason"]
    about = read_final(live(root) / "downstream")
    assert (about.library, about.objective) == ("catboost", "ranking")
    after = night(root, simulated, "2026-03-07", *kind)
    assert final_checks(after) == {"replay_ndcg": ("pass", "block"), "replay_auc": ("pass", "info")}
    assert read_final(live(root) / "downstream") == about


@pytest.mark.parametrize("name", ["model.txt", "model.json"])
@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: content.replace(b"1", b"2", 1), None])
def test_a_damaged_live_final_model_is_refused_by_name(root: Path, simulated, name: str, damage):
    file = live(root) / "downstream" / name
    content = file.read_bytes()
    file.chmod(0o644)
    file.unlink() if damage is None else file.write_bytes(damage(content))
    before = contents(root)
    with pytest.raises(CheckpointError, match=f"a file of a sealed release(.|\n)*downstream/{name}(.|\n)*rollback") as error:
        night(root, simulated, "2026-03-06")
    assert error.value.exit_code == 4
    assert contents(root) == before


def test_a_final_model_damaged_between_two_attempts_is_made_again(root: Path, simulated, monkeypatch, capsys):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    anew = partial(night, root, simulated, "2026-03-06", "warm_start=none", past=("2026-03-03", "2026-03-04", "2026-03-05"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainer.gate.write_verdict", killed)
        anew()
    out = root / "2026-03-06"
    whole, model = read_final(out / "downstream"), out / "downstream" / "model.txt"
    model.write_bytes(model.read_bytes()[:-40])
    capsys.readouterr()
    anew()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "(kept)" in lines["export"] and "(kept)" not in lines["downstream"]
    assert verdict_of(out)["verdict"] == PROMOTE
    assert read_final(live(root) / "downstream") == whole
