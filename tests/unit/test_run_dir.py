"""A run's folder: what is kept of an earlier attempt, and what is said about it."""

from __future__ import annotations

import json

import pytest

from trainer import run_dir as module
from trainer.run_dir import RunDir


@pytest.fixture
def attempt(tmp_path, capsys):
    """Runs the stage `learn`, whose artefact is a file with its key; returns what it printed and whether it was done."""

    def go(key):
        made = []

        def produce():
            made.append(key)
            (tmp_path / "weights").write_text(str(key))
            return key

        run = RunDir(tmp_path, {})
        run.stage("learn", key, produce, lambda: int((tmp_path / "weights").read_text()), lambda _: (3, "three rows"))
        return capsys.readouterr().out, bool(made)

    return go


def test_a_finished_stage_is_kept(attempt):
    assert attempt(1)[1]
    out, done = attempt(1)
    assert not done and out.rstrip().endswith("three rows (kept)")


@pytest.mark.parametrize("damage", ["", "[]", '{"key": 1}'])
def test_another_key_or_a_damaged_record_does_it_again(attempt, tmp_path, damage):
    attempt(1)
    assert attempt(2)[1]
    (tmp_path / "stages" / "learn.json").write_text(damage)
    out, done = attempt(2)
    assert done and "another version" not in out


def test_what_other_code_finished_is_kept_and_said(attempt, tmp_path, monkeypatch):
    attempt(1)
    monkeypatch.setattr(module, "sha256_code", lambda *names: "mended")
    out, done = attempt(1)
    assert not done and "made by another version of the code" in out and "stages/learn.json" in out
    (tmp_path / "stages" / "learn.json").unlink()  # the remedy that the line names
    out, done = attempt(1)
    assert done and "another version" not in out
    assert json.loads((tmp_path / "stages" / "learn.json").read_text())["code"] == "mended"


def test_code_of_a_package_is_told_apart(tmp_path, monkeypatch):
    from trainer.schema import hashing

    (tmp_path / "package" / "below").mkdir(parents=True)
    (tmp_path / "package" / "below" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(hashing, "_PACKAGES", tmp_path)
    seen = set()
    for name, text in [("below/a.py", "x = 1\n"), ("below/a.py", "x = 2\n"), ("b.py", "x = 2\n")]:
        (tmp_path / "package" / name).write_text(text)
        hashing.sha256_code.cache_clear()
        seen.add(hashing.sha256_code("package"))
    hashing.sha256_code.cache_clear()
    assert len(seen) == 3
