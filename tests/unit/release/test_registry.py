import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from trainer.errors import CheckpointError, ConfigError, RaceError, RegistryError
from trainer.release import Registry
from trainer.schema.release import ALIASES, HISTORY, RECORD, Aliases


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "registry.lock"}


def test_a_registry_that_does_not_exist_is_empty_and_reading_does_not_create_it(registry: Registry):
    assert registry.aliases() == Aliases()
    assert registry.production_path() is None
    assert registry.check() == Aliases()
    assert registry.judged("x") is None
    assert registry.status().versions == []
    assert registry.unfreeze() == Aliases()
    for action in (registry.rollback, lambda: registry.promote("v1", 0)):
        with pytest.raises(RegistryError):
            action()
    assert not registry.folder.parent.exists()


def test_seal_then_promote_then_read(registry: Registry, tmp_path: Path, sealed):
    record = sealed("v1")
    assert set(record.files) == {"bundle/serving.safetensors", "verdict.json"}
    assert registry.production_path() is None, "sealing moves no pointer"
    aliases = registry.promote("v1", 0)
    assert (aliases.production, aliases.previous, aliases.reference, aliases.revision) == ("v1", None, "v1", 1)
    live = registry.production_path()
    assert live is not None
    assert (live / "bundle" / "serving.safetensors").read_text() == "v1"
    assert [entry.event for entry in registry.status().history] == ["seal", "promote"]


def test_sealing_again_is_a_no_op_and_other_content_is_refused(registry: Registry, tmp_path: Path, sealed):
    first = sealed("v1")
    before = snapshot(registry.folder)
    assert sealed("v1") == first
    assert snapshot(registry.folder) == before
    (tmp_path / "staged-v1" / "bundle" / "more").write_text("x")
    with pytest.raises(RegistryError, match="another release has this name"):
        registry.seal("v1", tmp_path / "staged-v1", as_of="2022-05-01", verdict="PROMOTE", parent=None, inputs_sha256="inputs-v1")
    assert snapshot(registry.folder) == before
    assert [p.name for p in (registry.folder / "versions").iterdir()] == ["v1"], "no temporary folder stays"


def test_the_sealed_copy_does_not_follow_the_staged_folder(two: Registry, tmp_path: Path):
    two.promote("v1", 0)
    (tmp_path / "staged-v1" / "bundle" / "serving.safetensors").write_text("changed later")
    live = two.production_path()
    assert live is not None
    assert (live / "bundle" / "serving.safetensors").read_text() == "v1"


@pytest.mark.parametrize("version", ["", "../v", "a/b", ".hidden", "a" * 200])
def test_names_that_lead_elsewhere_are_refused(registry: Registry, tmp_path: Path, version: str, stage):
    with pytest.raises(ConfigError, match="not a name"):
        registry.seal(version, stage(tmp_path / "s"), as_of="2022-05-01", verdict="PROMOTE", parent=None, inputs_sha256="")
    with pytest.raises(ConfigError, match="not a name"):
        Registry(tmp_path, version)


@pytest.mark.parametrize("case", ["absent", "empty", "link", "record", "verdict", "unknown", "folder link"])
def test_what_cannot_be_sealed(registry: Registry, tmp_path: Path, case: str, stage):
    staged, verdict = tmp_path / "staged", "PROMOTE"
    if case == "empty":
        staged.mkdir()
    elif case != "absent":
        stage(staged)
    if case == "link":
        (staged / "link").symlink_to("/etc/hostname")
    if case == "folder link":
        (staged / "link").symlink_to(tmp_path)
    if case == "record":
        (staged / RECORD).write_text("{}")
    if case == "verdict":
        verdict = "HOLD"
    if case == "unknown":
        verdict = "MAYBE"
    with pytest.raises(RegistryError):
        registry.seal("v1", staged, as_of="2022-05-01", verdict=verdict, parent=None, inputs_sha256="")
    assert registry.status().versions == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damaged_files_are_named_and_never_promoted_or_served(two: Registry, damage: str):
    two.promote("v1", 0)
    for version in ("v1", "v2"):
        file = two.folder / "versions" / version / "bundle" / "serving.safetensors"
        if damage == "add":
            file = file.with_name("stranger")
            file.write_text("x")
            continue
        content = file.read_bytes()
        file.unlink()
        if damage == "flip":
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        if damage == "truncate":
            file.write_bytes(content[:-1])
    before = snapshot(two.folder)
    with pytest.raises(CheckpointError, match=file.name) as error:
        two.production_path()
    assert error.value.exit_code == 4
    with pytest.raises(CheckpointError, match=file.name):
        two.promote("v2", 1)
    assert snapshot(two.folder) == before


