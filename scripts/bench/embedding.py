"""What a step costs at vocabularies of different size, everything else alike; and the memory that tables take, beside the formula.

    OMP_NUM_THREADS=1 python scripts/bench/embedding.py

Items and users grow together, authors are a tenth of them; every batch has the same number of distinct ids (`synthetic.py`). The
vocabularies take turns, round after round. The first column is the ratio of CPU seconds a step to the smallest vocabulary: the
median over rounds of each round's median step. Memory is the growth of a process's peak over that at the smallest vocabulary.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from synthetic import Case, Measured, measure


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    for kind in options.kinds.split(","):
        cases = [_case(options, kind, int(size)) for size in options.vocabularies.split(",")]
        peaks = [_peak(case) for case in cases]
        timed: dict[int, list[Measured]] = defaultdict(list)
        for _ in range(options.rounds):
            for case in cases:
                timed[case.vocabulary].append(measure(case))
        _report(kind, cases, timed, peaks)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", default="10000,100000,1000000", help="the smallest first")
    parser.add_argument("--kinds", default="adamw,rowwise_adagrad", help="optimizer.tables")
    parser.add_argument("--architecture", default="sasrec")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _case(options: argparse.Namespace, kind: str, vocabulary: int) -> Case:
    return Case(
        architecture=options.architecture, vocabulary=vocabulary, dim=options.dim, batch_tokens=options.batch_tokens, tables=kind,
        steps=options.steps,
    )  # fmt: skip


def predicted(case: Case) -> int:
    """Bytes of all tables in training, by the formula of `trainer.fit.tables.TableOptimizer`, averaged weights included."""
    rows, width = sum(case.vocabularies.values()), case.dim  # every table of these rankers is as wide as the model
    state = 8 * rows * width + 4 * rows if case.tables == "adamw" else 8 * rows
    return 4 * rows * width + state + 4 * rows * width + 8 * rows


def _peak(case: Case) -> int:
    """Bytes that a process of its own holds at most while it trains two steps."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_briefly, (case,))


def _train_briefly(case: Case) -> int:
    torch.set_num_threads(1)
    measure(Case(**{**vars(case), "steps": 1}))
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _report(kind: str, cases: list[Case], timed: dict[int, list[Measured]], peaks: list[int]) -> None:
    print(f"\n{kind}, {cases[0].architecture}, {cases[0].batch_tokens:,} tokens a step, d {cases[0].dim}")
    print("  ratio   CPU ms a step (rounds)   wall ms   items, users       tables   growth predicted    measured")
    first = None
    for case, peak in zip(cases, peaks, strict=True):
        rounds = [statistics.median(measured.cpu) * 1e3 for measured in timed[case.vocabulary]]
        wall = statistics.median(value for measured in timed[case.vocabulary] for value in measured.wall) * 1e3
        middle = statistics.median(rounds)
        first = first or middle
        spread = f"{middle:.1f} ({min(rounds):.1f} to {max(rounds):.1f})"
        total, growth, found = (size / 2**20 for size in (predicted(case), predicted(case) - predicted(cases[0]), peak - peaks[0]))
        print(
            f"{middle / first:7.2f} {spread:>24} {wall:9.1f} {case.vocabulary:14,} {total:8,.0f} MiB {growth:14,.0f} MiB {found:7,.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
