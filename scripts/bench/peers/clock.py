"""Times training steps of whatever trains: on the word of `scripts/bench/peers.py`, so many steps a round, tools in turn.

Imported by every tool's side, in that tool's own environment: it needs Python and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "@bench "  # lines of the protocol; a tool may print what it likes besides


class Finished(Exception):
    """There are no more rounds."""


class Clock:
    """Makes rounds of steps. A step is timed from the end of the step before it, so its data and its bookkeeping are in it.

    On an accelerator only the end of a round waits for the device, and every step counts as long as the mean: whoever runs ahead of the
    device need not stop, and nobody's time is that of launches alone.

    Args:
        wait: Waits for the device; None where every step is over when it returns.
        memory: Tells the peak of the device's memory in MB; None tells the process's.
        facts: What is to be said once about the tool: version, number of parameters.
    """

    def __init__(self, wait: Callable[[], None] | None = None, memory: Callable[[], float] | None = None, **facts: Any) -> None:
        self.wait = wait
        self.memory = memory or _peak_mb
        self.facts = facts
        self.wanted = 0
        self.seconds: list[float] = []
        self.positions: list[Any] = []
        self.start = 0.0

    def begin(self) -> None:
        """Tells that the first step can be made, and waits for the word."""
        self._answer(self.facts)
        self._wait()

    def step(self, positions: Any) -> None:
        """Ends a step.

        Args:
            positions: (event, event that came next) pairs that the step learned; no padding. A number, also one on the device: it is
                read at the end of the round.

        Raises:
            Finished: If no more rounds are wanted.
        """
        self.seconds.append(time.perf_counter() - self.start)
        self.positions.append(positions)
        if len(self.seconds) == self.wanted:
            if self.wait is not None:
                begin = time.perf_counter()
                self.wait()
                mean = (sum(self.seconds) + time.perf_counter() - begin) / self.wanted
                self.seconds = [mean] * self.wanted
            self._answer({"seconds": self.seconds, "positions": [int(count) for count in self.positions], "peak_mb": self.memory()})
            self._wait()
        self.start = time.perf_counter()

    def _wait(self) -> None:
        line = sys.stdin.readline().strip()
        if not line:
            raise Finished
        self.wanted, self.seconds, self.positions = int(line), [], []
        self.start = time.perf_counter()

    def _answer(self, values: dict[str, Any]) -> None:
        print(MARK + json.dumps(values), flush=True)


def on_device(torch: Any, device: str) -> dict[str, Any]:
    """Returns the clock's arguments for a device: ``cpu``, or ``gpu``, for which the tool's own torch is asked."""
    if device == "cpu":
        return {}
    return {"wait": torch.cuda.synchronize, "memory": lambda: torch.cuda.max_memory_allocated() / 2**20}


def trained_on(device: str) -> dict[str, Any]:
    """Returns the arguments of a Lightning Trainer for a device: ``cpu``, or ``gpu``, with products in bf16."""
    return {"accelerator": device, "devices": 1, "precision": "bf16-mixed" if device == "gpu" else "32-true"}


def _peak_mb() -> float:
    """Peak of this process since its last exec: `ru_maxrss` would also remember the process it was forked from."""
    with Path("/proc/self/status").open() as lines:
        kilobytes = next(line for line in lines if line.startswith("VmHWM:")).split()[1]
    return int(kilobytes) / 1024
