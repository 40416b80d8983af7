"""How fast and how hard the simulated feed is.

    python scripts/bench/simulate.py [signal=true] [users=4000 days=28 seed=0 ...]

Speed: events per second of processor time (all threads added, numpy's pinned to one), of the feed alone and of the whole stage
(feed, delivery, Parquet, hashes), next to numpy drawing 32 normals an event in the same process: the ratio is free of the
machine's speed. With
``signal=true``: base rates, and the AUC of the truth, of production's logged scores and of counting on the last seven days.
Any other argument is a field of `SimulationSpec`.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from trainer.config import load
from trainer.schema.simulation import BINARY_ACTIONS, SCORE, SimulationSpec
from trainer.simulate import ProductionScorer, World, serve, simulate
from trainer.simulate.feed import TRUTH

_PRIORS = {"item_id": 20, "user_id": 5, "tab": 50, "position": 50}  # key -> pseudo-count


def speed(spec: SimulationSpec) -> None:
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        simulate(SimulationSpec(days=1), Path(folder) / "warm-up")  # imports that pyarrow puts off
        events, feed_s = timed(lambda: run_feed(spec))
        _, stage_s = timed(lambda: simulate(spec, Path(folder) / "measured"))
    rng = np.random.default_rng(0)
    _, numpy_s = timed(lambda: sum(rng.standard_normal((events // spec.days, 32)).shape[0] for _ in range(spec.days)))
    print(f"{spec.users:,} users, {spec.days} days, {events:,} events ({events // spec.days:,} a day)")
    print(f"feed   {events / feed_s:10,.0f} events/s   {feed_s / numpy_s:5.1f} x the time numpy takes for 32 normals an event")
    print(f"stage  {events / stage_s:10,.0f} events/s   {stage_s / numpy_s:5.1f} x")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def timed(task: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.process_time()
    return task(), time.process_time() - begun


def run_feed(spec: SimulationSpec) -> int:
    world = World(spec)
    scorer = ProductionScorer(world)
    return sum(len(serve(world, scorer, day)) for day in range(spec.days))


def signal(spec: SimulationSpec) -> None:
    from sklearn.metrics import roc_auc_score

    world = World(spec)
    scorer = ProductionScorer(world)
    feeds = [serve(world, scorer, day) for day in range(spec.days)]
    cells = {name: np.concatenate([feed.cells[name] for feed in feeds]) for name in feeds[0].cells}
    day_E = np.repeat(np.arange(spec.days), [len(feed) for feed in feeds])
    judged_E = day_E >= spec.days - 7
    print(f"{'':12s}{'base rate':>11s}{'truth AUC':>11s}{'production':>12s}{'counting':>10s}{'mean score':>12s}")
    for action in BINARY_ACTIONS:
        label_E = cells[action]
        scores = (cells[TRUTH + action], cells[SCORE + action], counting(cells, action, day_E))
        truth, production, counted = (roc_auc_score(label_E[judged_E], score_E[judged_E]) for score_E in scores)
        print(f"{action:12s}{label_E.mean():11.4f}{truth:11.4f}{production:12.4f}{counted:10.4f}{cells[SCORE + action].mean():12.4f}")
    print(f"watch time {cells['watch_time_s'].mean():.2f} s, truth {cells['true_watch_time'].mean():.2f} s")


def counting(cells: dict[str, np.ndarray], action: str, day_E: np.ndarray) -> np.ndarray:
    """Returns log-odds of smoothed rates by item, user, tab and position from strictly earlier days, added."""
    label_E = cells[action].astype(float)
    base = label_E.mean()
    odds_E = np.zeros(len(label_E))
    for key, prior in _PRIORS.items():
        key_E = cells[key].astype(np.int64)
        seen_K, positive_K = np.zeros(key_E.max() + 1), np.zeros(key_E.max() + 1)
        for day in range(day_E.max() + 1):
            today_E = day_E == day
            rate_E = (positive_K[key_E[today_E]] + prior * base) / (seen_K[key_E[today_E]] + prior)
            odds_E[today_E] += np.log(rate_E / (1 - rate_E))
            seen_K += np.bincount(key_E[today_E], minlength=len(seen_K))
            positive_K += np.bincount(key_E[today_E], label_E[today_E], minlength=len(seen_K))
    return odds_E


def main() -> None:
    values = {name: yaml.safe_load(value) for name, value in (argument.split("=", 1) for argument in sys.argv[1:])}
    judge = values.pop("signal", False)
    spec = load(SimulationSpec, values, "simulation")
    speed(spec)
    if judge:
        signal(spec)


if __name__ == "__main__":
    main()
