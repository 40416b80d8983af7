"""What a step costs as one thing grows and everything else stays: seconds, and the exponent between neighbours.

    OMP_NUM_THREADS=1 python scripts/bench/scaling.py            # under two minutes on an idle core

An exponent of 1 is a cost in proportion, 0 is none, 2 grows as the square. Length is varied at a fixed number of tokens a step (shorter
histories are more of them), so its exponent is that of attention's share alone. Seconds are CPU seconds of the training process where
batches are loaded in it, and wall time for workers, whose work is not in it; medians over a round's steps, then over the rounds, in
which the values take turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from typing import Any

import torch
from synthetic import Case, measure

BASE = Case(dim=64, layers=2, length=32, vocabulary=10_000, batch_tokens=2_048)
# What grows -> its values; the base's own is among them.
GROWTHS: dict[str, tuple[int, ...]] = {
    "length": (32, 128, 512),
    "dim": (32, 64, 128),
    "layers": (1, 2, 4),
    "vocabulary": (10_000, 100_000),
    "batch_tokens": (1_024, 2_048, 4_096),
    "workers": (0, 1, 2),
}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    base = replace(BASE, architecture=options.architecture, steps=options.steps)
    measure(replace(base, steps=1))  # what is slow once
    print(f"{base.architecture}, base: {', '.join(f'{name} {getattr(base, name):,}' for name in GROWTHS)}")
    print("  exponent   ms a step (rounds)         of what")
    for name in options.growths.split(","):
        rounds: dict[int, list[float]] = {value: [] for value in GROWTHS[name]}
        for _ in range(options.rounds):
            for value, seconds in rounds.items():
                seconds.append(_seconds(base, name, value))
        _report(name, rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sasrec")
    parser.add_argument("--growths", default=",".join(GROWTHS), help="which to measure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _seconds(base: Case, name: str, value: int) -> float:
    grown: dict[str, Any] = {name: value}
    measured = measure(replace(base, **grown))
    return statistics.median(measured.wall if name == "workers" else measured.cpu)


def _report(name: str, rounds: dict[int, list[float]]) -> None:
    before: tuple[int, float] | None = None
    for value, seconds in rounds.items():
        middle = statistics.median(seconds)
        grown = f"{exponent(before, (value, middle)):10.2f}" if before and before[0] else " " * 10
        print(f"{grown} {f'{middle * 1e3:.1f} ({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f})':>26}   {name} {value:,}", flush=True)
        before = value, middle


def exponent(before: tuple[int, float], after: tuple[int, float]) -> float:
    """Returns p of cost ~ size^p between two (size, cost)."""
    return math.log(after[1] / before[1]) / math.log(after[0] / before[0])


if __name__ == "__main__":
    main()
