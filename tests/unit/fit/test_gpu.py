"""What only a CUDA device can show; run with ``pytest -m gpu``."""

import numpy as np
import pytest
import torch

import models
from tests import small
from tests.unit.fit.test_fit import MODEL, losses, run
from tests.unit.fit.test_steps import TablesOnly, killed_at
from trainer.config import FitConfig
from trainer.data import take
from trainer.fit import run as fit_run
from trainer.fit.task import RankingTask
from trainer.fit.train import shape_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_cuda_scores_equal_cpu_scores(name):
    encoder = small.encoder()
    torch.manual_seed(0)
    ranker = models.build(shape_of(small.model_config(name=name), encoder.inputs, encoder.vocabularies)).eval()
    batch = take(encoder.encode(*small.tables(), 100 * small.HOUR), np.arange(20))
    with torch.inference_mode():
        here = ranker(batch).output_NO
        there = ranker.cuda()(batch.to("cuda")).output_NO.cpu()
        with torch.autocast("cuda", torch.bfloat16):
            rounded = ranker(batch.to("cuda")).output_NO.float().cpu()
    assert (here - there).abs().max() <= 1e-4 * here.abs().max()
    assert (here - rounded).abs().max() <= 0.05 * here.abs().max()


def test_bf16_training_on_cuda_lowers_the_loss(tmp_path):
    config = FitConfig(batch_targets=32, progress=False, device="gpu", precision="bf16")
    values = [loss for _, loss in losses(run(tmp_path, config=config, shards=6))]
    assert np.isfinite(values).all() and np.mean(values[-8:]) < np.mean(values[:8])
    assert MODEL.dim == 16


def test_fp32_and_bf16_learn_alike(tmp_path):
    """Dropout draws the same masks; what differs is the rounding of products."""
    settings = {"batch_targets": 32, "progress": False, "device": "gpu"}
    found = [losses(run(tmp_path / kind, config=FitConfig(precision=kind, **settings), shards=6)) for kind in ("fp32", "bf16")]
    exact, rounded = (np.array([loss for _, loss in each]) for each in found)
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    config = FitConfig(batch_targets=32, progress=False, checkpoint_steps=4, device="gpu", precision="bf16")
    whole = run(tmp_path / "whole", config=config)
    with killed_at(monkeypatch, 10):
        run(tmp_path / "again", config=config)
    again = run(tmp_path / "again", config=config)
    assert [entry.step for entry in again.log] == [entry.step for entry in whole.log]
    # Gradients of lookups are added up by atomics, in no fixed order.
    np.testing.assert_allclose([entry.loss for entry in again.log], [entry.loss for entry in whole.log], rtol=1e-3)
    for name, tensor in whole.serving.items():
        torch.testing.assert_close(again.serving[name], tensor, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("kind", [TablesOnly, RankingTask])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, kind):
    original, made = RankingTask.training_step, []

    def watched(self, batch, index):
        if len(made) < 2:  # the first steps of a process compile kernels and allocate
            out = original(self, batch, index)
        else:
            torch.cuda.set_sync_debug_mode("error")
            try:
                out = original(self, batch, index)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        made.append(index)
        return out

    monkeypatch.setattr(fit_run, "RankingTask", kind)
    monkeypatch.setattr(RankingTask, "training_step", watched)
    monkeypatch.setattr("trainer.fit.task.READ_EVERY", 10**9)
    result = run(tmp_path, config=FitConfig(batch_targets=32, progress=False, device="gpu", precision="bf16"))
    assert [entry.step for entry in result.log] == list(range(result.steps)) and len(made) == result.steps
    assert np.isfinite([entry.loss for entry in result.log]).all()
