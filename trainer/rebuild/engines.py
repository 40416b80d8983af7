"""Where tasks run: in this process, in a local pool of processes, or as Ray Core tasks. The same functions, the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from trainer.errors import ConfigError, DataError
from trainer.machine import keep_freed_memory, one_thread
from trainer.rebuild.context import code_version

ROWS_A_WORKER = 400_000  # starting a process costs about a second; fewer rows are done sooner here
RESTARTS = 2  # of a pool whose worker died, without a task being finished in between
OBJECT_STORE_BYTES = 200 << 20  # tasks hand over paths and counts; rows travel through files
_KILLED = "fewer rebuild.workers, or more rebuild.user_buckets and rebuild.entity_buckets; finished tasks are kept"


@dataclass(frozen=True)
class Task:
    """A call of a module-level function that may be made again: it writes its files, then its record.

    Attributes:
        function: The function; it and its arguments cross process borders.
        arguments: Its arguments.
        rows: Rows it handles, for the progress line.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    rows: int = 0


class Engine(Protocol):
    """Runs tasks."""

    def results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yields the results in the order of the tasks; raises what a task raised."""

    def close(self) -> None:
        """Gives back what was started."""


def engine_of(name: str, workers: int) -> Engine:
    """Returns the engine called `name` (``rebuild.engine``); nothing is started before the first task.

    Raises:
        ConfigError: If it is not installed.
    """
    return RayEngine(workers) if name == "ray" else LocalEngine(workers)


class LocalEngine:
    """This process for little work, else a pool of processes, started once and started again when one of them was killed."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yields the results in order.

        Raises:
            DataError: If a worker is killed again and again.
        """
        few = min(self._workers, len(tasks)) <= 1 or sum(task.rows for task in tasks) < ROWS_A_WORKER
        if few and self._executor is None:
            yield from map(_call, tasks)
            return
        done, deaths = 0, 0
        while done < len(tasks):
            try:
                for result in self._started().map(_call, tasks[done:]):
                    done, deaths = done + 1, 0
                    yield result
            except BrokenProcessPool as error:
                self.close()
                deaths += 1
                if deaths > RESTARTS:
                    where = f"{tasks[done].function.__name__}, task {done + 1} of {len(tasks)}"
                    raise DataError("a worker of the rebuild was killed again and again", where=where, remedy=_KILLED) from error

    def close(self) -> None:
        """Stops the pool; tasks that have not begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # spawn: a forked child would inherit the locks of threads that it does not have
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=prepare_process)
        return self._executor


class RayEngine:
    """Ray Core tasks: on the cluster that ``RAY_ADDRESS`` names, else on `workers` CPUs of this machine.

    Every node needs this version of the package, and the rebuild's root and the log under the same paths.
    """

    def __init__(self, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a rebuild tells nobody about itself
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "this engine needs Ray", where="rebuild.engine", got="ray is not installed", remedy="pip install 'rewarm[ray]'"
            ) from error
        self._ray = ray
        self._workers = workers
        self._own = False

    def results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yields the results in order; Ray makes a task again whose worker or node is lost.

        Raises:
            DataError: If a task is lost for good.
        """
        self._start()
        remote = self._ray.remote(max_retries=RESTARTS)(_call_same_code)
        references, done = [remote.remote(code_version(), task) for task in tasks], 0
        try:
            for reference in references:
                result = self._ray.get(reference)
                done += 1
                yield result
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise DataError("a task of the rebuild was lost on Ray", got=str(error).splitlines()[0], remedy=_KILLED) from error
        finally:
            for reference in references[done:]:
                self._ray.cancel(reference)

    def close(self) -> None:
        """Stops Ray, if it was started here."""
        if self._own:
            self._ray.shutdown()
            self._own = False

    def _start(self) -> None:
        if self._ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if os.environ.get("RAY_ADDRESS"):
            self._ray.init(**quiet)
        else:
            store = OBJECT_STORE_BYTES
            self._ray.init(address="local", num_cpus=self._workers, object_store_memory=store, include_dashboard=False, **quiet)
        self._own = True


class _WithoutPandas:
    """An import finder that says what Arrow takes for "not installed"."""

    def find_spec(self, name: str, *_: object) -> None:
        """Refuses one module, and leaves the others to the finders behind."""
        if name == "pandas":
            raise ModuleNotFoundError("tasks of a rebuild do without pandas", name=name)


@cache
def prepare_process() -> None:
    """Prepares a process that serves nothing else: as `keep_memory`, and without pandas.

    Arrow imports pandas, where it is installed, with the first array that it makes; no task needs it, and it takes half a second a process.
    """
    sys.meta_path.insert(0, _WithoutPandas())
    keep_memory()


@cache
def keep_memory() -> None:
    """Lets tasks run on one thread, and keeps the memory that they free.

    Tables of a hundred megabytes come and go; to fault their pages in again cost a fifth of a rebuild's processor time.
    """
    import pyarrow

    one_thread()
    if keep_freed_memory() and "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


def _call(task: Task) -> Any:
    return task.function(*task.arguments)


def _call_same_code(version: str, task: Task) -> Any:
    """Refuses to work on a node with other code: its files would differ and bear the same key."""
    if code_version() != version:
        raise ConfigError(
            "a Ray node has another version of the code", where=os.uname().nodename, got=code_version()[:12], expected=version[:12],
            remedy="install the same version on every node",
        )  # fmt: skip
    keep_memory()  # no more: a Ray worker may serve somebody else afterwards, who needs pandas
    return _call(task)
