"""The loader hands over the plan's batches in order, from any step on, however many threads make them."""

import threading

import pytest
import torch

from tests.small import encoder, tables
from trainer.data import ShardStore, plan_batches
from trainer.data.module import AHEAD, BatchModule, Loader
from trainer.data.shards import ShardKey
from trainer.errors import DataError


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    store = ShardStore(tmp_path_factory.mktemp("shards"))
    keys = [ShardKey(f"2026-01-0{day}", 0) for day in range(1, 7)]
    for seed, key in enumerate(keys):
        store.write(key, encoder().encode(*tables(seed=seed), 10**15))
    return store, plan_batches(keys, store.lengths, batch_targets=16, batch_tokens=200, passes=2, seed=0)


def rows(batches):
    return [batch.row_N.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 7])
def test_threads_change_nothing(planned, workers, start):
    store, plan = planned
    alone, ahead = (list(Loader(store, plan.batches, start, number)) for number in (0, workers))
    assert rows(ahead) == rows(alone)
    assert len(ahead) == plan.steps - start > AHEAD * workers
    for one, other in zip(alone, ahead, strict=True):
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one._tensors(), other._tensors(), strict=True))


def test_its_length_is_the_plans(planned):
    store, plan = planned
    module = BatchModule(store, plan)
    module.cursor = 5
    loader = module.train_dataloader()
    assert len(loader) == plan.steps
    assert len(list(loader)) == plan.steps - 5


def test_it_stays_a_few_batches_ahead(planned):
    store, plan = planned
    made = []

    class Counted(Loader):
        def _make(self, step):
            made.append(step)
            return super()._make(step)

    loader = iter(Counted(store, plan.batches, 0, 2))
    next(loader)
    assert len(made) <= 2 * AHEAD + 1 < plan.steps
    loader.close()
    assert len(made) <= 2 * AHEAD + 1, "what was ahead of an ended run is dropped"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")], "no thread outlives the loop"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_told_in_its_turn(planned, tmp_path, workers):
    _, plan = planned
    broken = ShardStore(tmp_path)
    (tmp_path / f"{plan.batches[0].key.stem}.npz").write_bytes(b"no shard")
    with pytest.raises(DataError, match="shard"):
        list(Loader(broken, plan.batches, 0, workers))


def test_every_row_once_a_pass(planned):
    store, plan = planned
    rows_a_pass = sum(len(store.read(key).row_N) for key in {batch.key for batch in plan.batches})
    assert sum(map(len, rows(Loader(store, plan.batches, 0, 2)))) == 2 * rows_a_pass
