"""Reference, retention and the history of what was done."""

import json
from pathlib import Path

import pytest

from trainer.config import RegistryConfig, ReleaseRunConfig
from trainer.errors import ConfigError, RaceError, RegistryError
from trainer.release import Registry, run
from trainer.release.stage import stage_release
from trainer.schema.release import HISTORY
from trainer.schema.verdict import Verdict

VERSIONS = [f"v{number}" for number in range(6)]


@pytest.fixture
def aged(registry: Registry, stage, tmp_path: Path) -> Registry:
    """Six versions, a day apart; v1 is the reference, v2 previous, v3 live, v4 and v5 newer and held."""
    for number, version in enumerate(VERSIONS):
        verdict = "PROMOTE" if number < 4 else "HOLD"
        staged = stage(tmp_path / version, text=version, verdict=verdict)
        registry.seal(version, staged, as_of=f"2022-05-{number + 1:02d}", verdict=verdict, parent=None, inputs_sha256=version)
    for version in ("v1", "v2", "v3"):
        registry.promote(version, registry.aliases().revision)
    return registry


def versions(registry: Registry) -> list[str]:
    return [state.id for state in registry.status().versions]


@pytest.mark.parametrize(("keep", "gone"), [(6, []), (5, ["v0"]), (4, ["v0"]), (2, ["v0"]), (1, ["v0", "v4"]), (100, [])])
def test_only_old_versions_that_nothing_points_to_are_removed(aged: Registry, keep: int, gone: list[str]):
    before = versions(aged)
    assert aged.retire(keep, dry_run=True) == gone
    assert versions(aged) == before, "a dry run removes nothing"
    assert aged.retire(keep, dry_run=False, reason="disk") == gone
    assert versions(aged) == [version for version in before if version not in gone]
    assert aged.production_path() is not None
    assert [path.name for path in (aged.folder / "versions").iterdir() if path.name.startswith(".")] == []
    assert [(e.release, e.reason) for e in aged.status().history if e.event == "retire"] == [(version, "disk") for version in gone]
    assert aged.rollback().production == "v2", "what a rollback needs stays"


def test_a_damaged_version_is_left_to_a_person(aged: Registry):
    record = aged.folder / "versions" / "v0" / "release.json"
    record.chmod(0o644)
    record.write_text("{")
    assert aged.retire(1, dry_run=False) == ["v4"]
    assert "v0" in versions(aged)


def test_the_reference_moves_only_on_purpose(aged: Registry):
    assert aged.aliases().reference == "v1"
    assert aged.reference_path() == aged.folder / "versions" / "v1"
    assert aged.refer_to("v3", reason="quarter").reference == "v3"
    assert aged.reference_path() is None, "what is live is no other model to compare with"
    assert aged.retire(1, dry_run=True) == ["v0", "v1", "v4"], "v1 is no longer pointed to"
    with pytest.raises(RegistryError, match="not a sealed release"):
        aged.refer_to("v9")
    assert aged.refer_to(None).reference is None
    revision = aged.aliases().revision
    assert aged.refer_to(None).revision == revision, "clearing nothing changes nothing"
    assert aged.promote("v1", revision).reference == "v1", "the next release that goes live becomes the reference"


def test_a_version_removed_between_its_verification_and_the_lock_is_not_promoted(aged: Registry, monkeypatch: pytest.MonkeyPatch):
    from trainer.release import registry as module

    verify = module.verify_release

    def verified_then_removed(folder: Path) -> object:
        record = verify(folder)
        module.remove_release(folder)
        return record

    before = aged.aliases()
    monkeypatch.setattr(module, "verify_release", verified_then_removed)
    with pytest.raises(RegistryError, match="not a sealed release"):
        aged.promote("v0", before.revision)
    assert aged.aliases() == before


def act(registry: Registry, action: str, **settings) -> str:
    place = RegistryConfig(root=str(registry.folder.parent), product=registry.folder.name)
    return run(ReleaseRunConfig(registry=place, action=action, **settings))


def test_the_commands_say_what_they_did(aged: Registry, capsys: pytest.CaptureFixture[str]):
    assert act(aged, "gc", keep=1) == "Would remove 2: v0, v4. To do it: dry_run=false."
    assert "v0" in versions(aged)
    assert act(aged, "gc", keep=1, dry_run=False) == "Removed 2: v0, v4."
    assert act(aged, "gc", keep=1) == "Nothing to remove."
    assert act(aged, "reference", version="v3", reason="new year") == "v3 is the reference."
    assert "v3 is no longer the reference" in act(aged, "unreference")
    assert act(aged, "unreference") == "There was no reference."
    for action, missing in (("gc", "keep"), ("reference", "version")):
        with pytest.raises(ConfigError, match=missing):
            act(aged, action)
    for settings in ({"action": "status", "keep": 3}, {"action": "freeze", "reason": "x", "dry_run": False}):
        with pytest.raises(ConfigError, match="does not use this setting"):
            act(aged, **settings)
    with pytest.raises(ConfigError, match="positive"):
        act(aged, "gc", keep=0)


