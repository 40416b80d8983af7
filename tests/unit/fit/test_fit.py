import copy
import dataclasses
import multiprocessing
import os
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
import torch

import models
from tests import small
from trainer.config import DistillConfig, FitConfig, OptimizerConfig, ScheduleConfig, WarmStartConfig
from trainer.data import ShardStore, plan_batches, take
from trainer.data.module import BatchModule
from trainer.data.shards import ShardKey
from trainer.errors import CheckpointError, TrainingError
from trainer.fit.learner import Learner, Optimizers
from trainer.fit.run import fit
from trainer.fit.schedule import schedule_of
from trainer.fit.train import last_loss, shape_of

MODEL = small.model_config()


def prepared(folder, shards=3, encoder=None):
    encoder = encoder or small.encoder()
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
def test_two_ranks_train_as_one_process_with_their_mean_gradient(tmp_path):
    """The item table is far larger than a batch: ranks exchange it by rows."""
    ranker, store, keys = prepared(tmp_path, encoder=small.encoder(items=range(100, 4_100)))
    plan = plan_batches(keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0, ranks=2)
    optimizer, schedule = OptimizerConfig(lr=3e-3, embedding_lr=3e-3, table_decay=1e-3), ScheduleConfig()
    weights = {"click": 1.0, "like": 0.5}
    alone = Learner(copy.deepcopy(ranker), weights, DistillConfig())
    config = FitConfig(progress=False, device="ddp", devices=2)
    result = fit(
        ranker, store, plan, action_weights=weights, optimizer=optimizer, schedule=schedule, config=config, seed=0, warm=False,
        folder=tmp_path / "fit",
    )  # fmt: skip
    optimizers, factors = Optimizers(alone, optimizer), schedule_of(schedule, plan.steps, warm=False)
    average = {name: parameter.detach().clone() for name, parameter in alone.ranker.named_parameters()}
    for step in range(plan.steps):
        optimizers.zero_grad()
        for rank in range(2):
            torch.manual_seed(step * 4096 + rank)
            planned = plan.of_rank(rank)[step]
            (alone.losses(take(store.read(planned.key), planned.units_B))[0] / 2).backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), optimizer.clip_norm)
        optimizers.set_rates(factors.factor(step), optimizer.table_decay)
        optimizers.step(torch.zeros(()))
        with torch.no_grad():
            for name, parameter in alone.ranker.named_parameters():
                average[name].lerp_(parameter, 1 - min(config.ema_decay, (1 + step) / (10 + step)))
    assert plan.steps > 10
    for name, parameter in alone.ranker.named_parameters():
        assert torch.allclose(result.trunk[name], parameter, atol=1e-5), name
        assert torch.allclose(result.serving[name], average[name], atol=1e-5), name


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


@pytest.mark.parametrize("lacking", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("name", ["norm.gain", "embedding.item.weight"])
def test_moments_that_belong_together_and_are_not_all_there_are_refused_by_name(tmp_path, name, lacking):
    ranker, *_ = prepared(tmp_path)
    parameter = dict(ranker.named_parameters())[name]
    state = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.ones_like(parameter), "step": torch.tensor(9.0)}
    del state[lacking]
    with pytest.raises(CheckpointError, match="incomplete") as error:
        run(tmp_path / "run", moments={name: state})
    assert error.value.where == name and lacking in error.value.expected


def test_schedule_warms_up_holds_and_anneals():
    config = ScheduleConfig(warmup_steps=10, serving="annealed", anneal_share=0.5, anneal_to=0.1)
    assert schedule_of(config, 100, warm=False).factor(99) == 1.0, "the trunk keeps its rate"
    schedule = schedule_of(config, 100, warm=False, anneal=True)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[40] == 1.0
    assert factors[99] == pytest.approx(0.1) and np.all(np.diff(factors[50:]) < 0)
    short = schedule_of(ScheduleConfig(warmup_steps=1000), 20, warm=False)
    assert short.factor(19) == 1.0  # a short run still reaches its rate


def test_a_warm_run_warms_up_again_to_a_rate_of_its_own():
    config = ScheduleConfig(warmup_steps=10, rewarm_steps=4, warm_factor=0.25)
    factors = [schedule_of(config, 100, warm=True).factor(step) for step in range(100)]
    assert factors[:5] == pytest.approx([0.0625, 0.125, 0.1875, 0.25, 0.25]) and factors[99] == 0.25


ANNEALED = ScheduleConfig(warmup_steps=5, serving="annealed", anneal_share=0.4, anneal_to=0.05)


def test_the_annealed_copy_leaves_the_trunk_as_it_is(tmp_path):
    constant = run(tmp_path / "a", schedule=ScheduleConfig(warmup_steps=5))
    annealed = run(tmp_path / "b", schedule=ANNEALED)
    assert all(torch.equal(constant.trunk[name], annealed.trunk[name]) for name in constant.trunk)
    assert all(torch.equal(constant.optimizer[name], annealed.optimizer[name]) for name in constant.optimizer)
    assert {entry.lr for entry in annealed.log[5:]} == {1.0}, "the trunk keeps its rate to the end"
    assert annealed.annealed == round(0.4 * annealed.steps) and constant.annealed == 0


