"""A past failure brought back through the main job: whatever else the gate tolerates, it is not promoted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import configure
from trainer.pipeline import retrain
from trainer.release import Registry

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "suite.py"
REASON, NOTE = 'the night of March that learnt "nothing", and went live', "ask Ada, she knows"
BAD = ("warm_start=none", "optimizer.lr=1e-9")  # a model that never learnt anything
TOLERANT = [f"gate.severity.{family}=warn" for family in ("ranking", "loss", "calibration", "scores", "slate", "baseline")]
TOLERANT += ["export.enabled=false", "gate.untestable_share=1"]


def arguments(simulated: Path, folder: Path, name: str, *overrides: str) -> tuple[str, ...]:
    return (
        f"data.root={simulated}", f"registry.root={folder}/registry", f"rebuild.root={folder}/examples", f"run_dir={folder}/{name}",
        *overrides,
    )  # fmt: skip


def suite(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), f"registry.root={folder}/registry", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def kept(simulated, tmp_path_factory):
    """A first model that is live, a night that failed, and its failure kept as a suite."""
    folder = tmp_path_factory.mktemp("suites")
    retrain(configure(*arguments(simulated, folder, "first", "as_of=2026-03-06", "gate.first=promote")))
    bad = retrain(configure(*arguments(simulated, folder, "bad", "as_of=2026-03-07", *BAD)))
    assert bad.verdict == "REJECT", bad.reason
    failed = json.loads((folder / "bad" / "verdict.json").read_text())["failed"]
    assert "auc/click/all" in failed, failed
    done = suite(
        folder, "action=add", "name=blind", "kind=failure", "check=auc/click", f"from_run={folder}/bad", f"reason={REASON}", f"note={NOTE}"
    )
    assert done.returncode == 0, done.stderr
    return folder


def checks(folder: Path, name: str) -> list[dict]:
    return [c for c in json.loads((folder / name / "verdict.json").read_text())["checks"] if c["family"] == "suite"]


def test_a_model_that_brings_it_back_is_rejected_by_the_suite_alone(kept: Path, simulated: Path):
    before = Registry(kept / "registry").aliases()
    summary = retrain(configure(*arguments(simulated, kept, "again", "as_of=2026-03-07", "seed=1", *BAD, *TOLERANT)))
    verdict = json.loads((kept / "again" / "verdict.json").read_text())
    assert (summary.verdict, verdict["failed"]) == ("REJECT", ["auc/click/suite=blind"])
    for words in ("blind", REASON, NOTE, "a past failure is back"):
        assert words in verdict["reason"]
    assert Registry(kept / "registry").aliases() == before
    run = suite(kept, "action=run", f"from_run={kept}/again")
    assert run.returncode == 10, run.stderr
    assert "a past failure is back" in run.stdout


def test_a_model_that_does_not_passes_it(kept: Path, simulated: Path):
    retrain(configure(*arguments(simulated, kept, "good", "as_of=2026-03-07", "release.auto=false", *TOLERANT)))
    [check] = checks(kept, "good")
    assert check["outcome"] == "pass", check["sentence"]
    assert "trained" not in check["sentence"], "the rows are the holdout of that night"
    assert suite(kept, "action=run", f"from_run={kept}/good", "name=blind").returncode == 0


def test_a_suite_makes_the_same_night_another_question(kept: Path, simulated: Path):
    again = configure(*arguments(simulated, kept, "good", "as_of=2026-03-07", "release.auto=false", *TOLERANT))
    assert retrain(again).status == "nothing to do"
    done = suite(kept, "action=add", "name=gb", "kind=slice", "check=ne/click", "margin=0.5", "where=country == 'GB'",
                 "as_of=2026-03-07", "reason=a promise, made in March")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert retrain(again).status == "done"
    assert {check["slice"] for check in checks(kept, "good")} == {"suite=blind", "suite=gb"}
    assert "a promise, made in March" in suite(kept, "action=list").stdout
    assert suite(kept, "action=remove", "name=gb", "reason=the market, closed").returncode == 0
