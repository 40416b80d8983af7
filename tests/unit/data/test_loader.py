"""The loader hands over the plan's batches in order, from any step on, however many threads make them."""

import threading
from dataclasses import replace

import pytest
import torch

import models
from tests.small import encoder, model_config, tables
from trainer.data import ShardStore, plan_batches, take
from trainer.data.batches import join
from trainer.data.module import AHEAD, BatchModule, Loader
from trainer.data.shards import ShardKey
from trainer.errors import DataError
from trainer.fit.train import shape_of


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


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_replayed_units_in_a_batch_are_scored_as_they_would_be_alone(planned, architecture):
    store, plan = planned
    keys = sorted({batch.key for batch in plan.batches})
    mixed = plan_batches(
        keys[3:], store.lengths, batch_targets=16, batch_tokens=200, passes=1, seed=0, replay=keys[:3], replay_share=0.5, replay_beside=True
    )
    ranker = models.build(shape_of(model_config(name=architecture), encoder().inputs, encoder().vocabularies)).eval()
    for planned_batch, batch in zip(mixed.batches, Loader(store, mixed.batches), strict=True):
        parts = [take(store.read(part.key), part.units_B) for part in planned_batch.parts]
        assert len(parts) == 2 and batch.tokens == sum(part.tokens for part in parts) and batch.sequences == sum(p.sequences for p in parts)
        with torch.inference_mode():
            together, alone = ranker(batch).output_NO, torch.cat([ranker(part).output_NO for part in parts])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert torch.equal(batch.label_NA, torch.cat([part.label_NA for part in parts])) and batch.teacher_NA is None


def test_batches_of_which_one_lacks_a_field_are_not_joined(planned):
    store, plan = planned
    part = plan.batches[0]
    batch = take(store.read(part.key), part.units_B)
    taught = replace(batch, teacher_NA=torch.zeros(len(batch.row_N), 1))
    assert len(join([taught, taught]).teacher_NA) == 2 * len(batch.row_N)
    for pair in ((batch, taught), (taught, batch)):
        with pytest.raises(ValueError, match="1 of 2 batches lack teacher_NA"):
            join(pair)
