"""A step asks the device for nothing; what it reports is read later, and is the same."""

from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests import small
from tests.unit.fit.test_fit import ANNEALED, prepared, run
from trainer.config import FitConfig, ScheduleConfig
from trainer.errors import TrainingError
from trainer.fit import rows as fit_rows
from trainer.fit import run as fit_run
from trainer.fit import tables as fit_tables
from trainer.fit import task as fit_task
from trainer.fit.rows import distinct
from trainer.fit.steps import Reported, StepLog, append, read, read_log
from trainer.fit.task import RankingTask

aten = torch.ops.aten
# By these the host learns a value, or a size that depends on values, or makes a tensor of its own numbers (`lift_fresh`): for all of
# them it waits until an accelerator has done its work so far.
ASKING = {
    aten._local_scalar_dense, aten.nonzero, aten.nonzero_static, aten.masked_select, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten._coalesce, aten.equal, aten.bincount, aten.lift_fresh,
}  # fmt: skip


class AsksNothing(TorchDispatchMode):
    """Fails on every operation by which the host asks the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        masks = func.overloadpacket in (aten.index, aten.index_put_) and any(i is not None and i.dtype == torch.bool for i in args[1])
        sizes = func.overloadpacket is aten.repeat_interleave and kwargs.get("output_size") is None
        if func.overloadpacket in ASKING or masks or sizes:
            raise AssertionError(f"the host waits for the device at {func}")
        return func(*args, **kwargs)


class TablesOnly(RankingTask):
    """All tables and nothing that is arranged on the host for a CPU (`models.attention`)."""

    def losses(self, learner, batch):
        embedding, context = learner.ranker.embedding, learner.ranker.context
        user_D = embedding.items(batch.token_item_T, batch.token_item_features_TI).mean(0)
        item_ND = learner.ranker.item_vectors(batch.target_item_N, batch.target_item_features_NI)
        hidden_NC = context.categorical.add_to(item_ND.new_zeros(len(item_ND), context.norm.gain.numel()), batch.categorical_NC)
        score_N = item_ND @ user_D + (hidden_NC @ context.output.T).sum(1)
        loss = F.binary_cross_entropy_with_logits(score_N, batch.label_NA[:, 0])
        return loss, loss.new_zeros(())


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Nothing may be read but every 5 steps and before a checkpoint."""
    for module in (fit_rows, fit_tables, fit_task):
        monkeypatch.setattr(module, "can_be_asked", lambda device: False)
    monkeypatch.setattr(fit_task, "READ_EVERY", 5)


def test_the_guard_notices_what_asks():
    x = torch.arange(4.0)
    asking = [lambda: float(x[0]), lambda: bool(x[0] > 0), lambda: int(x.sum()), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.unique()]
    asking += [lambda: x.new_tensor(3), lambda: torch.equal(x, x), lambda: x.long().repeat_interleave(x.long())]
    for ask in [*asking, lambda: distinct(x.long(), torch.ones(4, 2), 9)]:
        with pytest.raises(AssertionError, match="waits"), AsksNothing():
            ask()


@pytest.mark.parametrize("schedule", [ScheduleConfig(), ANNEALED], ids=["averaged", "annealed"])
def test_no_step_asks_the_device(tmp_path, monkeypatch, as_on_an_accelerator, schedule):
    monkeypatch.setattr(fit_task, "READ_EVERY", 10**9)
    monkeypatch.setattr(fit_run, "RankingTask", TablesOnly)
    monkeypatch.setattr(small, "encoder", partial(small.encoder, items=range(100, 4_100)))  # so many that lookups are sparse
    original, made = RankingTask.training_step, []

    def watched(self, batch, index):
        with AsksNothing() if made else nullcontext():  # Lightning sets up its logging in the first step
            out = original(self, batch, index)
        made.append(self.trainer.datamodule.cursor)
        return out

    monkeypatch.setattr(RankingTask, "training_step", watched)
    start = prepared(tmp_path / "start")[0].state_dict()
    result = run(tmp_path / "run", schedule=schedule)
    assert made == list(range(result.steps)) == [entry.step for entry in result.log]
    for name in ("embedding.item.weight", "context.output"):
        assert not torch.equal(result.trunk[name], start[name]) and not torch.equal(result.serving[name], result.trunk[name]), name


