"""The same student after the same steps, with and without a teacher, on a simulated log.

    python scripts/bench/distillation.py out=DIR [days=8] [seeds=3] [targets=1024] [weights=1]

Teachers: the scores that the simulated production logged, and a live sasrec bundle; the student is an hstu of other dims, so
teacher and student share nothing. Prints the NE of every gated binary action on the day after, a line an arm and seed, then
means of the paired differences.
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
from trainer.pipeline import retrain, train
from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import add_days
from trainer.simulate import simulate

SHARED = (
    "++tracking.name=none", "++fit.device=cpu", "++fit.progress=false", "++scan.workers=1", "++rebuild.workers=1",
    "++downstream.enabled=false", "++export.enabled=false", "++model.max_history=30", "++evaluation.bootstrap=0",
)  # fmt: skip
STUDENT = (
    "model=hstu", "warm_start=none", "++model.dim=32", "++model.head_dim=16", "++model.context_dim=64", "++schedule.warmup_steps=10",
)  # fmt: skip


def configured(name: str, *overrides: str) -> Any:
    """Composes a shipped configuration."""
    with initialize_config_module("trainer.conf", version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)


def main() -> None:
    """Simulates, trains the teacher once, then every arm with every seed."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out, days = Path(options["out"]), int(options.get("days", 8))
    log = out / "log"
    if not log.exists():
        simulate(load(SimulationSpec, configured("simulate", f"++simulation.days={days}", "out=x")["simulation"]), log)
    last = add_days("2026-03-02", days - 1)
    paths = (f"++data.root={log}", f"registry.root={out}/registry", f"rebuild.root={out}/examples")

    def config(run: str, *overrides: str) -> RetrainConfig:
        return load(RetrainConfig, configured("retrain", *SHARED, *paths, f"run_dir={out}/{run}", *overrides))

    if not (out / "registry").exists():
        retrain(config("teacher", f"as_of={add_days(last, -1)}", "gate.first=promote", "++fit.passes=3", "++optimizer.embedding_lr=0.005"))
    arms = {"alone": ("distill=none",)}
    for weight in options.get("weights", "1").split(","):
        arms |= {f"{source} {weight}": (f"distill={source}", f"++distill.weight={weight}") for source in ("logged", "production")}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(int(options.get("seeds", 3))):
        for arm, overrides in arms.items():
            run = f"student-{arm.replace(' ', '-')}-{seed}"
            targets = f"++fit.batch_targets={options.get('targets', 1024)}"
            summary = train(config(run, f"as_of={last}", f"seed={seed}", targets, *STUDENT, *overrides))
            for action, metrics in summary.challenger.items():
                if metrics.get("ne") is not None:
                    found[action][arm].append(metrics["ne"])
            line = "  ".join(f"{action} {values[arm][-1]:.4f}" for action, values in found.items() if values[arm])
            print(f"seed {seed}  {arm:<14} {summary.cost['steps']} steps  {line}", flush=True)
    for action, values in found.items():
        alone = np.array(values["alone"])
        for arm, numbers in values.items():
            gain = np.array(numbers) - alone
            print(f"{action:<12} {arm:<14} NE {np.mean(numbers):.4f}  against alone {gain.mean():+.4f}  {np.round(gain, 4).tolist()}")


if __name__ == "__main__":
    main()
