"""A rank takes its share in its own process, and a pool's processes take one core each."""

import pyarrow
import pytest
import torch

from trainer.config import FitConfig
from trainer.errors import ConfigError
from trainer.fit import share as module
from trainer.fit.share import TakeShare, share_of
from trainer.machine import Share
from trainer.rebuild.engines import ROWS_A_WORKER, LocalEngine, Task
from trainer.scan.workers import Call, Reader


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("config", "cuda", "expected"),
    [
        ({"device": "cpu"}, False, Share(8, 0)),
        ({"device": "auto"}, False, Share(8, 0)),
        ({"device": "ddp", "devices": 4}, False, Share(2, 0)),
        ({"device": "cpu", "devices": 4}, False, Share(8, 0)),
        ({"device": "cpu", "threads": 3, "workers": 2}, False, Share(3, 2)),
        ({"device": "cpu"}, True, Share(8, 0)),
        ({"device": "gpu"}, True, Share(6, 2)),
        ({"device": "ddp", "devices": 8}, True, Share(1, 0)),
    ],
)
def test_what_a_run_takes(machine, config, cuda, expected):
    machine.setattr(torch.cuda, "is_available", lambda: cuda)
    assert share_of(FitConfig(**config)) == expected


def test_openmp_has_the_last_word(machine):
    machine.setenv("OMP_NUM_THREADS", "2")
    assert share_of(FitConfig(device="cpu")) == Share(2, 0)


def test_threads_are_set_in_the_rank(monkeypatch):
    class Trainer:
        class strategy:
            root_device = torch.device("cpu")

    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: taken.append("memory"))
    TakeShare(Share(5, 0)).setup(Trainer, None, "fit")
    assert taken == [5, "memory"]


@pytest.mark.parametrize(("name", "value"), [("workers", -2), ("threads", -1)])
def test_what_cannot_be_taken_is_refused(name, value):
    with pytest.raises(ConfigError, match="too small"):
        FitConfig(**{name: value})


def test_processes_of_pools_start_no_threads_of_arrow(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # read by Arrow when it is loaded: four threads a process, were it not for its initialiser
    reader = Reader(deadline_s=120, memory_gb=8)
    try:
        assert reader.run(Call(pyarrow.cpu_count, ())) == 1
    finally:
        reader.close()
    engine = LocalEngine(2)
    try:
        assert list(engine.results([Task(pyarrow.cpu_count, (), rows=ROWS_A_WORKER)] * 2)) == [1, 1]
    finally:
        engine.close()
