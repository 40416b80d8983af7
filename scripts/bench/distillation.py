"""The same student after the same steps, with and without a teacher, on a simulated log.

    python scripts/bench/distillation.py out=DIR [days=4] [seeds=3] [targets=256] [weights=1,5] [model=hstu]

The teacher is production as far as the log knows it: its logged scores. Two students: one with the point-in-time counters of
the shipped configuration, and one without any, which has to learn from ids and histories what the counters would have told it.
Prints the NE of every binary action on the last day, a line a run, then means of the paired differences.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainer.config import RetrainConfig, load
from trainer.pipeline import train
from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import add_days
from trainer.simulate import simulate

FIRST_DAY = "2026-03-02"
SHARED = (
    "registry.root=none", "warm_start=none", "tracking=none", "++fit.device=cpu", "++fit.progress=false", "++scan.workers=1",
    "++rebuild.workers=1", "++evaluation.bootstrap=0", "++model.max_history=30", "++model.dim=32", "++model.head_dim=16",
    "++model.context_dim=64", "++schedule.warmup_steps=10", "++optimizer.lr=0.003", "++optimizer.embedding_lr=0.01",
)  # fmt: skip
STUDENTS = {"with counters": (), "without": ("~features.counters",)}


def composed(name: str, *overrides: str) -> Any:
    """Composes a shipped configuration."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)


def main() -> None:
    """Simulates a log, then trains every student with every arm and seed."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out, days, model = Path(options["out"]), int(options.get("days", 4)), options.get("model", "hstu")
    if not (out / "log").exists():
        simulation = composed("simulate", f"++simulation.days={days}", f"++simulation.first_day={FIRST_DAY}", f"out={out}")["simulation"]
        simulate(load(SimulationSpec, simulation), out / "log")
    arms = {"alone": ("distill=none",)}
    arms |= {f"logged x{weight}": ("distill=logged", f"++distill.weight={weight}") for weight in options.get("weights", "1,5").split(",")}
    for student, features in STUDENTS.items():
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(int(options.get("seeds", 3))):
            for arm, overrides in arms.items():
                name = f"{student}-{arm}-{seed}".replace(" ", "-")
                paths = (f"++data.root={out}/log", f"rebuild.root={out}/examples-{student.replace(' ', '-')}", f"run_dir={out}/{name}")
                chosen = (f"model={model}", f"++fit.batch_targets={options.get('targets', 256)}", f"seed={seed}")
                settings = (*SHARED, *paths, *chosen, *features, *overrides, f"as_of={add_days(FIRST_DAY, days - 1)}")
                summary = train(load(RetrainConfig, composed("retrain", *settings)))
                for action, metrics in summary.challenger.items():
                    if metrics.get("ne") is not None:
                        found[action][arm].append(metrics["ne"])
                line = "  ".join(f"{action} {values[arm][-1]:.4f}" for action, values in found.items() if values[arm])
                print(f"{student}  seed {seed}  {arm:<10} {summary.cost['steps']} steps  {line}", flush=True)
        for action, values in found.items():
            for arm, numbers in values.items():
                gain = np.array(numbers) - np.array(values["alone"])
                each = " ".join(f"{difference:+.4f}" for difference in gain)
                print(f"{student:<14} {action:<10} {arm:<10} NE {np.mean(numbers):.4f}  against alone {gain.mean():+.4f} ({each})")


if __name__ == "__main__":
    main()
