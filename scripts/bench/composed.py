"""What benchmarks of whole jobs share: the log that they run on, and the shipped configuration with their settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer.config import load
from trainer.schema.simulation import REPORT_FILE, SimulationSpec
from trainer.simulate import simulate

T = TypeVar("T")
USER = "user_id"  # of both real logs
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # spreads users evenly, whatever their numbers (Knuth, TAOCP 3, 6.4)


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
    parser.add_argument("--one-in", type=int, default=1, metavar="N", help="of a real log, one user in N")
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
    elif options.one_in > 1:
        root = some_users(root, options.out / f"log-one-in-{options.one_in}", options.one_in)
    return [
        f"data={options.log}", f"data.root={root}", f"run_dir={options.out}/run", f"rebuild.root={options.out}/examples",
        f"seed={options.seed}", "fit.progress=false", "scan.workers=1", "rebuild.workers=1", "tracking=none",
    ]  # fmt: skip


def some_users(root: Path, out: Path, one_in: int) -> Path:
    """Writes a log with one user in so many: rows that name another are left out, files that name none are linked.

    Args:
        root: The log.
        out: Folder for the smaller one; what lies there already is written again.
        one_in: How many users stand behind each that is kept.

    Returns:
        `out`.
    """
    for path in (path for path in sorted(root.rglob("*")) if path.is_file()):
        target = out / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if path.suffix != ".parquet" or USER not in pq.read_schema(path).names:
            target.symlink_to(path.absolute())
            continue
        table = pq.read_table(path, partitioning=None)
        place_N = table[USER].to_numpy().astype(np.uint64) * GOLDEN >> np.uint64(40)
        pq.write_table(table.filter(pa.array(place_N % np.uint64(one_in) == 0)), target, write_page_checksum=True)
    return out