def test_what_is_read_late_is_the_same(tmp_path, monkeypatch, request):
    alone = run(tmp_path / "a")
    request.getfixturevalue("as_on_an_accelerator")
    readings = []
    monkeypatch.setattr(fit_task, "read", lambda reports: readings.append(len(reports)) or read(reports))
    late = run(tmp_path / "b")
    assert late.log == alone.log
    assert max(readings) > 1 and sum(readings) == late.steps
    assert all(torch.allclose(alone.serving[name], late.serving[name], atol=1e-6) for name in alone.serving)


class Killed(Exception):
    pass


@contextmanager
def killed_at(monkeypatch, cursor):
    """Ends the run within at a step, as signal 9 does."""
    step = RankingTask.training_step

    def killed(self, batch, index):
        if self.trainer.datamodule.cursor == cursor:
            raise Killed
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RankingTask, "training_step", killed)
        patch.setattr(fit_run.CursorAndCheckpoint, "on_exception", lambda *_: None)  # nobody is told of it
        yield


def test_a_killed_run_has_logged_every_step_up_to_its_checkpoint(tmp_path, monkeypatch, as_on_an_accelerator):
    whole = run(tmp_path / "whole")
    with killed_at(monkeypatch, 10):
        run(tmp_path / "again")
    logged = [entry.step for entry in read_log(tmp_path / "again" / "fit" / "steps.jsonl")]
    assert logged == list(range(8)), "up to the checkpoint after 8 steps: nothing was read since"
    again = run(tmp_path / "again")
    assert again.log == whole.log
    assert all(torch.equal(whole.serving[name], again.serving[name]) for name in whole.serving)


def test_a_run_that_fails_logs_its_last_steps(tmp_path, monkeypatch, as_on_an_accelerator):
    step = RankingTask.training_step

    def failing(self, batch, index):
        if self.trainer.datamodule.cursor == 3:
            raise Killed
        return step(self, batch, index)

    monkeypatch.setattr(RankingTask, "training_step", failing)
    with pytest.raises(Killed):
        run(tmp_path)
    assert [entry.step for entry in read_log(tmp_path / "fit" / "steps.jsonl")] == [0, 1, 2]


def test_divergence_is_noticed_when_steps_are_read(tmp_path, monkeypatch, as_on_an_accelerator, capsys):
    original = fit_run.RankingTask.losses

    def broken(self, learner, batch):
        loss, teacher = original(self, learner, batch)
        return loss * float("nan"), teacher

    monkeypatch.setattr(fit_run.RankingTask, "losses", broken)
    with pytest.raises(TrainingError, match="max_skipped_steps") as error:
        run(tmp_path, config=FitConfig(progress=False, device="cpu", max_skipped_steps=2, checkpoint_steps=100))
    assert error.value.got == 5 and "step 4" in error.value.where, "at the first reading after the third"
    assert capsys.readouterr().out.count("skipped step") == 5
    entries = read_log(tmp_path / "fit" / "steps.jsonl")
    assert [entry.step for entry in entries] == list(range(5)) and all(entry.skipped for entry in entries)


def test_reports_are_read_at_once_and_in_order(tmp_path):
    def report(step, loss, skip, **kwargs):
        values = (torch.tensor(value) for value in (loss, 2.5, skip, 0.125))
        loss, norm, skip, teacher = values
        return Reported(step, 0.5, True, loss, norm, skip, teacher, **kwargs)

    entries = read([report(3, 0.1, 0.0, branch=False), report(4, float("inf"), 1.0, branch=True)])
    assert entries == [
        StepLog(3, float(torch.tensor(0.1)), 0.5, 2.5, False, True, 0.125), StepLog(4, float("inf"), 0.5, 2.5, True, True, 0.125),
    ]  # fmt: skip
    assert read([]) == []
    append(entries, tmp_path / "log")
    append([StepLog(3, 9.0, 0.5, 1.0, False)], tmp_path / "log")
    assert [(entry.step, entry.loss) for entry in read_log(tmp_path / "log")] == [(3, 9.0), (4, float("inf"))]
