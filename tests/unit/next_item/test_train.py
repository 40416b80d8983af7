import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import trainer.next_item.train as training
from tests.unit.next_item.small import sequences
from trainer.config import CostConfig, FitConfig, ModelConfig, NextItemConfig, OptimizerConfig, ScheduleConfig
from trainer.errors import TrainingError
from trainer.next_item.judge import judge, ranker_scorer
from trainer.next_item.train import BEST, NextItemTask, read_fitted, shape_of, train
from trainer.next_item.units import TEST, VALIDATION

CYCLE = 12
MODEL = ModelConfig(name="sasrec", dim=16, layers=1, heads=1, head_dim=16, ffn_dim=32, dropout=0.0, max_history=CYCLE)


FIT = FitConfig(device="cpu", batch_targets=40, ema_decay=0.5, checkpoint_steps=5, progress=False)
OPTIMIZER = OptimizerConfig(lr=0.01, embedding_lr=0.01)
SCHEDULE = ScheduleConfig(warmup_steps=5)


def chain(users=40):
    """Every user walks the same circle, from a start of his own; the walk is shorter than the circle, so nothing repeats."""
    return sequences(*[[(start + step) % CYCLE for step in range(CYCLE - 3)] for start in range(users)])


def fit(folder, passes=4, every=1, model=MODEL, next_item=None):
    folder.mkdir(exist_ok=True)
    settings = SimpleNamespace(
        model=model, optimizer=OPTIMIZER, schedule=SCHEDULE, fit=dataclasses.replace(FIT, passes=passes), seed=0, next_item=next_item,
        cost=CostConfig(peak_flops=1e12),
    )  # fmt: skip
    return train(settings, chain(), 1, every, folder)


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_deterministic_walk_is_learned(tmp_path, name):
    fitted = fit(tmp_path, passes=30, model=dataclasses.replace(MODEL, name=name))
    found = judge(ranker_scorer(fitted.ranker), chain(), TEST, CYCLE, 1)
    assert found == {"hr@1": 1.0, "ndcg@1": 1.0, "n": 40}
    assert fitted.curve[-1].loss < 0.7 * fitted.curve[0].loss
    assert {entry.positions for entry in fitted.curve} == {40 * (CYCLE - 5)}  # every training event once a pass


def test_a_sampled_softmax_learns_the_walk_and_its_state_is_resumed(tmp_path, monkeypatch):
    sampled = NextItemConfig(path="", softmax="sampled", negatives=8)
    whole = fit(tmp_path / "whole", passes=30, next_item=sampled)
    assert judge(ranker_scorer(whole.ranker), chain(), TEST, CYCLE, 1)["hr@1"] == 1.0
    monkeypatch.setattr(training.CursorAndCheckpoint, "on_train_end", lambda *_: None)
    states = []
    plain = NextItemTask.losses

    def until_stopped(task, *args):
        states.append({name: tensor.clone() for name, tensor in task.negatives.state_dict().items()})
        if len(states) == 8:
            raise KeyboardInterrupt
        return plain(task, *args)

    monkeypatch.setattr(NextItemTask, "losses", until_stopped)
    with pytest.raises(BaseException):  # noqa: B017 (Lightning turns it into an exit)
        fit(tmp_path / "stopped", next_item=sampled)
    at_checkpoint, again = states[5], []
    monkeypatch.setattr(NextItemTask, "losses", lambda task, *args: again.append(task.negatives.state_dict()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "stopped", next_item=sampled)
    assert all(torch.equal(at_checkpoint[name], again[0][name]) for name in at_checkpoint)


def test_the_pass_is_chosen_on_validation_and_never_on_test(tmp_path, monkeypatch):
    asked = []
    scripted = iter([0.2, 0.5, 0.5, 0.4])
    weights = []

    def scripted_judge(score, data, which, max_history, top_k):
        asked.append(which)
        return {"hr@1": 0.0, "ndcg@1": next(scripted), "n": 1}

    def remember(ranker):
        weights.append({name: tensor.clone() for name, tensor in ranker.state_dict().items()})

    monkeypatch.setattr(training, "judge", scripted_judge)
    monkeypatch.setattr(training, "ranker_scorer", remember)
    fitted = fit(tmp_path)
    assert asked == [VALIDATION] * 4
    assert fitted.chosen.number == 2 and [entry.best for entry in fitted.curve] == [True, True, False, False]
    found = fitted.ranker.state_dict()
    assert all(torch.equal(found[name], weights[1][name]) for name in found)
    assert any(not torch.equal(found[name], weights[3][name]) for name in found)


def test_the_last_pass_is_judged_even_off_the_beat(tmp_path):
    assert [entry.metrics is not None for entry in fit(tmp_path, passes=3, every=2).curve] == [False, True, True]


def test_a_stopped_run_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole")
    stopped_at = 17  # in the third pass, behind the checkpoint of step 15

    class Interrupted(Exception):
        pass

    def interrupt(self, *of_the_step):
        if self.trainer.datamodule.cursor == stopped_at:
            raise Interrupted
        return losses(self, *of_the_step)

    losses = NextItemTask.losses
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(NextItemTask, "losses", interrupt)
        fit(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "resume.ckpt").exists()
    resumed = fit(tmp_path / "stopped")

    def numbers(fitted):
        return [dataclasses.replace(entry, seconds=0.0) for entry in fitted.curve]

    assert numbers(resumed) == numbers(whole)
    one, other = (load_file(tmp_path / name / BEST) for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(NextItemTask, "losses", lambda self, *of_the_step: (self.ranker.embedding.bos.sum() * float("nan"),) * 2)
    with pytest.raises(TrainingError, match="diverged"):
        fit(tmp_path, passes=30)


def test_what_was_trained_is_read_again(tmp_path):
    fitted = fit(tmp_path)
    again = read_fitted(tmp_path)
    assert again.curve == fitted.curve and not again.ranker.training
    assert all(torch.equal(again.ranker.state_dict()[name], tensor) for name, tensor in fitted.ranker.state_dict().items())


def test_the_shape_is_items_only():
    shape = shape_of(MODEL, 5)
    assert (shape.actions, shape.vocabularies, shape.dim) == ((), {"item": 7}, 16)
