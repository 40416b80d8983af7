"""What it costs to replace a model: production continued, grown, stacked, distilled, another architecture, and from scratch.

    python scripts/bench/succession.py --out DIR                                    # simulated log, 30 days, the last 4 judged
    python scripts/bench/succession.py --out DIR --days 90 --nights 7
    python scripts/bench/succession.py --out DIR --log globo --data DIR             # or kuairand: real logs

Production is a two-layer sasrec of width 64, trained once on all earlier days; the new model has four layers of width 128. The
table and `succession.json` are those of `scripts/backtest.py`, which this only calls with the settings of the benchmark;
``OVERRIDES`` after ``--`` are added to them (``-- arms.warm_grown.seeds=1``). A stopped run goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer.backtest import backtest
from trainer.backtest.show import show
from trainer.config import BacktestConfig, load
from trainer.schema.simulation import REPORT_FILE, SimulationSpec
from trainer.simulate import simulate

# Short histories and few checkpoints: the whole table is to fit half an hour of one core.
SETTINGS = (
    "model.max_history=20",
    "fit.batch_targets=256",
    "fit.progress=false",
    "checkpoints=6",
    "scan.workers=1",
    "rebuild.workers=1",
    "tracking=none",
)


def configured(*overrides: str) -> BacktestConfig:
    """Composes `conf/backtest.yaml` with overrides, dotted ones included."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        prefixed = [f"++{item}" if "." in item.split("=")[0] and item[0] not in "~+" else item for item in overrides]
        return load(BacktestConfig, OmegaConf.to_container(compose("backtest", prefixed), resolve=True))


def simulated(out: Path, days: int, users: int, seed: int = 0) -> Path:
    """Writes a simulated log, unless an earlier run has; returns its folder."""
    folder = out / f"log-{days}-{users}-{seed}"
    if not (folder / REPORT_FILE).exists():
        simulate(SimulationSpec(days=days, users=users, seed=seed), folder)
    return folder


def main() -> None:
    options = _arguments()
    root = simulated(options.out, options.days, options.users) if options.log == "simulated" else options.data
    config = configured(
        f"data={options.log}", f"data.root={root}", f"run_dir={options.out}/run", f"rebuild.root={options.out}/examples",
        f"nights={options.nights}", f"seed={options.seed}", *SETTINGS, *options.overrides,
    )  # fmt: skip
    show(backtest(config))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", default="simulated", choices=("simulated", "globo", "kuairand"))
    parser.add_argument("--data", type=Path, help="root of a real log")
    parser.add_argument("--days", type=int, default=30, help="length of the simulated log")
    parser.add_argument("--users", type=int, default=3000, help="users of the simulated log")
    parser.add_argument("--nights", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    options = parser.parse_args()
    if options.log != "simulated" and options.data is None:
        parser.error(f"--log {options.log} needs --data")
    return options


if __name__ == "__main__":
    main()
