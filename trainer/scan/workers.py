"""Killable readers: a damaged file may hang, crash or eat all memory, and none of that may happen to the run.

Each reader is a process with an address-space limit. A call that passes its deadline ends with the process killed and
another one started; a call whose process dies is reported the same way.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

from trainer.errors import RewarmError
from trainer.machine import one_thread

_GIB = 1 << 30
_BACKOFF_S = 0.2
_START_S = 120.0
_ATTEMPTS = {"missing_file": 0, "oversized_read": 0, "read_timeout": 1}  # second tries that can help; others as configured


@dataclass(frozen=True)
class Failure:
    """A call that gave no result.

    Attributes:
        kind: Name of the fault catalogue.
        evidence: What happened.
    """

    kind: str
    evidence: str


@dataclass(frozen=True)
class Call:
    """A module-level function and its arguments; both cross a process border."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """What became of a call.

    Attributes:
        result: Its result, or the last `Failure`.
        failures: Earlier attempts.
    """

    result: Any
    failures: list[Failure]


class Reader:
    """One killable process that runs calls."""

    def __init__(self, deadline_s: float, memory_gb: float) -> None:
        self._deadline_s = deadline_s
        self._memory = int(memory_gb * _GIB)
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, call: Call) -> Any:
        """Runs a call.

        Returns:
            Its result, or a `Failure`.

        Raises:
            RewarmError: One that the call raised on purpose.
        """
        try:
            pipe = self._connect()
            pipe.send(call)
            if not pipe.poll(self._deadline_s):
                self.close()
                return Failure("read_timeout", f"no answer within {self._deadline_s:g} s; the reader was killed")
            answer = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode
            self.close()
            return Failure("worker_killed", f"the reader died with exit code {code}")
        if isinstance(answer, RewarmError):
            raise answer
        return answer

    def close(self) -> None:
        """Kills the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _connect(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")  # a forked child would inherit locks held by other threads
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._memory), daemon=True)
            self._process.start()
            theirs.close()
            # A call's deadline is for the call: on a busy machine a process takes longer to start than a file to read.
            if not self._pipe.poll(_START_S):
                raise EOFError
            self._pipe.recv()
        return self._pipe


class ReaderPool:
    """Runs calls on several readers; transient failures are tried again."""

    def __init__(self, workers: int, deadline_s: float, memory_gb: float, retries: int) -> None:
        self._threads = ThreadPoolExecutor(max(workers, 1))
        self._ahead = 2 * max(workers, 1)
        self._retries = retries
        self._make = lambda: Reader(deadline_s, memory_gb)
        self._own = threading.local()
        self._readers: list[Reader] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def map(self, calls: Iterable[Call]) -> Iterator[Done]:
        """Yields what became of every call, in order; a few calls ahead of the consumer, so that results do not pile up."""
        waiting: deque[Future[Done]] = deque()
        for call in calls:
            waiting.append(self._threads.submit(self._persist, call))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def run(self, call: Call) -> Done:
        """Runs one call, beside those of a `map` that is going on."""
        return self._threads.submit(self._persist, call).result()

    def _persist(self, call: Call) -> Done:
        if not hasattr(self._own, "reader"):
            self._own.reader = self._make()
            self._readers.append(self._own.reader)
        result, failures = self._own.reader.run(call), []
        for attempt in range(self._retries):
            if not isinstance(result, Failure) or attempt >= _ATTEMPTS.get(result.kind, self._retries):
                break
            failures.append(result)
            time.sleep(_BACKOFF_S * 2**attempt)
            result = self._own.reader.run(call)
        return Done(result, failures)


def _serve(pipe: Connection, memory: int) -> None:
    """Loop of the reader process."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    one_thread()
    pipe.send("ready")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            call = pipe.recv()
            pipe.send(_answer(call))


def _answer(call: Call) -> Any:
    try:
        return call.function(*call.arguments)
    except FileNotFoundError as error:
        return Failure("missing_file", f"{error.strerror}: {error.filename}")
    except MemoryError as error:
        return Failure("oversized_read", f"the file asks for more memory than a reader may use ({str(error)[:120]})")
    except OSError as error:
        return Failure("unreadable_file", f"{type(error).__name__}: {str(error)[:160]}")
    except RewarmError as error:
        return error