def test_the_annealed_copy_is_what_annealing_from_the_branch_on_gives(tmp_path):
    annealed = run(tmp_path / "a", schedule=ANNEALED)
    from trainer.fit import run as fit_run

    original = fit_run.schedule_of

    def whole(config, steps, warm, *, anneal=False):  # a trunk that anneals itself
        return original(ANNEALED, steps, warm, anneal=True)

    fit_run.schedule_of = whole
    try:
        alone = run(tmp_path / "b", schedule=ScheduleConfig(warmup_steps=5, serving="trunk"))
    finally:
        fit_run.schedule_of = original
    assert all(torch.equal(alone.trunk[name], annealed.serving[name]) for name in alone.trunk)
    assert not all(torch.equal(annealed.trunk[name], annealed.serving[name]) for name in annealed.trunk)


def test_serving_the_trunk_serves_the_trunk(tmp_path):
    result = run(tmp_path, schedule=ScheduleConfig(serving="trunk"))
    assert all(torch.equal(result.trunk[name], result.serving[name]) for name in result.trunk)


def with_teacher(store, keys):
    """Gives every shard a teacher: a probability that depends on the item, silent on a tenth of the rows."""
    for key in keys:
        shard = store.read(key)
        score_N = np.where(shard.target_item_N % 3 == 0, 0.6, 0.2)
        teacher_NA = np.stack([score_N, np.full(len(score_N), 0.1)], 1).astype(np.float32)
        teacher_NA[::10] = np.nan
        store.write(key, dataclasses.replace(shard, teacher_NA=teacher_NA))


def taught(folder, **overrides):
    """The same run as `run`, with a teacher and every optional part that keeps state."""
    ranker, store, keys = prepared(folder)
    with_teacher(store, keys)
    plan = plan_batches(keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0)
    settings = {
        "action_weights": {"click": 1.0, "like": 0.5},
        "optimizer": OptimizerConfig(lr=3e-3, embedding_lr=3e-3, tables="rowwise_adagrad", table_decay=1e-3),
        "schedule": ANNEALED,
        "config": FitConfig(batch_targets=32, progress=False, checkpoint_steps=4, device="cpu"),
        "seed": 0,
        "warm": False,
        "folder": folder / "fit",
        "distill": DistillConfig(source="logged", decay_to=0.5),
        **overrides,
    }
    return fit(ranker, store, plan, **settings)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [6, 26], ids=["before the copy leaves", "after it left"])
def test_every_part_that_keeps_state_resumes_exactly(tmp_path, monkeypatch, stop_at):
    whole = taught(tmp_path / "whole")
    assert whole.annealed and whole.steps - whole.annealed in range(7, 25), "the two stops lie on both sides of the branch"
    from trainer.fit import task

    step = task.RankingTask.training_step

    def stopped(self, batch, index):
        if self.trainer.datamodule.cursor == stop_at:
            raise Stopped
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task.RankingTask, "training_step", stopped)
        taught(tmp_path / "again")
    assert (tmp_path / "again" / "fit" / "resume.ckpt").exists()
    again = taught(tmp_path / "again")
    assert losses(again) == losses(whole)
    for mine, theirs in ((again.trunk, whole.trunk), (again.serving, whole.serving), (again.optimizer, whole.optimizer)):
        assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_resumed_run_refuses_another_plan_of_the_same_length(tmp_path, monkeypatch):
    from trainer.fit import task

    def stopped(self, batch, index):
        if self.trainer.datamodule.cursor == 6:
            raise Stopped
        return step(self, batch, index)

    step = task.RankingTask.training_step
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task.RankingTask, "training_step", stopped)
        run(tmp_path)
    ranker, store, keys = prepared(tmp_path)
    plan = plan_batches(keys, store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0)
    other = dataclasses.replace(plan, batches=plan.batches[::-1])
    settings = {"optimizer": OptimizerConfig(), "schedule": ScheduleConfig(), "seed": 0, "warm": False, "folder": tmp_path / "fit"}
    with pytest.raises(TrainingError, match="batch plan changed"):
        fit(ranker, store, other, action_weights={"click": 1.0, "like": 1.0}, config=FitConfig(progress=False, device="cpu"), **settings)


def test_the_teacher_changes_the_trunk_and_is_not_kept(tmp_path):
    alone, with_one = taught(tmp_path / "a", distill=None), taught(tmp_path / "b")
    assert set(alone.trunk) == set(with_one.trunk) and set(alone.optimizer) == set(with_one.optimizer)
    assert not torch.equal(alone.trunk["blocks.0.up.weight"], with_one.trunk["blocks.0.up.weight"])
    assert all(entry.teacher > 0 for entry in with_one.log) and not any(entry.teacher for entry in alone.log)
    listening = taught(tmp_path / "c", distill=DistillConfig(source="logged", stop_gradient=True), optimizer=OptimizerConfig(clip_norm=1e9))
    untouched = taught(tmp_path / "d", distill=None, optimizer=OptimizerConfig(clip_norm=1e9))
    assert all(torch.equal(listening.trunk[name], untouched.trunk[name]) for name in untouched.trunk), "a listening head teaches nothing"


