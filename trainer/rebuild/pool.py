"""Runs tasks: in this process, or in a local pool of processes; results in order either way."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROWS_A_WORKER = 400_000  # starting a process costs about a second; fewer rows are done sooner here


@dataclass(frozen=True)
class Task:
    """A call of a module-level function.

    Attributes:
        function: The function; it and its arguments cross process borders.
        arguments: Its arguments.
        rows: Rows it handles, for the progress line.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    rows: int = 0


class Pool:
    """Local workers, started when first needed; one progress line when a person watches."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
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
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, name: str, tasks: Sequence[Task]) -> list[Any]:
        """Runs tasks and returns their results in order.

        Raises:
            RewarmError: The first one that a task raised.
        """
        if not tasks:
            return []
        line = self._progress.add_task(name, total=len(tasks), rate="")
        results, rows, begun = [], 0, time.monotonic()
        for task, result in zip(tasks, self._results(tasks), strict=True):
            results.append(result)
            rows += task.rows
            self._progress.update(line, advance=1, rate=f"{rows / (time.monotonic() - begun):,.0f} rows/s")
        self._progress.remove_task(line)
        return results

    def _results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        rows = sum(task.rows for task in tasks)
        if self._executor is None and (min(self._workers, len(tasks)) <= 1 or rows < ROWS_A_WORKER):
            return (task.function(*task.arguments) for task in tasks)
        if self._executor is None:
            # spawn: a forked child would inherit the locks of threads that it does not have
            self._executor = ProcessPoolExecutor(self._workers, mp_context=multiprocessing.get_context("spawn"))
        return self._executor.map(_call, tasks)


def _call(task: Task) -> Any:
    return task.function(*task.arguments)
