"""How fast and how hard the simulated feed is.

    python scripts/bench/simulate.py [signal=true] [users=4000 days=28 seed=0 ...]

Speed: events per second of processor time (all threads added, numpy's pinned to one), of the feed alone and of the whole stage
(feed, delivery, Parquet, hashes), next to numpy drawing 32 normals an event in the same process: the ratio is free of the
machine's speed. With ``signal=true``: base rates, and AUC on the last seven days of the truth, of production's logged scores, of
counting (smoothed rates by item, user, tab and position from strictly earlier days, log-odds added) and of a logistic regression
on those counts and on the topics that the user watched or skipped in earlier requests, in order (sequence).
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
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from trainer.config import load
from trainer.schema.simulation import BINARY_ACTIONS, SCORE, SimulationSpec
from trainer.simulate import ProductionScorer, World, serve, simulate
from trainer.simulate.feed import TRUTH

JUDGED_DAYS = 7
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
    world = World(spec)
    scorer = ProductionScorer(world)
    feeds, topic_of = [], np.zeros(0, np.int64)
    for day in range(spec.days):
        feeds.append(serve(world, scorer, day))
        topic_of = np.concatenate([topic_of, world.born.topic_I])  # ids count from 1 in order of birth
    cells = {name: np.concatenate([feed.cells[name] for feed in feeds]) for name in feeds[0].cells}
    cells["topic"] = topic_of[cells["item_id"] - 1]
    day_E = np.repeat(np.arange(spec.days), [len(feed) for feed in feeds])
    judged_E = day_E >= spec.days - JUDGED_DAYS
    watched = watched_topics(cells, spec.topics)
    print(f"{'':12s}" + "".join(f"{title:>12s}" for title in ("base rate", "truth", "production", "counting", "sequence", "mean score")))
    for action in BINARY_ACTIONS:
        odds = counting(cells, action, day_E)
        scores = (cells[TRUTH + action], cells[SCORE + action], odds.sum(axis=1))
        aucs = [roc_auc_score(cells[action][judged_E], score_E[judged_E]) for score_E in scores]
        aucs.append(sequence(odds, watched, cells[action], judged_E, day_E >= JUDGED_DAYS))
        numbers = (cells[action].mean(), *aucs, cells[SCORE + action].mean())
        print(f"{action:12s}" + "".join(f"{number:12.4f}" for number in numbers))
    print(f"watch time {cells['watch_time_s'].mean():.2f} s, truth {cells['true_watch_time'].mean():.2f} s")


def counting(cells: dict[str, np.ndarray], action: str, day_E: np.ndarray) -> np.ndarray:
    """Returns the log-odds (E, keys) of smoothed rates by item, user, tab and position, counted on strictly earlier days."""
    label_E = cells[action].astype(float)
    base = label_E.mean()
    odds_EK = np.zeros((len(label_E), len(_PRIORS)))
    for column, (key, prior) in enumerate(_PRIORS.items()):
        key_E = cells[key].astype(np.int64)
        seen, positive = np.zeros(key_E.max() + 1), np.zeros(key_E.max() + 1)
        for day in range(day_E.max() + 1):
            today_E = day_E == day
            rate = (positive[key_E[today_E]] + prior * base) / (seen[key_E[today_E]] + prior)
            odds_EK[today_E, column] = np.log(rate / (1 - rate))
            seen += np.bincount(key_E[today_E], minlength=len(seen))
            positive += np.bincount(key_E[today_E], label_E[today_E], minlength=len(seen))
    return odds_EK


def watched_topics(cells: dict[str, np.ndarray], topics: int) -> sparse.csr_matrix:
    """Returns what each user saw in earlier requests, clicked or not by topic, newest first decayed, crossed with the topic now."""
    state = np.zeros((cells["user_id"].max() + 1, 2 * topics), np.float32)
    open_slates: dict[int, tuple[int, list[int]]] = {}
    rows_ET = np.zeros((len(cells["user_id"]), 2 * topics), np.float32)
    kind_E = cells["topic"] + np.where(cells["click"], 0, topics)
    events = zip(cells["user_id"].tolist(), cells["request_id"].tolist(), kind_E.tolist(), strict=True)
    for event, (user, request, kind) in enumerate(events):
        if user in open_slates and open_slates[user][0] != request:
            for seen in open_slates.pop(user)[1]:
                state[user] *= 0.7
                state[user, seen] += 1
        rows_ET[event] = state[user]
        open_slates.setdefault(user, (request, []))[1].append(kind)
    column_ET = cells["topic"][:, None] + topics * np.arange(2 * topics)
    starts = np.arange(len(rows_ET) + 1) * 2 * topics
    return sparse.csr_matrix((rows_ET.ravel(), column_ET.ravel(), starts), (len(rows_ET), 2 * topics * topics))


def sequence(odds: np.ndarray, watched: sparse.csr_matrix, label_E: np.ndarray, judged_E: np.ndarray, warm_E: np.ndarray) -> float:
    """AUC of a logistic regression on counts and watched topics, fitted between the first and the last week."""
    inputs = sparse.hstack([sparse.csr_matrix(odds), watched]).tocsr()
    fitted_E = warm_E & ~judged_E
    model = LogisticRegression(C=0.3, max_iter=300).fit(inputs[fitted_E], label_E[fitted_E])
    return float(roc_auc_score(label_E[judged_E], model.predict_proba(inputs[judged_E])[:, 1]))


def main() -> None:
    values = {name: yaml.safe_load(value) for name, value in (argument.split("=", 1) for argument in sys.argv[1:])}
    judge = values.pop("signal", False)
    spec = load(SimulationSpec, values, "simulation")
    speed(spec)
    if judge:
        signal(spec)


if __name__ == "__main__":
    main()
