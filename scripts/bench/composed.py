"""What benchmarks of whole jobs share: the log that they run on, and the shipped configuration with their settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer.config import load
from trainer.schema.simulation import REPORT_FILE, SimulationSpec
from trainer.simulate import simulate

T = TypeVar("T")


def configured(kind: type[T], name: str, *overrides: str) -> T:
    """Composes `conf/<name>.yaml` with overrides, dotted ones included."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        prefixed = [f"++{item}" if "." in item.split("=")[0] and item[0] not in "~+" else item for item in overrides]
        return load(kind, OmegaConf.to_container(compose(name, prefixed), resolve=True))


def log_arguments(description: str | None, real: Sequence[str], days: int, users: int) -> argparse.ArgumentParser:
    """Returns a parser of what every such benchmark is told: where to work, on which log, and further settings.

    Args:
        description: Help text.
        real: Real logs that it may run on besides the simulated one.
        days: Default length of the simulated log.
        users: Default number of its users.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", default="simulated", choices=("simulated", *real))
    parser.add_argument("--data", type=Path, help="root of a real log")
    parser.add_argument("--days", type=int, default=days, help="length of the simulated log")
    parser.add_argument("--users", type=int, default=users, help="users of the simulated log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; a real log has to lie somewhere."""
    options = parser.parse_args()
    if options.log != "simulated" and options.data is None:
        parser.error(f"--log {options.log} needs --data")
    return options


def log_settings(options: argparse.Namespace) -> list[str]:
    """Returns the settings of a run on the chosen log; a simulated one is written first, unless an earlier run has."""
    root = options.data
    if options.log == "simulated":
        root = options.out / f"log-{options.days}-{options.users}-{options.seed}"
        if not (root / REPORT_FILE).exists():
            simulate(SimulationSpec(days=options.days, users=options.users, seed=options.seed), root)
    return [
        f"data={options.log}", f"data.root={root}", f"run_dir={options.out}/run", f"rebuild.root={options.out}/examples",
        f"seed={options.seed}", "fit.progress=false", "scan.workers=1", "rebuild.workers=1", "tracking=none",
    ]  # fmt: skip
