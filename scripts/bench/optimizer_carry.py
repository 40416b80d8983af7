"""What becomes of the optimizer's state at a warm start: loss by step on the same batches, in the first 200 steps.

    python scripts/bench/optimizer_carry.py --out DIR            # simulated log; three seeds

Production is trained on all days but the last two; then every arm learns one new day, with the same batches and the same
dropout, so losses are compared step by step:

    carry          moments by name and row, new rows start with the second moment of rows that are met as often
    carry_zeros    the same, but new rows start with zeros under the large step count: what a copy by hand does
    reset          no moments, full learning rate at once         reset_rewarm   no moments, 100 steps of warm-up
    shipped        carry, with the shipped schedule: 20 steps of warm-up to 0.3 of the learning rate

All but `shipped` train at the full rate. A spike is a step whose loss exceeds carry's by more than `SPIKE` nats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from succession import SETTINGS, configured, simulated
from torch import Tensor

from trainer.backtest import backtest
from trainer.fit import begin
from trainer.next_item.run import hardware
from trainer.schema.succession import Succession
from trainer.warm_start import carry_moments

STEPS, SPIKE = 200, 0.05
ARMS = {"carry": "production_continued", "carry_zeros": "production_continued", "reset": "reset", "reset_rewarm": "reset_rewarm",
        "shipped": "shipped"}  # fmt: skip


def zeros_for_new_rows(*arguments: object) -> Mapping[str, Mapping[str, Tensor]]:
    """Carries moments as by hand: rows that production never touched keep second moments of zero."""
    carried = carry_moments(*arguments)  # type: ignore[arg-type]
    for state in carried.values():
        if "last" in state and "exp_avg_sq" in state:
            state["exp_avg_sq"][state["last"] == 0] = 0.0
    return carried


def losses(run: Path, arm: str, day: str, seed: int) -> np.ndarray:
    """Returns the loss of each step of a night, before the step."""
    lines = (run / f"{arm}-seed{seed}" / day / "challenger-fit" / "steps.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])[:STEPS]


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Runs all arms with one seed; returns their figures."""
    log = simulated(options.out, options.days, options.users, seed)
    settings = (
        *SETTINGS, "arms=moments", f"data.root={log}", f"rebuild.root={options.out}/examples-{seed}", f"seed={seed}", "nights=1",
        f"fit.batch_targets={options.batch}", "checkpoints=0",
    )  # fmt: skip
    run, zeros = options.out / f"run-{seed}", options.out / f"zeros-{seed}"
    plain = backtest(configured(*settings, f"run_dir={run}"))
    found: dict[str, Succession] = dict.fromkeys(ARMS, plain)
    with patch.object(begin, "carry_moments", zeros_for_new_rows):
        found["carry_zeros"] = backtest(configured(*settings, f"run_dir={zeros}"))
    day, action = plain.days[0], plain.results[0].action
    base_S = losses(run, ARMS["carry"], day, seed)
    figures = {}
    for arm, name in ARMS.items():
        excess_S = losses(zeros if arm == "carry_zeros" else run, name, day, seed) - base_S
        result = next(r for r in found[arm].results if (r.arm, r.action) == (name, action))
        figures[arm] = {
            "excess": float(excess_S.mean()), "first": float(excess_S[:20].mean()), "largest": float(excess_S.max()),
            "spikes": int((excess_S > SPIKE).sum()), "ne": result.nights[day],
        }  # fmt: skip
    return figures


def main() -> None:
    options = _arguments()
    torch.set_num_threads(1)
    runs = [one_seed(options, seed) for seed in range(options.seeds)]
    print(
        f"\nexcess loss over carry, nats a step, first {STEPS} steps of {options.batch} targets, {options.seeds} seeds; {hardware('cpu')}"
    )
    columns = {
        "first": "mean, steps 1-20",
        "excess": "mean, 1-200",
        "largest": "largest",
        "spikes": f"steps > {SPIKE}",
        "ne": "NE next day",
    }
    print(f"{'':14s}" + "".join(f"{title:>30s}" for title in columns.values()))
    for arm in ARMS:
        cells = []
        for key in columns:
            values = [run[arm][key] for run in runs]
            form = "d" if key == "spikes" else ".4f"
            cells.append(f"{np.mean(values):.4f} ({min(values):{form}} to {max(values):{form}})")
        print(f"{arm:14s}" + "".join(f"{cell:>30s}" for cell in cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=int, default=12)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=24)
    return parser.parse_args()


if __name__ == "__main__":
    main()
