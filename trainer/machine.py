"""What a run may take of its machine: cores, threads of torch and of the loader, memory. Decided here and nowhere else; needs no torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

MOST_THREADS = 16  # a step's matrices are small: beyond this, threads wait for each other. Measured for one and two only.
MOST_WORKERS = 2  # loader threads a GPU: they share Python's lock with the thread that feeds the device
CHOOSE_WORKERS = -1
# A thread that waits looks so often whether its turn has come before it sleeps. Never (OMP_WAIT_POLICY=PASSIVE) makes a step on two
# quiet cores 1.4 times slower, thirty thousand times makes it 1.8 times slower where other work holds the cores (scripts/bench/RESULTS.md).
_LOOKS = "10000"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_MIB = 1 << 20


@dataclass(frozen=True)
class Share:
    """What one rank takes.

    Attributes:
        threads: Threads of torch in the training process.
        workers: Loader threads; 0 loads between the steps.
    """

    threads: int
    workers: int


def cores(root: Path = Path("/")) -> int:
    """Returns how many cores this process may use: those of its affinity mask, and no more than its control groups grant.

    Args:
        root: Root of the file system.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas(root))]))


def share(
    available: int, *, ranks: int = 1, on_gpu: bool = False, threads: int = 0, workers: int = CHOOSE_WORKERS, most: int = MOST_THREADS
) -> Share:
    """Divides the cores among the ranks of a machine, and a rank's cores among torch and the loader.

    On the CPU batches are made between the steps: that takes about a hundredth of a step, and a thread for it would take a core
    from the step. A GPU leaves the cores idle, so others than the one that feeds it may load.

    Args:
        available: Cores of the machine (`cores`).
        ranks: Ranks on it.
        on_gpu: Whether the steps are made on a GPU.
        threads: Threads that the user wants (``fit.threads``); 0 chooses.
        workers: Loader threads that the user wants (``fit.workers``); `CHOOSE_WORKERS` chooses.
        most: Never chooses more threads than this.
    """
    own = max(available // ranks, 1)
    if workers == CHOOSE_WORKERS:
        workers = min(own - 1, MOST_WORKERS) if on_gpu else 0
    return Share(threads or max(min(own - workers, most), 1), workers)


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells the numeric libraries how many threads they may start, and how these wait; what the user has set stays.

    To be called before the libraries are loaded. Torch, OpenBLAS, MKL, Arrow and LightGBM all read ``OMP_NUM_THREADS``; by
    themselves they count the machine's cores, also in a container that is granted two of sixty-four.
    """
    environment.setdefault("OMP_NUM_THREADS", str(min(cores(), MOST_THREADS)))
    if "OMP_WAIT_POLICY" not in environment:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"  # what OpenMP libraries other than GNU's know
        environment.setdefault("GOMP_SPINCOUNT", _LOOKS)


def threads_of_openmp(environment: MutableMapping[str, str] = os.environ) -> int:
    """Returns the most threads that ``OMP_NUM_THREADS`` allows a process, `MOST_THREADS` where it says nothing."""
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else MOST_THREADS


def one_thread() -> None:
    """Initialises a process of a pool that has a process a core: its libraries start no threads of their own."""
    import pyarrow

    pyarrow.set_cpu_count(1)


def keep_freed_memory(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Lets glibc keep the memory of a training step for the next one, instead of giving it back and faulting it in again.

    It holds for all of the process, so its size stays near its peak. Settings of the user's (``MALLOC_*``, ``GLIBC_TUNABLES``) stay.

    Returns:
        Whether it was set; another C library has no such switch.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1024 * _MIB), (_M_TRIM_THRESHOLD, 2047 * _MIB), (_M_TOP_PAD, 64 * _MIB))
    return all(mallopt(name, value) == 1 for name, value in settings)


def _quotas(root: Path) -> Iterator[float]:
    """Yields the CPUs that each control group of this process grants, from its own up to the root; groups without a limit yield none."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct"):
            continue
        # Inside a container the path may be that of the host: then only the mount's own files are there.
        own = mount / controllers / path.strip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(mount):
                break
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (unified := folder / "cpu.max").is_file():
            quota, period = unified.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota != "max" and float(quota) > 0 and float(period) > 0:  # cgroup v1 says -1 for no limit
            yield float(quota) / float(period)
    except (OSError, ValueError):
        return
