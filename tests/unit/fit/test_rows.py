"""Gradients by row: equal to the dense twin's, put together without asking how many, exchanged between ranks."""

import copy
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

import models
from models.layers import OOV_ROW, PAD_ROW, Table
from models.losses import ranker_loss
from tests import small
from trainer.config import DistillConfig, OptimizerConfig
from trainer.data import take
from trainer.fit import rows as by_rows
from trainer.fit.learner import Learner, Optimizers
from trainer.fit.rows import by_row, clip, distinct, exchange, gather, rows_of
from trainer.fit.train import shape_of

LARGE = range(105, 4_105)  # items: far more than a batch looks up; five of its items are unknown


@pytest.fixture(params=["asked", "not asked"])
def device_that(request, monkeypatch):
    """Runs a test as on the CPU, and as on an accelerator, whose values nobody may read."""
    if request.param == "not asked":
        monkeypatch.setattr(by_rows, "can_be_asked", lambda device: False)
    return request.param


def learner_and_batches(name="sasrec", steps=4):
    encoder = small.encoder(items=LARGE)
    torch.manual_seed(0)
    ranker = models.build(shape_of(small.model_config(name=name, dropout=0.0), encoder.inputs, encoder.vocabularies))
    shard = encoder.encode(*small.tables(), 100 * small.HOUR)
    batches = [take(shard, np.arange(shard.units)[step::steps]) for step in range(steps)]
    return Learner(ranker, {"click": 1.0, "like": 0.5}, DistillConfig()), batches


def test_equal_rows_are_added_up_and_the_pad_row_is_dropped(device_that):
    row_M = torch.tensor([7, 3, PAD_ROW, 7, 3, 7])
    row_U, grad_UD = distinct(row_M, torch.arange(12.0).view(6, 2), 10)
    assert torch.equal(torch.zeros(10, 2).index_add_(0, row_U, grad_UD)[[3, 7]], torch.tensor([[10.0, 12.0], [16.0, 19.0]]))
    assert row_U[:3].tolist() == [PAD_ROW, 3, 7] and not grad_UD[row_U == PAD_ROW].any()
    assert len(row_U) == (3 if device_that == "asked" else 6), "as many as a table may need, where nobody may ask"
    assert len(distinct(row_M, torch.zeros(6, 2), 4)[0]) <= 4 or device_that == "asked"


def test_no_lookup_at_all_gives_no_row(device_that):
    table = Table(50, 3, ("vocab:item", "dim"))
    with by_row(table):
        table(torch.zeros(0, dtype=torch.int64)).sum().backward()
    row_U, grad_UD = rows_of(table.weight)
    assert row_U.shape == (0,) and grad_UD.shape == (0, 3)


def test_lookups_are_sparse_only_inside_and_only_where_that_is_less():
    table = Table(50, 3, ("vocab:item", "dim"))

    def grad(count):
        table.weight.grad = None
        table(torch.arange(count) % 50).sum().backward()
        return table.weight.grad

    assert not grad(5).is_sparse
    with by_row(table):
        assert grad(5).is_sparse and not grad(25).is_sparse and not grad(200).is_sparse
    with pytest.raises(RuntimeError), by_row(table):
        raise RuntimeError
    assert not grad(5).is_sparse


def test_a_table_read_by_row_and_as_a_whole_has_one_gradient():
    table, twin = (Table(50, 3, ("vocab:item", "dim")) for _ in range(2))
    twin.load_state_dict(table.state_dict())
    row_M = torch.tensor([3, 9, 3, 48])
    for whole, sparse in ((table, True), (twin, False)):
        whole.sparse = sparse
        (whole(row_M).square().sum() + (whole.weight[2:] @ torch.ones(3)).square().sum()).backward()
    assert torch.allclose(table.weight.grad, twin.weight.grad)


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_gradients_and_norm_equal_the_dense_twins(name, device_that):
    learner, batches = learner_and_batches(name)
    twin = copy.deepcopy(learner)
    with by_row(learner):
        learner.losses(batches[0])[0].backward()
    twin.losses(batches[0])[0].backward()
    item = learner.ranker.embedding.item.weight
    assert item.grad.is_sparse, "the table that tokens and targets share"
    gather(learner.tables().values())
    ours, theirs = dict(learner.named_parameters()), dict(twin.named_parameters())
    for parameter_name, parameter in ours.items():
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert torch.allclose(grad, theirs[parameter_name].grad, rtol=1e-4, atol=1e-7), parameter_name
    assert (batches[0].target_item_N == OOV_ROW).any() and rows_of(item)[0].numel() < len(item)
    norms = clip(learner.parameters(), 0.01), torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
    assert torch.allclose(*norms, rtol=1e-5) and norms[1] > 0.01, "the limit binds"
    assert torch.allclose(item.grad.to_dense(), theirs["ranker.embedding.item.weight"].grad, atol=1e-8)


