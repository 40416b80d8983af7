"""A checkpoint that other code left: gone on from where it fits, and told; refused in plain words where it does not."""

from __future__ import annotations

import pytest
import torch

from tests.unit.fit.test_fit import Stopped, losses, run
from trainer.errors import TrainingError
from trainer.fit import task
from trainer.fit.run import RESUME
from trainer.stages import training
from trainer.stages.training import forget_others


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that ended at its sixth step; the last checkpoint holds four."""
    step = task.RankingTask.training_step

    def stop(self, batch, index):
        if self.trainer.datamodule.cursor == 6:
            raise Stopped
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task.RankingTask, "training_step", stop)
        run(tmp_path)
    return tmp_path / "fit" / RESUME


def rewritten(path, edit) -> None:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)


def rename(checkpoint) -> None:
    weights = checkpoint["state_dict"]
    weights["trunk.ranker.renamed"] = weights.pop(next(iter(weights)))


def widen(checkpoint) -> None:
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = torch.zeros(3, 3)


def regroup(checkpoint) -> None:
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    groups[0]["params"] = groups[0]["params"][1:]


@pytest.mark.parametrize("edit", [rename, widen, regroup])
def test_a_checkpoint_of_code_with_other_tensors_is_refused_with_its_remedy(stopped, tmp_path, edit):
    rewritten(stopped, edit)
    with pytest.raises(TrainingError, match="cannot resume") as error:
        run(tmp_path)
    assert error.value.exit_code == 5
    assert str(stopped) in error.value.remedy and "begins anew" in error.value.remedy
    stopped.unlink()
    assert run(tmp_path).log[0].step == 0, "the remedy is one"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused_by_name(stopped, tmp_path, content):
    stopped.write_bytes(content if content is not None else stopped.read_bytes()[:-500])
    with pytest.raises(TrainingError, match="cannot resume") as error:
        run(tmp_path)
    assert error.value.where == stopped


def test_what_other_code_left_is_gone_on_from_and_told(stopped, tmp_path, monkeypatch):
    out = tmp_path / "challenger"
    scratch = {name: tmp_path / f"challenger-{name}" for name in ("fit", "shards")}
    for folder in scratch.values():
        folder.mkdir()
    assert forget_others(out, "key-1") == "" and not any(folder.exists() for folder in scratch.values()), "nobody's scratch is trusted"
    stopped.parent.rename(scratch["fit"])
    scratch["shards"].mkdir()
    assert forget_others(out, "key-1") == "", "the same settings and code"
    monkeypatch.setattr(training, "sha256_code", lambda *_: "other-code")
    for _ in range(2):  # it stays so, however often the run is killed
        told = forget_others(out, "key-1")
        assert "another version of the code" in told and str(scratch["fit"] / RESUME) in told
        assert scratch["shards"].is_dir()
    scratch["fit"].rename(stopped.parent)
    assert losses(run(tmp_path)) == losses(run(tmp_path / "whole"))
    assert forget_others(out, "key-1") == "" and not scratch["shards"].exists(), "without a checkpoint nothing is lost by encoding anew"
    scratch["shards"].mkdir()
    assert forget_others(out, "key-2") == "" and not scratch["shards"].exists()
