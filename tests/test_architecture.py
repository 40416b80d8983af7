"""The import order of CONTRIBUTING.md, held by a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "simulate",
    "scan",
    "rebuild",
    "data",
    "checkpoint",
    "warm_start",
    "fit",
    "evaluate",
    "export",
    "downstream",
    "gate",
    "diagnose",
    "release",
    "report",
}
# What a stage's package may import of other packages; artefacts are exchanged through trainer.schema.
ALLOWED = {
    "align": set(),
    "simulate": set(),
    "scan": {"logs", "machine"},
    "inject": {"logs"},
    "rebuild": {"logs", "machine"},
    "data": set(),
    "checkpoint": set(),
    "warm_start": set(),
    "fit": {"data", "checkpoint", "warm_start", "days", "machine"},
    "importing": {"checkpoint", "release"},
    "evaluate": {"data", "checkpoint", "metrics"},
    "next_item": {"data", "fit", "run_dir", "checkpoint", "warm_start", "release"},
    "export": {"align"},
    "serving": set(),
    "downstream": {"metrics"},
    "gate": {"metrics"},
    "diagnose": {"metrics"},
    "suites": {"gate", "release"},
    "release": set(),
    "report": {"metrics"},
    "logs": set(),
    "metrics": set(),
    "schema": set(),
    "config": set(),
}
ABOVE = {"stages", "backtest"}  # hand each stage what it needs, so they may import all of them
EVERYWHERE = {"errors", "schema", "config"}


def modules():
    return sorted(path for package in ("trainer", "models") for path in (ROOT / package).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module in ("trainer", "models"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "models":
        assert not any(name.split(".")[0] == "trainer" for name in imports(path)), "models imports nothing of trainer"
        return
    package = relative.parts[1] if len(relative.parts) > 2 else None
    if package is None or package not in ALLOWED:
        return
    allowed = ALLOWED[package] | ({"errors", "schema"} if package in ("schema", "metrics") else EVERYWHERE) | {package, "__version__"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "trainer" and len(parts) > 1:
            assert parts[1] in allowed, f"{relative} imports trainer.{parts[1]}"


def test_every_package_is_in_the_order():
    packages = {path.name for path in (ROOT / "trainer").iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert packages <= set(ALLOWED) | ABOVE, f"say where {packages - set(ALLOWED) - ABOVE} stands"


@pytest.mark.parametrize(
    "name",
    [
        "schema",
        "metrics",
        "scan",
        "rebuild",
        "gate",
        "diagnose",
        "release",
        "export",
        "downstream",
        "simulate",
        "suites",
        "commands",
    ],
)
def test_no_torch(name):
    code = f"import sys, trainer.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"trainer.{name} imports torch"


def test_no_catch_all_modules():
    assert not [path for path in modules() if path.stem in ("utils", "common", "base", "helpers", "misc")]


def test_files_stay_readable():
    long = {str(path.relative_to(ROOT)): lines for path in modules() if (lines := len(path.read_text().splitlines())) > 600}
    assert not long