@pytest.mark.parametrize("kind", ["adamw", "rowwise_adagrad"])
def test_weights_after_several_steps_equal_the_dense_twins(kind, device_that):
    learner, batches = learner_and_batches()
    twin = copy.deepcopy(learner)
    config = OptimizerConfig(lr=1e-2, embedding_lr=1e-2, tables=kind, table_decay=1e-3)
    for trained, rows in ((learner, True), (twin, False)):
        optimizers = Optimizers(trained, config)
        optimizers.set_rates(1.0, config.table_decay)
        for batch in batches * 2:
            optimizers.zero_grad()
            trained.ranker.embedding.item.sparse = rows
            trained.losses(batch)[0].backward()
            gather(optimizers.by_row)
            clip(trained.parameters(), 1.0)
            optimizers.step(torch.zeros(()))
    for name, weight in twin.state_dict().items():
        assert torch.allclose(learner.state_dict()[name], weight, atol=1e-6), name


def test_rows_of_a_fixed_batch_move_as_under_torchs_adamw_and_the_others_not_at_all():
    learner, (batch, *_) = learner_and_batches()
    twin, start = copy.deepcopy(learner), learner.ranker.embedding.item.weight.detach().clone()
    ours = Optimizers(learner, OptimizerConfig(lr=1e-2, embedding_lr=1e-2, weight_decay=0.0))
    dense = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(6):
        for optimizer in (ours, dense):
            optimizer.zero_grad()
        with by_row(learner):
            learner.losses(batch)[0].backward()
        ours.step(torch.zeros(()))
        ranker_loss(twin.ranker(batch), batch, twin.ranker.shape, {"click": 1.0, "like": 0.5}).total.backward()
        dense.step()
    item, other = learner.ranker.embedding.item.weight.detach(), twin.ranker.embedding.item.weight.detach()
    seen = torch.cat([batch.token_item_T, batch.target_item_N]).unique()
    assert torch.allclose(item[seen], other[seen], atol=1e-5) and not torch.equal(item[seen], start[seen])
    unseen = torch.ones(len(item), dtype=torch.bool).index_fill_(0, seen, False)
    assert torch.equal(item[unseen], start[unseen])


def test_a_skipped_step_changes_nothing(device_that):
    learner, batches = learner_and_batches()
    optimizers = Optimizers(learner, OptimizerConfig())

    def everything():
        return {**learner.state_dict(), **optimizers.named_state()}

    for step, batch in enumerate(batches):
        before = {name: tensor.clone() for name, tensor in everything().items()}
        optimizers.zero_grad()
        with by_row(learner):
            loss = learner.losses(batch)[0] * (float("nan") if step == 2 else 1.0)
        loss.backward()
        optimizers.step((~torch.isfinite(loss.detach())).float())
        same = [name for name, tensor in everything().items() if name in before and torch.equal(tensor, before[name])]
        assert (len(same) == len(before)) == (step == 2), f"step {step}"
    assert float(optimizers.named_state()["embedding.item.weight/step"]) == len(batches) - 1


# What two ranks look up in a table of 40 rows; each entry is a table.
LOOKUPS = {
    "other rows": ([3, 5, 3], [5, 8]),
    "nothing on one rank": ([4, 4, 9], []),
    "nothing at all": ([], []),
    "more than the table on one rank": (list(range(2, 40)), [7]),
    "more than the table together": (list(range(2, 18)), list(range(15, 40, 2)) * 1 + [2, 4, 6, 8, 10, 12]),
    "no gradient on one rank": ([6, 7], None),
    "pad rows": ([PAD_ROW, 9], [PAD_ROW, PAD_ROW]),
}


def _tables(rank):
    tables = []
    for index, lookups in enumerate(LOOKUPS.values()):
        torch.manual_seed(index)
        table = Table(40, 3, ("vocab:item", "dim"))
        with by_row(table):
            if lookups[rank] is not None:
                out = table(torch.tensor(lookups[rank], dtype=torch.int64))
                (out.square().sum() * (rank + 1)).backward()
        tables.append(table.weight)
    return tables


def _rank(rank, folder, asked):
    if not asked:
        by_rows.can_be_asked = lambda device: False
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    tables = _tables(rank)
    exchange(tables)
    torch.save([table.grad.to_dense() for table in tables], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("asked", [True, False])
def test_two_ranks_have_the_mean_gradient_over_the_union_of_their_rows(tmp_path, asked):
    processes = [multiprocessing.get_context("spawn").Process(target=_rank, args=(rank, tmp_path, asked)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    mine, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    dense = []
    for rank in range(2):
        tables = _tables(rank)
        gather(tables)
        dense.append([torch.zeros_like(table) if table.grad is None else table.grad.to_dense() for table in tables])
    for name, first, second, *each in zip(LOOKUPS, mine, theirs, *dense, strict=True):
        assert torch.equal(first, second), f"{name}: ranks must not drift apart"
        assert torch.allclose(first, sum(each) / 2), name
