"""A full disk or a kill at every flush in turn: the registry is as before, or as after; never between."""

import errno
import json
import os
from pathlib import Path

import pytest

from trainer.errors import RegistryError
from trainer.release import Registry

FLUSHES = 60  # more than any operation makes


def prepare(root: Path, staged: Path) -> Registry:
    registry = Registry(root, "feed")
    for version in ("v1", "v2"):
        folder = staged / version
        folder.mkdir(parents=True)
        (folder / "weights").write_text(version)
        (folder / "verdict.json").write_text(json.dumps({"verdict": "PROMOTE"}))
    seal(registry, staged, "v1")
    registry.promote("v1", 0)
    return registry


def seal(registry: Registry, staged: Path, version: str) -> None:
    registry.seal(version, staged / version, as_of="2022-05-01", verdict="PROMOTE", parent=None, inputs_sha256=version)


def state(registry: Registry) -> tuple[object, ...]:
    status = registry.status()
    events = [(entry.event, entry.release, entry.revision) for entry in status.history]
    return status.aliases, [version.id for version in status.versions if version.record], events


OPERATIONS = {
    "seal": lambda registry, staged: seal(registry, staged, "v2"),
    "promote": lambda registry, staged: registry.promote("v2", 1),
    "freeze": lambda registry, staged: registry.freeze("incident"),
    "verdict": lambda registry, staged: registry.record_verdict("HOLD", as_of="2022-05-02", inputs_sha256="x"),
}


def failing_fsync(monkeypatch: pytest.MonkeyPatch, at: int, fail) -> None:
    real, calls = os.fsync, iter(range(10_000))

    def fsync(handle: int) -> None:
        if next(calls) == at:
            fail()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_is_one_clear_error_and_nothing_half_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    failures = 0
    for at in range(FLUSHES):
        staged = tmp_path / f"staged-{at}"
        registry = prepare(tmp_path / f"registry-{at}", staged)
        if name == "promote":
            seal(registry, staged, "v2")
        before = state(registry)
        with monkeypatch.context() as patch:
            failing_fsync(patch, at, full)
            try:
                OPERATIONS[name](registry, staged)
            except RegistryError as error:
                failures += 1
                assert "No space left" in str(error)
                assert "free some space" in str(error)
            else:
                break
        now = state(registry)
        leftovers = [p.name for p in registry.folder.rglob(".*")]
        assert leftovers == []
        if now == before:
            OPERATIONS[name](registry, staged)  # the same command again
        assert state(registry) != before
    assert failures >= 1, "the test never met a full disk"


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_flush_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    kills = 0
    for at in range(FLUSHES):
        staged = tmp_path / f"staged-{at}"
        registry = prepare(tmp_path / f"registry-{at}", staged)
        if name == "promote":
            seal(registry, staged, "v2")
        before = state(registry)
        child = os.fork()
        if child == 0:
            with monkeypatch.context() as patch:
                failing_fsync(patch, at, lambda: os._exit(9))
                OPERATIONS[name](registry, staged)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        if code == 0:
            break
        kills += 1
        if state(registry) == before:
            OPERATIONS[name](registry, staged)
        assert state(registry) != before
        assert registry.production_path() is not None
    assert kills >= 1, "the test never killed anything"
