"""Next item on a CUDA device; run with ``pytest -m gpu``."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.next_item import test_train
from trainer.config import FitConfig, NextItemConfig
from trainer.fit.task import RankingTask
from trainer.next_item.judge import judge, ranker_scorer
from trainer.next_item.units import TEST

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SAMPLED = NextItemConfig(path="", softmax="sampled", negatives=8)
WITHOUT_WAITING = range(5, 20)  # steps before compile kernels; within 32 nothing is read


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("next_item", [None, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_walk_is_learned_in_bf16_and_no_step_waits_for_the_device(tmp_path, monkeypatch, name, next_item, compiled):
    step, losses = RankingTask.training_step, []

    def watched(self, batch, index):
        torch.cuda.set_sync_debug_mode("error" if len(losses) in WITHOUT_WAITING else "default")
        try:
            losses.append(step(self, batch, index).detach())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return losses[-1]

    monkeypatch.setattr(RankingTask, "training_step", watched)
    fit = dataclasses.replace(test_train.FIT, device="gpu", precision="bf16", compile=compiled, checkpoint_steps=10**6)
    monkeypatch.setattr(test_train, "FIT", fit)
    fitted = test_train.fit(tmp_path, passes=30, every=30, model=dataclasses.replace(test_train.MODEL, name=name), next_item=next_item)
    assert isinstance(fit, FitConfig) and len(losses) > WITHOUT_WAITING.stop
    assert np.isfinite(torch.stack(losses).cpu().numpy()).all()
    assert judge(ranker_scorer(fitted.ranker), test_train.chain(), TEST, test_train.CYCLE, 1)["hr@1"] > 0.9


class Factors(TorchDispatchMode):
    """Notes the types of what is multiplied."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.seen |= {argument.dtype for argument in args[-2:] if isinstance(argument, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("next_item", [None, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_no_product_of_a_step_is_left_in_fp32(tmp_path, monkeypatch, name, next_item):
    step, factors = RankingTask.training_step, Factors()

    def watched(self, batch, index):
        with factors:
            return step(self, batch, index)

    monkeypatch.setattr(RankingTask, "training_step", watched)
    monkeypatch.setattr(test_train, "FIT", dataclasses.replace(test_train.FIT, device="gpu", precision="bf16"))
    test_train.fit(tmp_path, passes=1, model=dataclasses.replace(test_train.MODEL, name=name), next_item=next_item)
    assert factors.seen == {torch.bfloat16}