def test_the_history_tells_verdicts_overrides_and_reasons(aged: Registry, capsys: pytest.CaptureFixture[str]):
    aged.record_verdict("REJECT", as_of="2022-05-09", inputs_sha256="x", reason="calibration of click is off")
    act(aged, "promote", version="v5", override=True, reason="agreed with the feed team")
    for number in range(20):
        aged.record_event("suite added", reason=f"incident {number}", notes={"suite": f"s{number}"})
    capsys.readouterr()
    act(aged, "history")
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "REJECT",
        "calibration of click is off",
        "override: the verdict was HOLD agreed with the feed team",
        "suite: s0 incident 0",
    ):
        assert words in printed, words
    act(aged, "history", version="v5")
    printed = capsys.readouterr().out
    assert "promote" in printed
    assert "incident" not in printed


@pytest.mark.parametrize("event", ["promote", "rollback", "reference", "freeze and unfreeze", "a lost history"])
def test_a_pointer_that_moved_during_the_run_stops_its_promotion_a_freeze_that_is_over_does_not(aged: Registry, event: str):
    begun = aged.aliases().revision
    if event == "promote":
        aged.promote("v0", begun)
    elif event == "rollback":
        aged.rollback()
        aged.rollback()  # production is what it was, but it was not all the time
    elif event == "reference":
        aged.refer_to("v3")
    else:
        aged.freeze("holiday")
        aged.unfreeze()
    if event == "a lost history":
        (aged.folder / HISTORY).unlink()
    before = aged.aliases()
    if event == "freeze and unfreeze":
        assert aged.promote("v1", begun).production == "v1"
        return
    with pytest.raises(RaceError, match="the pointer moved during the run: nothing promoted") as error:
        aged.promote("v1", begun)
    assert error.value.exit_code == 6
    assert aged.aliases() == before


def test_one_model_judged_twice_is_two_releases_each_with_its_verdict(registry: Registry, tmp_path: Path):
    def judged(verdict: str) -> dict:
        run_dir = tmp_path / "run"
        (run_dir / "challenger").mkdir(parents=True, exist_ok=True)
        (run_dir / "challenger" / "manifest.json").write_text("{}")
        (run_dir / "verdict.json").write_text(json.dumps({"verdict": verdict}))
        return stage_release(
            registry, run_dir, Verdict(verdict=verdict, reason="r", policy="refresh", checks=[], failed=[]), as_of="2022-05-01",
            inputs_sha256=verdict, bundle_sha256="b" * 64, parent=None, expected_revision=registry.aliases().revision, auto=True,
        )  # fmt: skip

    assert judged("REJECT") == {"version": None, "sealed": False, "promoted": False, "sentence": "rejected: production stays"}
    assert versions(registry) == []
    held = judged("HOLD")
    assert judged("HOLD")["version"] == held["version"], "the same again is the same release"
    promoted = judged("PROMOTE")
    assert promoted["promoted"]
    assert promoted["version"] != held["version"]
    assert registry.aliases().production == promoted["version"]
    for text in ("one", "two"):
        (tmp_path / "run" / "downstream").mkdir(exist_ok=True)
        (tmp_path / "run" / "downstream" / "model.json").write_text(text)
        other = judged("PROMOTE")
        assert other["version"] != promoted["version"], "another model behind the embeddings is another release"
        assert (registry.production_path() / "downstream" / "model.json").read_text() == text
        promoted = other


def test_a_run_that_lost_the_race_is_sealed_not_live_and_judged_again(two: Registry, tmp_path: Path):
    begun = two.promote("v1", 0).revision
    two.promote("v2", begun)
    (tmp_path / "run" / "challenger").mkdir(parents=True)
    (tmp_path / "run" / "challenger" / "manifest.json").write_text("{}")
    (tmp_path / "run" / "verdict.json").write_text(json.dumps({"verdict": "PROMOTE"}))
    before = two.aliases()
    with pytest.raises(RaceError) as error:
        stage_release(
            two, tmp_path / "run", Verdict(verdict="PROMOTE", reason="r", policy="refresh", checks=[], failed=[]), as_of="2022-05-02",
            inputs_sha256="asked", bundle_sha256="c" * 64, parent="v1", expected_revision=begun, auto=True,
        )  # fmt: skip
    assert (error.value.exit_code, two.aliases()) == (6, before)
    assert len(versions(two)) == 3, "what was judged is kept"
    assert two.judged("asked") is None, "the same command asks again, against the release that is live now"


def test_a_night_under_a_freeze_is_sealed_and_told_how_to_go_live(two: Registry, tmp_path: Path):
    two.promote("v1", 0)
    two.freeze("holiday")
    (tmp_path / "run" / "challenger").mkdir(parents=True)
    (tmp_path / "run" / "challenger" / "manifest.json").write_text("{}")
    (tmp_path / "run" / "verdict.json").write_text(json.dumps({"verdict": "PROMOTE"}))
    before = two.aliases()
    done = stage_release(
        two, tmp_path / "run", Verdict(verdict="PROMOTE", reason="r", policy="refresh", checks=[], failed=[]), as_of="2022-05-02",
        inputs_sha256="asked", bundle_sha256="c" * 64, parent="v1", expected_revision=before.revision, auto=True,
    )  # fmt: skip
    assert (done["sealed"], done["promoted"], two.aliases()) == (True, False, before)
    assert "promotions are frozen (holiday)" in done["sentence"] and f"action=promote version={done['version']}" in done["sentence"]
    assert two.judged("asked").release == done["version"], "the night is in the history"
    two.unfreeze()
    assert two.promote(done["version"], two.aliases().revision).production == done["version"]
