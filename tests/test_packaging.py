"""The wheel holds every package and every configuration file."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for top in ("trainer", "models") for path in (ROOT / top).rglob("__init__.py")}
    assert listed == found | {"trainer.conf"}


def test_configuration_is_found_by_its_import_name():
    from importlib.resources import files

    shipped = {path.name for path in files("trainer.conf").iterdir()}
    assert {"retrain.yaml", "data", "gate"} <= shipped


def test_console_scripts_exist():
    import trainer.commands

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, name = target.split(":")
        assert module == "trainer.commands" and callable(getattr(trainer.commands, name))
