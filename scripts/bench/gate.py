"""How long one verdict takes: a table of 1,000,000 rows, 5 actions, 50 countries, 100,000 users, slates of 5.

    python scripts/bench/gate.py                                    # judged in this process; wall and CPU seconds, peak memory
    python scripts/bench/gate.py --rows 200000 --actions 2 --profile

Labels are drawn from production's own scores with an effect of the user on top; the challenger adds noise of 0.05 to the logits. It has to
be promoted. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from trainer.config import load
from trainer.gate import judge
from trainer.schema.policy import GatePolicy, RuleSet

NOISE = 0.05
CONF = Path(__file__).resolve().parents[2] / "conf" / "gate"


def table(rows: int, actions: int, countries: int, users: int, seed: int) -> pa.Table:
    """Returns predictions as `trainer.schema.predictions` describes them."""
    rng = np.random.default_rng(seed)
    user_N = rng.integers(0, users, rows)
    columns: dict[str, np.ndarray] = {
        "user": user_N, "item": rng.integers(0, 20_000, rows), "request": user_N * 4 + rng.integers(0, 2, rows),
        "time": np.full(rows, 1_650_000_000_000), "country": rng.integers(0, countries, users)[user_N],
    }  # fmt: skip
    value = {"production": np.zeros(rows), "challenger": np.zeros(rows)}
    for index in range(actions):
        logit_N = -2.0 - 0.5 * index + rng.normal(0, 0.7, users)[user_N] + rng.normal(0, 1, rows)
        scores = {"production": logit_N, "challenger": logit_N + rng.normal(0, NOISE, rows)}
        columns[f"label_a{index}"] = (rng.random(rows) < 1 / (1 + np.exp(-logit_N))).astype(float)
        for model, z_N in scores.items():
            columns[f"{model}_a{index}"] = 1 / (1 + np.exp(-z_N))
            value[model] += (index + 1) * columns[f"{model}_a{index}"]
    return pa.table(columns | {f"value_{model}": x_N for model, x_N in value.items()})


def main() -> None:
    """Judges one table and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("actions", 5), ("countries", 50), ("users", 100_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--policy", default="refresh", choices=("refresh", "launch"))
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    asked = parser.parse_args()
    policy = load(GatePolicy, yaml.safe_load((CONF / f"{asked.policy}.yaml").read_text()))
    predictions = table(asked.rows, asked.actions, asked.countries, asked.users, asked.seed)
    profile, start, cpu = cProfile.Profile(), time.perf_counter(), time.process_time()
    if asked.profile:
        profile.enable()
    verdict = judge(predictions, policy, RuleSet())
    profile.disable()
    found = {
        "rows": asked.rows, "actions": asked.actions, "slices": asked.countries, "verdict": verdict.verdict, "checks": len(verdict.checks),
        "seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    print(json.dumps(found))
    if asked.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(30)


if __name__ == "__main__":
    main()
