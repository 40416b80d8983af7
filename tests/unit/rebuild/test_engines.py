"""Engines run the same tasks: order, errors, killed workers, and what they say while they run."""

import os
import signal
from pathlib import Path

import pytest

from trainer.errors import ConfigError, DataError
from trainer.rebuild import engines
from trainer.rebuild.engines import LocalEngine, Task, engine_of
from trainer.rebuild.pool import Pool, progress_line


def _square(number):
    return number * number


def _refuse(number):
    raise DataError("refused on purpose", got=number, remedy="none")


def _die_once(folder, number):
    """Kills its own process the first time, as a kernel short of memory does."""
    mark = Path(folder) / f"{number}"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pooled(monkeypatch):
    monkeypatch.setattr(engines, "ROWS_A_WORKER", 0)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # workers import the functions of this file


def test_results_come_in_the_order_of_the_tasks_here_and_in_processes(pooled):
    tasks = [Task(_square, (number,)) for number in range(9)]
    for workers in (1, 2):
        engine = LocalEngine(workers)
        assert list(engine.results(tasks)) == [number * number for number in range(9)]
        engine.close()


def test_a_killed_worker_is_replaced_and_no_task_is_lost_or_told_twice(pooled, tmp_path):
    engine = LocalEngine(2)
    assert list(engine.results([Task(_die_once, (str(tmp_path), number)) for number in range(6)])) == list(range(6))
    engine.close()


def test_a_task_that_always_kills_its_worker_is_named(pooled):
    engine = LocalEngine(2)
    with pytest.raises(DataError, match=r"killed again and again[\s\S]*_die, task 1 of 2[\s\S]*more rebuild.user_buckets"):
        list(engine.results([Task(_die, (number,)) for number in range(2)]))


def test_an_error_of_a_task_crosses_the_border_whole(pooled):
    with Pool(LocalEngine(2)) as pool, pytest.raises(DataError, match="refused on purpose") as caught:
        pool.run("x", [Task(_refuse, (number,)) for number in range(3)])
    assert (caught.value.got, caught.value.remedy) == (0, "none")


def test_a_line_now_and_then_says_how_far_it_is_and_how_long_it_takes(capsys):
    clock = iter(range(0, 1000, 9))
    with Pool(LocalEngine(1), clock=lambda: next(clock)) as pool:
        pool.run("examples", [Task(_square, (number,), rows=90) for number in range(10)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3, "at most one in 20 seconds"
    assert lines[0] == "rebuild    examples: 3 of 10 tasks, 270 of 900 rows, 10 rows/s, 0:01:03 left"


def test_time_left_is_by_rows_or_by_tasks_where_nobody_counts_them():
    uneven = [Task(_square, (0,), rows=900), Task(_square, (1,), rows=100)]
    assert progress_line("x", uneven, 1, 9.0).endswith("100 rows/s, 0:00:01 left")
    assert progress_line("x", [Task(_square, (0,))] * 4, 1, 1200.0).endswith("1:00:00 left")


def test_ray_is_asked_for_only_where_it_is_wanted(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert isinstance(engine_of("local", 2), LocalEngine)
    with pytest.raises(ConfigError, match=r"rebuild\.engine[\s\S]*pip install 'rewarm\[ray\]'"):
        engine_of("ray", 2)


def test_a_node_with_other_code_is_refused():
    with pytest.raises(ConfigError, match="another version of the code"):
        engines._call_same_code("0" * 64, Task(_square, (3,)))
    assert engines._call_same_code(engines.code_version(), Task(_square, (3,))) == 9
