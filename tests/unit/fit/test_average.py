"""The average of rows that are only brought up to date when they move equals the average of all rows at every step."""

import copy

import pytest
import torch
from torch import nn

from trainer.fit.average import Average, near
from trainer.fit.tables import TableOptimizer

DECAY, ROWS = 0.9, 30


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, 4))
        self.small = nn.Parameter(torch.randn(5, 2))
        self.dense = nn.Parameter(torch.randn(3, 3))


def tables(model):
    return {"table": model.table, "small": model.small}


class Run:
    """Random steps of a model with its average, and beside it the average of everything at every step."""

    def __init__(self, seed=0, decay=0.01):
        torch.manual_seed(seed)
        self.model = Model()
        self.average = Average(self.model, DECAY, tables(self.model))
        self.dense = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.optimizer = TableOptimizer(tables(self.model).values(), kind="adamw", lr=0.1, decay=decay)
        self.optimizer.follow = self.average.follow
        self.step = 0

    def play(self, steps, skipped=()):
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.step)
            skip = torch.tensor(float(self.step in skipped))
            row_U = torch.randperm(ROWS - 1, generator=generator)[:3] + 1  # row 0 never moves
            grad_UD = torch.randn(3, 4, generator=generator)
            self.model.table.grad = torch.sparse_coo_tensor(row_U[None], grad_UD, (ROWS, 4), is_coalesced=True, check_invariants=False)
            self.model.small.grad = torch.randn(5, 2, generator=generator)  # a dense gradient
            self.average.begin(self.model, self.step, skip)
            self.optimizer.found_inf = skip
            self.optimizer.step()
            with torch.no_grad():
                if not skip:
                    self.model.dense += torch.randn(3, 3, generator=generator)
                self.average.finish(self.model)
                decay = min(DECAY, (1 + self.step) / (10 + self.step))
                for name, parameter in self.model.named_parameters():
                    if not skip:
                        self.dense[name].lerp_(parameter, 1 - decay)
            self.rows = row_U
            self.step += 1
        return self


def test_rows_that_moved_are_up_to_date_and_the_others_when_read():
    run = Run().play(40, skipped=(7, 8, 31))
    assert torch.allclose(run.average.ranker.table[run.rows], run.dense["table"][run.rows], atol=1e-6)
    assert torch.allclose(run.average.ranker.dense, run.dense["dense"], atol=1e-6)
    assert not torch.allclose(run.average.ranker.table, run.dense["table"], atol=1e-3), "the others have waited"
    read = run.average.read(run.model)
    for name, parameter in read.named_parameters():
        assert torch.allclose(parameter, run.dense[name], atol=1e-6), name
    assert torch.equal(read.table[0], run.model.table[0]), "a row that has never moved is its own average"


def test_reading_changes_nothing_but_what_was_due():
    read, unread = Run(), Run()
    for part in (5, 1, 9):
        read.play(part)
        again = copy.deepcopy(read.average.read(read.model).state_dict())
        assert all(torch.equal(tensor, again[name]) for name, tensor in read.average.read(read.model).state_dict().items()), "twice is once"
        unread.play(part)
    ends = [run.average.read(run.model).table for run in (read, unread)]
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("decay", [0.01, 0.0], ids=["row by row", "all rows at once"])
def test_a_row_that_moves_at_every_step_is_averaged_bit_for_bit_as_a_dense_weight(decay):
    run = Run(decay=decay).play(20, skipped=(6,))
    assert torch.equal(run.average.ranker.small, run.dense["small"])


def test_its_state_goes_on_bit_equal():
    whole, half, again = Run().play(24, skipped=(3,)), Run().play(11, skipped=(3,)), Run(seed=5)
    again.model.load_state_dict(half.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    again.average.load_state_dict(half.average.state_dict())
    again.dense, again.step = half.dense, half.step
    again.play(13)
    for run in (whole, again):
        run.average.read(run.model)
    assert all(torch.equal(tensor, again.average.state_dict()[name]) for name, tensor in whole.average.state_dict().items())


@pytest.mark.parametrize("steps", [0, 1])
def test_a_new_average_is_the_ranker_itself_or_near_it(steps):
    run = Run().play(steps)
    for name, parameter in run.average.read(run.model).named_parameters():
        assert torch.allclose(parameter, run.dense[name], atol=1e-6), name


@pytest.mark.parametrize("weight", [0.001, 0.4, 0.9, 1.0])
def test_averages_that_move_together_are_those_that_move_one_by_one(monkeypatch, weight):
    start, ends = [torch.randn(3, 4), torch.randn(7)], [torch.randn(3, 4), torch.randn(7)]
    found = []
    for alone in (True, False):
        monkeypatch.setattr("trainer.fit.average.can_be_asked", lambda device, alone=alone: alone)
        found.append([x.clone() for x in start])
        near(found[-1], ends, torch.tensor(weight))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    near(found[1], ends, torch.tensor(0.0))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
