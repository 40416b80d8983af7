"""Compiled and checkpointed blocks: the same numbers, few graphs, and copies that forget it."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from models.losses import ranker_loss
from trainer.config import FitConfig
from trainer.fit.trunk import set_up

BATCHES = [([0, 9, 30], [[0], [2, 3], [4]]), ([50] * 3, [[3]] * 3), ([7] * 9, [[1, 2]] * 9), ([90, 3], [[4], [1]]), ([12] * 5, [[3]] * 5)]


def gradients(ranker, batch, seed=0):
    torch.manual_seed(seed)
    loss = ranker_loss(ranker(batch), batch, ranker.shape).total
    return loss, torch.autograd.grad(loss, list(ranker.parameters()), allow_unused=True)


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_checkpointed_blocks_keep_less_and_have_bit_equal_gradients(kit, architecture):
    shape = kit.shape(architecture, dropout=0.3, layers=4)
    plain, batch = kit.model(shape).train(), kit.batch(shape, [0, 9, 30], [[0], [2, 3], [4]])
    thrifty = copy.deepcopy(plain)
    set_up(thrifty, FitConfig(checkpoint_activations=True))
    kept = []
    for ranker in (plain, thrifty):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            ranker_loss(ranker(batch), batch, shape)
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]
    (loss, mine), (same, twin) = gradients(plain, batch), gradients(thrifty, batch)
    assert torch.equal(loss, same)
    assert all(torch.equal(a, b) for a, b in zip(mine, twin, strict=True) if a is not None)


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_compiled_blocks_serve_every_batch_size_with_few_graphs(kit, architecture, monkeypatch):
    """Dynamo and autograd as in real use; the generated code itself is left out (`aot_eager`), it takes a C compiler and a minute."""
    shape = kit.shape(architecture)
    plain = kit.model(shape).train()
    compiled = copy.deepcopy(plain)
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **options: whole(block, backend="aot_eager", **options))
    torch.compiler.reset()
    counters.clear()
    set_up(compiled, FitConfig(compile=True))
    graphs = []
    for number, (lengths, targets) in enumerate(BATCHES):
        batch = kit.batch(shape, lengths, targets, seed=number)
        (loss, mine), (same, twin) = gradients(compiled, batch), gradients(plain, batch)
        torch.testing.assert_close(loss, same, rtol=1e-5, atol=0)
        for a, b in zip(mine, twin, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    settled, most = (1, 8) if torch.__version__ >= (2, 13) else (3, 10)  # 2.11 takes two sizes and two graphs more
    assert 0 < graphs[-1] <= most and graphs[settled] == graphs[-1], "the first batches decide: nothing is compiled anew for another size"


def test_a_copy_of_a_compiled_ranker_runs_its_own_weights(kit):
    """An average or an annealed copy must not call the compiled blocks of the trunk that it was copied from."""
    shape = kit.shape("sasrec")
    ranker = kit.model(shape)
    set_up(ranker, FitConfig(compile=True))
    twin = copy.deepcopy(ranker)
    assert all(block._compiled_call_impl is not None for block in ranker.blocks)
    assert all(block._compiled_call_impl is None for block in twin.blocks)
    set_up(ranker, FitConfig())
    assert all(block._compiled_call_impl is None for block in ranker.blocks)