def test_the_teachers_weight_falls_linearly():
    config = DistillConfig(source="logged", weight=2.0, decay_to=0.25)
    assert [config.weight_at(step, 5) for step in range(5)] == pytest.approx([2.0, 1.625, 1.25, 0.875, 0.5])
    assert DistillConfig(source="logged").weight_at(0, 1) == 1.0


def replayed(folder, **replay):
    """Trains on two new shards with a third one replayed; its items are its own."""
    ranker, store, keys = prepared(folder)
    encoder = small.encoder()
    examples, tail = small.tables(seed=7, rows=400)
    own = pa.array(np.where(examples["item"].to_numpy() % 2, 138, 139))  # items that no new shard has
    examples, tail = examples.set_column(examples.column_names.index("item"), "item", own), tail.slice(0, 0)
    store.write(keys[2], encoder.encode(examples, tail, 100 * small.HOUR))
    for key in keys[:2]:
        examples, tail = small.tables(seed=int(key.day[-1]), rows=400, items=35)
        keep = pa.compute.less(tail["item"], 138)
        store.write(key, encoder.encode(examples, tail.filter(keep), 100 * small.HOUR))
    from trainer.data.shards import _read

    _read.cache_clear()
    before = {name: tensor.clone() for name, tensor in ranker.state_dict().items()}
    plan = plan_batches(keys[:2], store.lengths, batch_targets=32, batch_tokens=4096, passes=1, seed=0, replay=keys[2:], replay_share=0.3)
    result = fit(
        ranker, store, plan, action_weights={"click": 1.0, "like": 0.5}, optimizer=OptimizerConfig(lr=3e-3, embedding_lr=3e-3),
        schedule=ScheduleConfig(), config=FitConfig(progress=False, device="cpu"), seed=0, warm=True, folder=folder / "fit",
        replay=WarmStartConfig(replay_share=0.3, **replay),
    )  # fmt: skip
    rows = encoder.vocabularies["item"].lookup(pa.chunked_array([pa.array([138, 139])]))
    return result, before, torch.as_tensor(np.asarray(rows))


def test_replayed_targets_leave_tables_bit_equal_and_train_the_rest(tmp_path):
    result, before, rows = replayed(tmp_path / "a")
    item = "embedding.item.weight"
    assert not all(entry.new for entry in result.log), "something was replayed"
    assert torch.equal(result.trunk[item][rows], before[item][rows])
    assert not torch.equal(result.trunk[item], before[item]), "new targets train tables"
    assert not result.optimizer[f"{item}/last"][rows].any()
    trained, *_ = replayed(tmp_path / "b", replay_tables="train")
    assert not torch.equal(trained.trunk[item][rows], before[item][rows]), "the rows are only touched by replayed targets"
    assert not torch.equal(trained.trunk["context.output"], result.trunk["context.output"])


def test_the_trunk_learns_from_replayed_targets(tmp_path):
    from trainer.fit import task

    moved = []
    advance = task.RankingTask._advance

    def watched(self, learner, optimizers, schedule, batch, step, new):
        dense, table = learner.ranker.context.output.detach().clone(), learner.ranker.embedding.item.weight.detach().clone()
        entry = advance(self, learner, optimizers, schedule, batch, step, new)
        same = torch.equal(table, learner.ranker.embedding.item.weight)
        moved.append((new, not torch.equal(dense, learner.ranker.context.output), not same))
        return entry

    task.RankingTask._advance = watched
    try:
        replayed(tmp_path)
    finally:
        task.RankingTask._advance = advance
    assert {entry for entry in moved if not entry[0]} == {(False, True, False)}, "dense weights move, tables do not"
    assert {entry for entry in moved if entry[0]} == {(True, True, True)}


def test_decayed_rows_shrink_on_replay_only(tmp_path):
    decayed, _, rows = replayed(tmp_path / "a", replay_tables="decayed", replay_decay=0.05)
    trained, *_ = replayed(tmp_path / "b", replay_tables="train")
    norms = [float(result.trunk["embedding.item.weight"][rows].norm()) for result in (decayed, trained)]
    assert norms[0] < norms[1]


def test_replayed_steps_do_not_count_as_progress(tmp_path):
    result, *_ = replayed(tmp_path)
    fresh = [entry.loss for entry in result.log if entry.new]
    assert last_loss(result.log) == pytest.approx(np.mean(fresh[-max(len(fresh) // 10, 1) :]))
    assert [entry.new for entry in result.log].count(False) == pytest.approx(0.3 * result.steps, abs=1.5)
