"""What training costs: operations, the machine's limit, and what ten times the rows would cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from models.flops import Work, training_flops
from models.ranker import Ranker
from trainer.config import CostConfig
from trainer.data import BatchPlan, ShardStore
from trainer.data.shards import ShardKey
from trainer.fit.clock import Clock
from trainer.schema.summary import StageRecord

# Dense bf16 products, FLOP/s, from the makers' data sheets (without sparsity). The first name that a device's name holds counts.
BF16_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "B100": 1750e12,
    "A100": 312e12, "A800": 312e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "A40": 150e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "RTX 4090": 165e12, "MI300X": 1307e12, "MI250X": 383e12,
}  # fmt: skip
GROWTH = 10  # times the rows
FIXED = ("release",)  # stages that read no rows


@dataclass(frozen=True)
class Spent:
    """What a training loop spent.

    Attributes:
        flops: Operations of real rows, forward and backward (`models.flops`); a teacher's are not among them.
        positions: Real positions of the trunk: history events, once a step that reads them.
        targets: Targets, likewise.
        step_seconds: Seconds of all steps.
        wait_seconds: Seconds between them, waiting for batches.
        first_seconds: Seconds of the first step.
        steps: Steps.
        peak_flops: FLOP/s that all ranks could do at most; None where unknown.
    """

    flops: int = 0
    positions: int = 0
    targets: int = 0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    first_seconds: float = 0.0
    steps: int = 0
    peak_flops: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the loop, without what observers did."""
        return self.step_seconds + self.wait_seconds


def spent(
    ranker: Ranker, store: ShardStore, plan: BatchPlan, clock: Clock, device: torch.device, *, annealed: int = 0, candidates: int = 0,
    peak: float | None = None,
) -> Spent:  # fmt: skip
    """Sums up a finished training loop.

    Args:
        ranker: What was trained.
        store: Encoded shards.
        plan: All steps.
        clock: What watched the loop.
        device: Where rank 0 ran.
        annealed: Last steps, made a second time by the copy that is annealed.
        candidates: Items of a next-item softmax; 0 for a ranker of actions.
        peak: FLOP/s of one device (``cost.peak_flops``); None looks it up, or measures it on the CPU.
    """
    work = work_of_plan(plan, store, annealed)
    limit = peak_flops(device) if peak is None else peak
    steps = (plan.steps + annealed) * plan.ranks
    return Spent(
        flops=training_flops(ranker, work, candidates, steps), positions=work.tokens, targets=work.targets,
        step_seconds=clock.seconds, wait_seconds=clock.waited, first_seconds=clock.first, steps=plan.steps,
        peak_flops=None if limit is None else limit * (plan.ranks if device.type != "cpu" else 1),
    )  # fmt: skip


def work_of_plan(plan: BatchPlan, store: ShardStore, annealed: int = 0) -> Work:
    """Counts all batches of a plan from lengths alone; the last `annealed` steps count twice."""
    times: dict[ShardKey, np.ndarray] = {}
    for place, batch in enumerate(plan.batches):
        copies = 2 if place // plan.ranks >= plan.steps - annealed else 1
        for part in batch.parts:
            times.setdefault(part.key, np.zeros(store.read(part.key).units, np.int64))[part.units_B] += copies
    total = Work()
    for key, times_U in times.items():
        shard = store.read(key)
        tokens_U, targets_U = np.diff(shard.token_offsets_U1), np.diff(shard.target_offsets_U1)
        times_N = np.repeat(times_U, targets_U)
        total += Work(
            tokens=int(times_U @ tokens_U), sequences=int(times_U.sum()), targets=int(times_U @ targets_U),
            pairs=int(times_U @ ((tokens_U + 1) * (tokens_U + 2) // 2)), target_pairs=int(times_N @ (shard.target_position_N + 2)),
        )  # fmt: skip
    return total


def peak_flops(device: torch.device) -> float | None:
    """Returns the FLOP/s that a device can do at most: of a CPU measured, of a GPU from `BF16_PEAKS`, None if it is unknown."""
    if device.type == "cpu":
        return matmul_ceiling(torch.get_num_threads())
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in BF16_PEAKS.items() if known in name), None)


@cache
def matmul_ceiling(threads: int, seconds: float = 0.1, width: int = 512) -> float:
    """Returns the best rate of an fp32 matrix product on this CPU, FLOP/s; measured once a process and number of threads.

    Args:
        threads: Threads of torch now; another number is another ceiling.
        seconds: How long is tried.
        width: Rows and columns of the factors.
    """
    a, b, out = (torch.rand(width, width) for _ in range(3))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * width**3 / best


def cost_report(spent: Spent, stages: Mapping[str, StageRecord], config: CostConfig) -> dict[str, Any]:
    """Returns what `summary.json` says about the cost of a run.

    Args:
        spent: What the training loop spent.
        stages: All stages of the run.
        config: Price.

    Returns:
        ``flops`` and ``flops_per_second`` of training, ``peak_flops`` of the machine, ``mfu`` (their ratio), ``positions_per_second``,
        ``data_wait`` (share of the loop), ``seconds`` and ``money`` of the whole run, and ``growth``: both at ten times the rows.
    """
    total, loop = sum(record.seconds for record in stages.values()), max(spent.seconds, 1e-9)
    rate = spent.flops / loop
    fixed = fixed_seconds(spent, stages)
    grown = fixed + GROWTH * (total - fixed)
    return {
        "seconds": round(total, 1),
        "flops": spent.flops,
        "flops_per_second": round(rate),
        "peak_flops": None if spent.peak_flops is None else round(spent.peak_flops),
        "mfu": None if not spent.peak_flops else round(rate / spent.peak_flops, 4),
        "positions_per_second": round(spent.positions / loop),
        "data_wait": round(spent.wait_seconds / loop, 4),
        "money": money(total, config),
        "growth": {
            "rows": GROWTH, "fixed_seconds": round(fixed, 1), "seconds": round(grown, 1), "flops": GROWTH * spent.flops,
            "money": money(grown, config),
        },
    }  # fmt: skip


def fixed_seconds(spent: Spent, stages: Mapping[str, StageRecord]) -> float:
    """Returns the seconds of a run that do not grow with its rows: stages that read none, and what its first step took longer.

    Everything else counts as proportional, so what grows more slowly (export, by users; the start of a process) is overrated.
    """
    rest = sum(record.seconds for name, record in stages.items() if name in FIXED)
    others = (spent.step_seconds - spent.first_seconds) / (spent.steps - 1) if spent.steps > 1 else spent.first_seconds
    return rest + max(0.0, spent.first_seconds - others)


def money(seconds: float, config: CostConfig) -> float | None:
    """Returns the price of so many seconds; None where no price is given."""
    return None if config.price_per_hour is None else round(seconds / 3600 * config.price_per_hour, 4)
