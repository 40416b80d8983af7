"""The cost report: operations by hand, the machine's limit, money and growth."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import models
from models.flops import Work, training_flops, work_of
from tests.unit.models.test_flops import LENGTHS, POSITIONS, batch_of, shape_of
from trainer.config import CostConfig
from trainer.data import BatchPlan
from trainer.data.plan import PlannedBatch
from trainer.data.shards import ShardKey
from trainer.errors import ConfigError
from trainer.fit import cost
from trainer.fit.clock import Clock
from trainer.fit.cost import Spent, cost_report, fixed_seconds, matmul_ceiling, peak_flops, spent, work_of_plan
from trainer.report.parts import cost as cost_part
from trainer.schema.summary import StageRecord

KEY = ShardKey("2024-01-01", 0)


def store():
    """One shard with the units of `batch_of`."""
    shard = SimpleNamespace(
        units=len(LENGTHS), token_offsets_U1=np.cumsum([0, *LENGTHS]), target_offsets_U1=np.cumsum([0, *map(len, POSITIONS)]),
        target_position_N=np.array([p for group in POSITIONS for p in group]),
    )  # fmt: skip
    return SimpleNamespace(read=lambda key: shard)


def plan(*batches, ranks=1):
    return BatchPlan([PlannedBatch(KEY, np.array(units, np.int64)) for units in batches], ranks)


def stages(**seconds):
    return {name: StageRecord(seconds=value, rows=1, status="done") for name, value in seconds.items()}


def test_the_work_of_a_plan_is_that_of_its_batches():
    batch = batch_of(LENGTHS, POSITIONS)
    assert work_of_plan(plan([0, 1, 2]), store()) == work_of(batch)
    assert work_of_plan(plan([0], [2], [1]), store()) == work_of(batch)
    assert work_of_plan(plan([0, 1, 2], [0, 1, 2]), store(), annealed=1) == work_of(batch) + work_of(batch) + work_of(batch)
    beside = PlannedBatch(KEY, np.array([0, 1]), beside=PlannedBatch(KEY, np.array([2]), new=False))
    assert work_of_plan(BatchPlan([beside]), store()) == work_of(batch)
    assert work_of_plan(plan([0], [1], [2], [], ranks=2), store(), annealed=1) == work_of(batch) + work_of(batch_of([7], [POSITIONS[2]]))


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_what_was_spent(architecture):
    ranker, clock = models.build(shape_of(architecture)), Clock()
    clock.seconds, clock.waited, clock.first = 9.0, 1.0, 3.0
    total = spent(ranker, store(), plan([0, 1, 2], [1]), clock, torch.device("cpu"), peak=1e9)
    whole, second = batch_of(LENGTHS, POSITIONS), batch_of([3], [[3]])
    assert total.flops == training_flops(ranker, whole) + training_flops(ranker, second)
    assert (total.positions, total.targets, total.steps) == (25 + 3, 8 + 1, 2)
    assert (total.step_seconds, total.wait_seconds, total.first_seconds, total.peak_flops) == (9.0, 1.0, 3.0, 1e9)
    assert spent(ranker, store(), plan([0], [1], ranks=2), clock, torch.device("cuda"), peak=1e9).peak_flops == 2e9


def test_the_report_by_hand():
    loop = Spent(flops=5_000, positions=80, targets=20, step_seconds=9.0, wait_seconds=1.0, first_seconds=3.0, steps=7, peak_flops=2_000.0)
    report = cost_report(loop, stages(scan=20.0, train=30.0, release=10.0), CostConfig(price_per_hour=3.6))
    assert (report["seconds"], report["flops_per_second"], report["mfu"], report["positions_per_second"]) == (60.0, 500, 0.25, 8)
    assert (report["data_wait"], report["money"]) == (0.1, 0.06)
    fixed = 10.0 + (3.0 - 1.0)  # a usual step takes one second
    assert fixed_seconds(loop, stages(scan=20.0, train=30.0, release=10.0)) == fixed
    assert report["growth"] == {
        "rows": 10, "fixed_seconds": fixed, "seconds": fixed + 10 * (60 - fixed), "flops": 50_000,
        "money": pytest.approx((fixed + 10 * (60 - fixed)) / 1000, abs=1e-4),
    }  # fmt: skip
    json.dumps(report, allow_nan=False)


def test_what_is_unknown_is_said_to_be_unknown():
    report = cost_report(Spent(), stages(scan=1.0), CostConfig())
    assert report["mfu"] is report["peak_flops"] is report["money"] is report["growth"]["money"] is None
    assert report["flops_per_second"] == 0
    for setting in ({"price_per_hour": 0.0}, {"peak_flops": -1.0}):
        with pytest.raises(ConfigError):
            CostConfig(**setting)


def test_the_ceiling_of_a_cpu_is_measured_once_and_bounds_a_plain_product():
    threads = torch.get_num_threads()
    assert peak_flops(torch.device("cpu")) == matmul_ceiling(threads) > 1e9
    assert peak_flops(torch.device("cpu")) == matmul_ceiling(threads)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A10G", 70e12),
     ("NVIDIA A10", 125e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("Something else", None)],
)  # fmt: skip
def test_peaks_of_gpus_go_by_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


def play(clock, number, device):
    """One of two steps, as Lightning tells of it."""
    trainer = SimpleNamespace(datamodule=SimpleNamespace(cursor=number, plan=SimpleNamespace(steps=2)))
    task = SimpleNamespace(device=torch.device(device))
    clock.on_train_batch_start(trainer, task, None, number)
    clock.on_train_batch_end(trainer, task, None, None, number)
    clock.observed.on_train_batch_end(trainer, task, None, None, number)


def test_the_last_step_counts_what_the_device_still_has_to_do(monkeypatch):
    now, waited = [0.0], []
    monkeypatch.setattr("trainer.fit.clock.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device.type) or now.__setitem__(0, now[0] + 7))
    clock = Clock()
    play(clock, 0, "cuda")
    assert (clock.seconds, waited) == (0, [])
    play(clock, 1, "cuda")
    assert (clock.seconds, waited) == (7, ["cuda"])


def test_the_clock_tells_steps_from_waiting_and_from_observers(monkeypatch):
    """Two steps of 5 s: 1 s and 2 s of waiting, and an observer that takes 100 s after the first."""
    now = iter([0, 10, 11, 16, 116, 118, 123, 124])
    monkeypatch.setattr("trainer.fit.clock.time.perf_counter", lambda: next(now))
    clock = Clock()
    clock.observed.on_train_start(None, None)
    for number in range(2):
        play(clock, number, "cpu")
    assert (clock.seconds, clock.waited, clock.first, clock.steps) == (10, 3, 5, [5, 5])
    again = Clock.__new__(Clock)
    again.load_state_dict(clock.state_dict())
    assert (again.seconds, again.waited, again.first) == (10, 3, 5)


def test_the_page_says_it_in_words():
    loop = Spent(flops=5 * 10**12, step_seconds=9.0, wait_seconds=1.0, first_seconds=3.0, steps=7, peak_flops=1e12)
    sentence, facts = cost_part(cost_report(loop, stages(train=30.0), CostConfig(price_per_hour=36.0)))
    assert "5 TFLOP at 500 GFLOP/s" in sentence and "50" in sentence and "10 times the rows" in sentence and "0.30" in sentence
    assert "growth" not in {fact.name for fact in facts}
    assert cost_part({}) == ("", []) and cost_part(None) == ("", [])


def test_no_work_is_no_work():
    assert work_of_plan(BatchPlan([]), store()) == Work()
    assert cost.GROWTH == 10
