"""Chains of small operations side by side: a stream a thread, instead of all threads in every operation.

An operation on a few hundred rows is over before a second thread has taken its half: both then mostly wait for each other. A stream
is a Python thread whose operations use no other thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Found = TypeVar("Found")


def in_streams(work: Callable[[int], Found], count: int) -> list[Found]:
    """Calls `work` with 0, 1, ... `count` - 1 at the same time; one stream runs where it is called, with all threads.

    Args:
        work: What a stream does; it runs with autograd's and autocast's defaults, not with those of the caller.
        count: Streams.

    Returns:
        What they returned, in order.
    """
    if count == 1:
        return [work(0)]
    return list(_pool(os.getpid(), count).map(work, range(count)))


@cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """Starts the threads of a process, which a fork would not take along."""
    threads, started = torch.get_num_threads(), Barrier(count)
    pool = ThreadPoolExecutor(count, f"streams of {process}", initializer=_alone)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(threads)  # the last word counts for threads to come
    return pool


def _alone() -> None:
    torch.get_num_threads()  # only after it has looked does a thread keep what it is told
    torch.set_num_threads(1)