def test_promote_compares_the_revision(two: Registry):
    two.promote("v1", 0)
    before = snapshot(two.folder)
    with pytest.raises(RaceError, match="the pointer moved during the run: nothing promoted"):
        two.promote("v2", 0)
    assert snapshot(two.folder) == before
    assert two.promote("v2", 1).previous == "v1"
    assert two.promote("v2", 1).revision == 2, "promoting what is live changes nothing"
    assert two.aliases().reference == "v1"


@pytest.mark.parametrize("verdict", ["HOLD", "REJECT"])
def test_only_promote_is_promoted_unless_overridden_with_a_reason(registry: Registry, tmp_path: Path, verdict: str, sealed):
    sealed("v1", verdict)
    with pytest.raises(RegistryError, match="the verdict forbids it"):
        registry.promote("v1", 0, reason="please")
    with pytest.raises(ConfigError, match="an override needs a reason"):
        registry.promote("v1", 0, override=True, reason=" ")
    with pytest.raises(RegistryError, match="was live"):
        registry.rollback("v1")
    assert registry.aliases().production is None
    assert registry.promote("v1", 0, override=True, reason="first of its kind").production == "v1"
    last = registry.status().history[-1]
    assert (last.event, last.verdict, last.reason) == ("promote", verdict, "first of its kind")


def test_freeze_stops_promotions_but_not_rollbacks(two: Registry):
    two.promote("v1", 0)
    two.promote("v2", 1)
    with pytest.raises(ConfigError, match="a freeze needs a reason"):
        two.freeze(" ")
    two.freeze("incident 17")
    with pytest.raises(RegistryError, match="incident 17"):
        two.promote("v1", two.aliases().revision, override=True, reason="now")
    assert two.rollback(reason="bad").production == "v1"
    assert two.aliases().frozen == "incident 17"
    two.unfreeze()
    assert two.promote("v2", two.aliases().revision).production == "v2"


def test_rollback_returns_the_whole_release_and_a_second_one_swaps_back(two: Registry):
    two.promote("v1", 0)
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        two.rollback()
    two.promote("v2", 1)
    assert (two.rollback().production, two.aliases().previous) == ("v1", "v2")
    assert (two.rollback().production, two.aliases().previous) == ("v2", "v1")
    with pytest.raises(RegistryError, match="live already"):
        two.rollback("v2")
    with pytest.raises(RegistryError, match="not a sealed release"):
        two.rollback("v9")


def test_rollback_leaves_a_release_that_is_gone(two: Registry):
    two.promote("v1", 0)
    two.promote("v2", 1)
    shutil.rmtree(two.folder / "versions" / "v2")
    for action in (two.production_path, two.check, lambda: two.promote("v1", 2)):
        with pytest.raises(RegistryError, match="'production' points to a version that cannot be used"):
            action()
    assert (two.rollback().production, two.aliases().previous) == ("v1", None)
    assert two.production_path() is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"production": 7, "revision": "x"}', '{"productoin": "v1"}', '{"version": 2}', "\xff"])
def test_a_corrupt_pointer_file_is_never_guessed_at(two: Registry, content: str):
    two.promote("v1", 0)
    (two.folder / ALIASES).write_bytes(content.encode("latin-1"))
    before = snapshot(two.folder)
    actions = (
        two.aliases, two.production_path, two.check, two.rollback, two.status, two.unfreeze, lambda: two.promote("v2", 1),
        lambda: two.freeze("x"), lambda: two.record_verdict("HOLD", as_of="2022-05-01", inputs_sha256=""),
    )  # fmt: skip
    for action in actions:
        with pytest.raises(RegistryError) as error:
            action()
        assert error.value.exit_code == 4
        assert error.value.remedy
    assert snapshot(two.folder) == before


