"""The optimizer of tables: untouched rows stay bit-equal, touched ones move as they should, state survives."""

import copy

import pytest
import torch

from trainer.fit.tables import TableOptimizer

LR, BETAS = 0.01, (0.9, 0.99)


def gradients(steps, rows=6, width=4, touched=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        grad = torch.randn(rows, width, generator=generator)
        if touched is not None:
            mask = torch.zeros(rows, 1)
            mask[list(touched(step))] = 1
            grad = grad * mask
        yield grad


def table(rows=6, width=4):
    return torch.nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(9)))


def play(optimizer, parameter, grads):
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach().clone()


def test_rows_touched_at_every_step_move_as_under_dense_adamw():
    ours, theirs = table(), table()
    play(TableOptimizer([ours], kind="adamw", lr=LR, betas=BETAS), ours, gradients(20))
    play(torch.optim.AdamW([theirs], lr=LR, betas=BETAS, weight_decay=0.0), theirs, gradients(20))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_all_rows_at_once_move_as_row_by_row(monkeypatch):
    """40 rows of which two have no gradient, then one of them, then none; one row's steps are not the others' then."""

    def touched(step):
        return set(range(40)) - ({3, 17} if step < 4 else {17} if step < 6 else set())

    def run(whole):
        parameter, moves, fused = table(40), torch.zeros(40, 4), []
        optimizer = TableOptimizer([parameter], kind="adamw", lr=LR, betas=BETAS)
        update = optimizer._update_whole
        monkeypatch.setattr(optimizer, "_update_whole", lambda *of: whole and (fused.append(update(*of)) or fused[-1]))
        optimizer.follow = lambda table, row, old, new: moves.__setitem__(row, moves[row] + new - old)
        start = parameter.detach().clone()
        end = play(optimizer, parameter, gradients(9, 40, touched=touched))
        torch.testing.assert_close(start + moves, end)
        return end, optimizer.state[parameter], fused

    (end, state, fused), (twin, twins, _) = run(True), run(False)
    assert fused == [True] * 9, "a row that comes for the first time has missed nothing"
    torch.testing.assert_close(end, twin, rtol=1e-5, atol=1e-7)
    for key in ("step", "last", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(state[key], twins[key], rtol=1e-5, atol=1e-7)


def test_all_rows_at_once_only_where_none_has_missed_a_step(monkeypatch):
    parameter = table(40)
    optimizer = TableOptimizer([parameter], kind="adamw", lr=LR, betas=BETAS)
    update, fused = optimizer._update_whole, []
    monkeypatch.setattr(optimizer, "_update_whole", lambda *of: fused.append(update(*of)) or fused[-1])
    pauses = {2: {3}, 5: set(range(6))}
    play(optimizer, parameter, gradients(8, 40, touched=lambda step: set(range(40)) - pauses.get(step, set())))
    assert fused == [True, True, True, False, True, False, False, True], (
        "row 3 returns at step 3; at step 5 too many pause, at 6 they return"
    )


def test_the_update_of_a_row_that_missed_steps_is_dense_adamws_at_that_step():
    def seldom(step):
        return (0, 5) if step in (3, 11, 12) else (0,)

    ours, theirs = table(), table()
    lazy = TableOptimizer([ours], kind="adamw", lr=LR, betas=BETAS)
    dense = torch.optim.AdamW([theirs], lr=LR, betas=BETAS, weight_decay=0.0)
    for step, grad in enumerate(gradients(15, touched=seldom)):
        before = ours[5].detach().clone(), theirs[5].detach().clone()
        for optimizer, parameter in ((lazy, ours), (dense, theirs)):
            parameter.grad = grad.clone()
            optimizer.step()
        moved = ours[5].detach() - before[0]
        if 5 in seldom(step):
            assert torch.allclose(moved, theirs[5].detach() - before[1], atol=1e-6)
            for key in ("exp_avg", "exp_avg_sq"):
                assert torch.allclose(lazy.state[ours][key][5], dense.state[theirs][key][5], atol=1e-7)
        else:
            assert not moved.any(), "an untouched row stays bit-equal"


@pytest.mark.parametrize("kind", ["adamw", "rowwise_adagrad"])
def test_untouched_rows_neither_move_nor_decay(kind):
    parameter = table()
    start = parameter.detach().clone()
    optimizer = TableOptimizer([parameter], kind=kind, lr=LR, betas=BETAS, decay=0.1)
    end = play(optimizer, parameter, gradients(10, touched=lambda step: (1, 2)))
    assert torch.equal(end[[0, 3, 4, 5]], start[[0, 3, 4, 5]]) and not torch.equal(end[1:3], start[1:3])
    assert optimizer.state[parameter]["last"].tolist() == [0, 10, 10, 0, 0, 0]


def test_rowwise_adagrad_keeps_one_number_a_row():
    parameter = table()
    start = parameter.detach().clone()
    optimizer = TableOptimizer([parameter], kind="rowwise_adagrad", lr=LR)
    grads = list(gradients(3, touched=lambda step: (0,) if step else (0, 1)))
    end = play(optimizer, parameter, grads)
    total, row = torch.zeros(()), start[0].clone()
    for grad in grads:
        total = total + grad[0].square().mean()
        row = row - LR * grad[0] / (total.sqrt() + 1e-8)
    assert torch.allclose(end[0], row, atol=1e-7)
    state = optimizer.state[parameter]
    assert state["sum"].shape == (6,) and float(state["sum"][0]) == pytest.approx(float(total)) and set(state) == {"step", "last", "sum"}


def test_a_touched_row_decays_by_the_steps_it_missed():
    parameter = table()
    optimizer = TableOptimizer([parameter], kind="rowwise_adagrad", lr=0.0, decay=0.01)
    start = parameter.detach().clone()
    end = play(optimizer, parameter, gradients(8, touched=lambda step: (0, 1) if step in (0, 7) else (0,)))
    assert torch.allclose(end[1], start[1] * (1 - 7 * 0.01)), "touched first at step 1: no decay; then after 7 steps"
    assert torch.allclose(end[0], start[0] * (1 - 0.01) ** 7)
    optimizer.param_groups[0]["decay"] = 0.5
    state = optimizer.state[parameter]
    state["last"][2] = 1  # 8 steps ago: 0.5 x 8 is more than everything
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[2] = 1.0
    optimizer.step()
    assert not parameter[2].detach().any(), "a decay never exceeds the whole row"


@pytest.mark.parametrize("kind", ["adamw", "rowwise_adagrad"])
def test_state_survives_saving_by_torch_and_by_name(kind):
    grads = list(gradients(12, touched=lambda step: {step % 6, 2}))
    whole = table()
    play(TableOptimizer([whole], kind=kind, lr=LR, betas=BETAS, decay=0.01), whole, grads)
    for way in ("torch", "name"):
        half = table()
        first = TableOptimizer([half], kind=kind, lr=LR, betas=BETAS, decay=0.01)
        play(first, half, grads[:5])
        again = TableOptimizer([half], kind=kind, lr=LR, betas=BETAS, decay=0.01)
        if way == "torch":
            again.load_state_dict(copy.deepcopy(first.state_dict()))
        else:
            assert again.restore(half, dict(first.state[half]))
        assert torch.equal(play(again, half, grads[5:]), whole), way


def test_another_optimizers_state_is_not_taken_for_ones_own():
    parameter = table()
    adam = {"exp_avg": torch.zeros(6, 4), "exp_avg_sq": torch.ones(6, 4), "step": torch.tensor(100.0)}
    assert not TableOptimizer([parameter], kind="rowwise_adagrad", lr=LR).restore(parameter, adam)
    optimizer = TableOptimizer([parameter], kind="adamw", lr=LR)
    assert optimizer.restore(parameter, adam)
    assert optimizer.state[parameter]["last"].tolist() == [100.0] * 6, "dense AdamW has touched every row at its last step"
