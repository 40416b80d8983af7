import dataclasses
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

import models
from tests import small
from trainer.config import FitConfig, OptimizerConfig, ScheduleConfig
from trainer.data import ShardStore, plan_batches
from trainer.data.module import BatchModule
from trainer.data.shards import ShardKey
from trainer.errors import TrainingError
from trainer.fit.run import fit
from trainer.fit.schedule import schedule_of
from trainer.fit.train import shape_of

MODEL = small.model_config()


def prepared(folder, shards=3):
    encoder = small.encoder()
    store = ShardStore(folder / "shards")
    keys = [ShardKey(f"2026-01-0{index + 1}", 0) for index in range(shards)]
    for index, key in enumerate(keys):
        store.write(key, encoder.encode(*small.tables(seed=index, rows=400), 100 * small.HOUR))
    torch.manual_seed(0)
    ranker = models.build(shape_of(MODEL, encoder.inputs, encoder.vocabularies))
    return ranker, store, keys


def run(folder, *, config=None, shards=3, **overrides):
    ranker, store, keys = prepared(folder, shards)
    config = config or FitConfig(batch_targets=32, progress=False, checkpoint_steps=4, device="cpu")
    plan = plan_batches(
        keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0, ranks=config.devices if config.device == "ddp" else 1
    )
    settings = {
        "action_weights": {"click": 1.0, "like": 0.5},
        "optimizer": OptimizerConfig(lr=3e-3, embedding_lr=3e-3),
        "schedule": ScheduleConfig(),
        "config": config,
        "seed": 0,
        "warm": False,
        "folder": folder / "fit",
        **overrides,
    }
    return fit(ranker, store, plan, **settings)


def losses(result):
    return [(entry.step, entry.loss) for entry in result.log]


def test_training_lowers_the_loss_and_visits_every_step(tmp_path):
    result = run(tmp_path, shards=6)
    steps, values = zip(*losses(result), strict=True)
    assert list(steps) == list(range(result.steps))
    assert np.mean(values[-8:]) < np.mean(values[:8])
    assert all(torch.isfinite(tensor).all() for tensor in result.trunk.values())
    assert {name.rsplit("/", 1)[1] for name in result.optimizer} == {"exp_avg", "exp_avg_sq", "step", "last"}


def test_two_runs_are_bit_equal(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert losses(first) == losses(second)
    assert all(torch.equal(first.trunk[name], second.trunk[name]) for name in first.trunk)


def _run_until_killed(folder):
    original = BatchModule.state_dict

    def slow_state(self):  # widen the window after a checkpoint so that the parent can kill us in it
        (folder / "checkpointed").touch()
        return original(self)

    BatchModule.state_dict = slow_state
    from trainer.fit import task

    step = task.RankingTask.training_step

    def delayed(self, batch, index):
        time.sleep(0.05)
        return step(self, batch, index)

    task.RankingTask.training_step = delayed
    run(folder)


def test_a_run_killed_with_signal_9_resumes_with_the_same_losses_and_weights(tmp_path):
    whole = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=_run_until_killed, args=(folder,))
    process.start()
    deadline = time.monotonic() + 120
    while not (folder / "fit" / "resume.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.12)  # a few steps past the checkpoint
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (folder / "fit" / "resume.ckpt").exists()
    made = len((folder / "fit" / "steps.jsonl").read_text().splitlines())
    assert 4 <= made < whole.steps
    resumed = run(folder)
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(whole.trunk[name], resumed.trunk[name]) for name in whole.trunk)
    assert all(torch.equal(whole.serving[name], resumed.serving[name]) for name in whole.serving)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(tmp_path, workers):
    alone = run(tmp_path / "0")
    config = FitConfig(batch_targets=32, progress=False, device="cpu", workers=workers)
    assert losses(run(tmp_path / "n", config=config)) == losses(alone)


def test_a_poisoned_batch_is_skipped_and_never_reaches_the_weights(tmp_path, capsys):
    ranker, store, keys = prepared(tmp_path)
    shard = store.read(keys[1])
    weight = shard.weight_N.copy()
    weight[:3] = np.nan
    store.write(keys[1], dataclasses.replace(shard, weight_N=weight))
    from trainer.data.shards import _read

    _read.cache_clear()
    plan = plan_batches(keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0)
    config = FitConfig(progress=False, device="cpu")
    result = fit(
        ranker,
        store,
        plan,
        action_weights={"click": 1.0, "like": 1.0},
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        config=config,
        seed=0,
        warm=False,
        folder=tmp_path / "fit",
    )
    assert 1 <= result.skipped <= 3
    assert "day=2026-01-02-bucket=00" in capsys.readouterr().out
    for tensors in (result.trunk, result.serving, result.optimizer):
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_divergence_stops_with_the_remedy(tmp_path):
    ranker, store, keys = prepared(tmp_path)
    with torch.no_grad():
        ranker.context.bias.fill_(float("nan"))
    plan = plan_batches(keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0)
    with pytest.raises(TrainingError, match="max_skipped_steps"):
        fit(
            ranker,
            store,
            plan,
            action_weights={"click": 1.0, "like": 1.0},
            optimizer=OptimizerConfig(),
            schedule=ScheduleConfig(),
            config=FitConfig(progress=False, device="cpu", max_skipped_steps=2),
            seed=0,
            warm=False,
            folder=tmp_path / "fit",
        )


@pytest.mark.integration
def test_two_ranks_train_every_unit_once(tmp_path):
    config = FitConfig(batch_targets=32, progress=False, device="ddp", devices=2)
    result = run(tmp_path, config=config)
    assert result.steps > 1
    assert all(torch.isfinite(tensor).all() for tensor in result.trunk.values())


def test_carried_moments_are_used_by_name(tmp_path):
    ranker, *_ = prepared(tmp_path)
    moments = {
        name: {"exp_avg": torch.full_like(p, 0.5), "exp_avg_sq": torch.ones_like(p), "step": torch.tensor(1000.0)}
        for name, p in ranker.named_parameters()
    }
    carried, fresh = run(tmp_path / "a", moments=moments), run(tmp_path / "b")
    name = "context.bias"
    assert float(carried.optimizer[f"{name}/step"]) == 1000 + carried.steps
    assert not torch.equal(carried.trunk[name], fresh.trunk[name])


def test_schedule_warms_up_holds_and_anneals():
    config = ScheduleConfig(warmup_steps=10, serving="annealed", anneal_share=0.5, anneal_to=0.1)
    assert schedule_of(config, 100, warm=False).factor(99) == 1.0, "the trunk keeps its rate"
    schedule = schedule_of(config, 100, warm=False, anneal=True)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[40] == 1.0
    assert factors[99] == pytest.approx(0.1) and np.all(np.diff(factors[50:]) < 0)
    short = schedule_of(ScheduleConfig(warmup_steps=1000), 20, warm=False)
    assert short.factor(19) == 1.0  # a short run still reaches its rate