@pytest.mark.parametrize("place", ["root", "product", "above", "versions"])
def test_a_root_that_is_a_file(tmp_path: Path, place: str, stage):
    staged = stage(tmp_path / "staged")
    root = tmp_path / ("root/below" if place == "above" else "root")
    file = {"root": root, "above": root.parent, "product": root / "feed", "versions": root / "feed" / "versions"}[place]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a file")
    registry = Registry(root, "feed")
    with pytest.raises(RegistryError) as error:
        registry.check()
    assert error.value.remedy
    with pytest.raises(RegistryError):
        registry.seal("v1", staged, as_of="2022-05-01", verdict="PROMOTE", parent=None, inputs_sha256="")
    assert file.read_text() == "a file"


def test_a_root_that_cannot_be_written(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RegistryError, match="cannot be written"):
        registry.check()


def test_history_keeps_verdicts_of_runs_that_were_not_kept(registry: Registry):
    registry.record_verdict("REJECT", as_of="2022-05-02", inputs_sha256="abc", reason="auc/click/all")
    entry = registry.judged("abc")
    assert entry is not None
    assert (entry.verdict, entry.as_of, entry.reason) == ("REJECT", "2022-05-02", "auc/click/all")
    assert registry.judged("abd") is None
    assert registry.aliases() == Aliases()


def test_a_torn_or_unreached_last_line_of_the_history_did_not_happen(two: Registry):
    two.promote("v1", 0)
    path = two.folder / HISTORY
    good = path.read_bytes()
    for tail in (b'{"at": "2022', b'{"at": "x", "event": "promote", "release": "v2", "revision": 2}\n'):
        path.write_bytes(good + tail)
        assert [entry.event for entry in two.status().history] == ["seal", "seal", "promote"]
        two.record_verdict("HOLD", as_of="2022-05-02", inputs_sha256="abc")
        assert path.read_bytes().startswith(good)
        assert [entry.event for entry in two.status().history] == ["seal", "seal", "promote", "verdict"]
    path.write_bytes(b"nonsense\n" + good)
    with pytest.raises(RegistryError, match=f"{HISTORY}:1"):
        two.status()
    assert two.production_path() is not None, "serving does not depend on the history"


def test_status_lists_damaged_versions(two: Registry):
    (two.folder / "versions" / "v1" / RECORD).unlink()
    states = {state.id: state for state in two.status().versions}
    assert states["v1"].record is None
    assert "not a sealed release" in (states["v1"].problem or "")
    assert states["v2"].record is not None


def _promote(root: Path, version: str, barrier, outcomes) -> None:
    registry = Registry(root, "feed")
    barrier.wait()
    try:
        registry.promote(version, 0)
        outcomes.put((version, "won"))
    except RaceError:
        outcomes.put((version, "lost"))


def test_of_concurrent_promotions_exactly_one_wins(registry: Registry, tmp_path: Path, sealed):
    versions = [f"v{number}" for number in range(6)]
    for version in versions:
        sealed(version)
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(len(versions)), context.Queue()
    workers = [context.Process(target=_promote, args=(registry.folder.parent, v, barrier, outcomes)) for v in versions]
    for worker in workers:
        worker.start()
    found = dict(outcomes.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    winners = [version for version, outcome in found.items() if outcome == "won"]
    assert len(winners) == 1
    assert registry.aliases() == Aliases(production=winners[0], reference=winners[0], revision=1)
    assert [entry.release for entry in registry.status().history if entry.event == "promote"] == winners


def _seal(root: Path, text: str, staged: Path, barrier, outcomes) -> None:
    barrier.wait()
    try:
        Registry(root, "feed").seal("v1", staged, as_of="2022-05-01", verdict="PROMOTE", parent=None, inputs_sha256="")
        outcomes.put((text, True))
    except RegistryError:
        outcomes.put((text, False))


def test_of_concurrent_seals_under_one_name_one_content_wins(registry: Registry, tmp_path: Path, stage):
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(4), context.Queue()
    texts = ["a", "a", "b", "b"]
    workers = [
        context.Process(target=_seal, args=(registry.folder.parent, text, stage(tmp_path / str(number), text), barrier, outcomes))
        for number, text in enumerate(texts)
    ]
    for worker in workers:
        worker.start()
    found = [outcomes.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    content = (registry.folder / "versions" / "v1" / "bundle" / "serving.safetensors").read_text()
    assert sorted(found) == sorted((text, text == content) for text in texts)
