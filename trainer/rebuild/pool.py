"""Runs the tasks of a step and says how far it is: a live bar where a person watches, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.rebuild.engines import Engine, Task

LINE_S = 20.0  # between two lines in a log


class Pool:
    """An engine with progress."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes an engine.

        Args:
            engine: Where tasks run; closed with the pool.
            clock: Seconds, for the lines.
        """
        self._engine = engine
        self._clock = clock
        self._progress = Progress(
            TextColumn("rebuild {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), transient=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()
        self._engine.close()

    def run(self, name: str, tasks: Sequence[Task]) -> list[Any]:
        """Runs tasks and returns their results in order.

        Raises:
            RewarmError: The first one that a task raised.
        """
        if not tasks:
            return []
        bar = self._progress.add_task(name, total=len(tasks), rate="")
        results, rows, begun = [], 0, self._clock()
        told = begun
        for task, result in zip(tasks, self._engine.results(tasks), strict=True):
            results.append(result)
            rows += task.rows
            now = self._clock()
            self._progress.update(bar, advance=1, rate=f"{rows / max(now - begun, 1e-3):,.0f} rows/s")
            if now - told >= LINE_S and len(results) < len(tasks) and not self._progress.console.is_terminal:
                print(f"{'rebuild':<11}{progress_line(name, tasks, len(results), now - begun)}", flush=True)
                told = now
        self._progress.remove_task(bar)
        return results


def progress_line(name: str, tasks: Sequence[Task], done: int, seconds: float) -> str:
    """Returns how far a step is and when it will be done, by rows; by tasks where they are not counted.

    Args:
        name: The step.
        tasks: All its tasks.
        done: How many of the first are done; at least one.
        seconds: Since it began; more than 0.
    """
    rows, total = sum(task.rows for task in tasks[:done]), sum(task.rows for task in tasks)
    share = rows / total if rows else done / len(tasks)
    left = round(seconds * (1 - share) / share)
    return f"{name}: {done} of {len(tasks)} tasks, {rows:,} of {total:,} rows, {rows / seconds:,.0f} rows/s, {_clock_time(left)} left"


def _clock_time(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
