"""What the meter counts, and that a resumed run goes on counting."""

from types import SimpleNamespace

import pytest

import models
from models.flops import forward_flops, training_flops
from tests.unit.models.test_flops import LENGTHS, POSITIONS, batch_of, shape_of
from trainer.backtest.meter import Meter, milestones, read_points
from trainer.errors import DataError

STEPS = 10


def task_of(annealed=None, average=None):
    ranker = models.build(shape_of("sasrec", layers=1)).train()
    return SimpleNamespace(ranker=ranker, average=average, annealed=annealed)


def trainer_at(step):
    return SimpleNamespace(datamodule=SimpleNamespace(cursor=step, plan=SimpleNamespace(steps=STEPS)))


def play(meter, task, steps, start=True):
    batch = batch_of(LENGTHS, POSITIONS)
    if start:
        meter.on_train_start(trainer_at(steps[0]), task)
    for step in steps:
        meter.on_train_batch_end(trainer_at(step), task, None, batch, step)
    return training_flops(task.ranker, batch)


@pytest.mark.parametrize(("steps", "checkpoints"), [(1, 4), (2, 4), (10, 3), (1000, 8), (50, 0)])
def test_milestones_lie_inside_and_are_few(steps, checkpoints):
    found = milestones(steps, checkpoints)
    assert len(found) <= checkpoints and all(0 < step < steps for step in found)
    assert (1 in found) == (steps > 1 and checkpoints > 0)


def test_every_step_is_counted_and_judging_leaves_the_mode_alone(tmp_path):
    seen, task = [], task_of()
    meter = Meter(lambda ranker: seen.append(ranker.training) or {"click": float(len(seen))}, 3, tmp_path)
    cost = play(meter, task, range(STEPS))
    meter.on_train_end(trainer_at(STEPS), task)
    points = read_points(tmp_path)
    assert [point.step for point in points] == [0, *sorted(milestones(STEPS, 3)), STEPS]
    assert [point.flops for point in points] == [point.step * cost for point in points]
    assert seen == [False] * (len(points) - 1) and task.ranker.training
    assert points[0].ne == {"click": 1.0} and points[-1].ne == {}, "the end is judged as the bundle"


def test_what_is_served_is_judged(tmp_path):
    average = models.build(shape_of("sasrec", layers=1))
    task, seen = task_of(average=average), []
    Meter(lambda ranker: seen.append(ranker) or {}, 3, tmp_path).on_train_start(trainer_at(0), task)
    assert seen == [average]


def test_a_teacher_costs_a_forward_pass_and_an_annealed_copy_its_steps(tmp_path):
    batch, teacher = batch_of(LENGTHS, POSITIONS), models.build(shape_of("hstu"))
    taught, annealed = Meter(None, 0, tmp_path, teacher), Meter(None, 0, tmp_path)
    cost = play(taught, task_of(), range(STEPS))
    assert taught.flops == STEPS * (cost + forward_flops(teacher, batch))
    play(annealed, task_of(annealed=SimpleNamespace(steps=STEPS, anneal=4)), range(STEPS))
    assert annealed.flops == (STEPS + 4) * cost


def test_a_resumed_run_goes_on_counting(tmp_path):
    task = task_of()
    whole, first, second = (Meter(lambda ranker: {"click": 1.0}, 3, tmp_path) for _ in range(3))
    play(whole, task, range(STEPS))
    play(first, task, range(4))
    second.load_state_dict(first.state_dict())
    play(second, task, range(4, STEPS))
    assert second.flops == whole.flops
    assert [point.step for point in second.points] == [point.step for point in whole.points], "the beginning is judged once"


@pytest.mark.parametrize("content", [None, "{", '[{"step": 1}]'])
def test_a_lost_meter_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "meter.json").write_text(content)
    with pytest.raises(DataError, match="cost is unknown") as error:
        read_points(tmp_path)
    assert "meter.json" in str(error.value)
