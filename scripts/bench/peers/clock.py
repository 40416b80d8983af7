"""Times training steps of whatever trains: on the word of `scripts/bench/peers.py`, so many steps a round, tools in turn.

Imported by every tool's side, in that tool's own environment: it needs Python and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

MARK = "@bench "  # lines of the protocol; a tool may print what it likes besides


class Finished(Exception):
    """There are no more rounds."""


class Clock:
    """Makes rounds of steps. A step is timed from the end of the step before it, so its data and its bookkeeping are in it.

    Args:
        facts: What is to be said once about the tool: version, number of parameters.
    """

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.wanted = 0
        self.seconds: list[float] = []
        self.positions: list[int] = []
        self.start = 0.0

    def begin(self) -> None:
        """Tells that the first step can be made, and waits for the word."""
        self._answer(self.facts)
        self._wait()

    def step(self, positions: int) -> None:
        """Ends a step.

        Args:
            positions: (event, event that came next) pairs that the step learned; no padding.

        Raises:
            Finished: If no more rounds are wanted.
        """
        self.seconds.append(time.perf_counter() - self.start)
        self.positions.append(positions)
        if len(self.seconds) == self.wanted:
            self._answer({"seconds": self.seconds, "positions": self.positions, "peak_mb": _peak_mb()})
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


def _peak_mb() -> float:
    """Peak of this process since its last exec: `ru_maxrss` would also remember the process it was forked from."""
    with Path("/proc/self/status").open() as lines:
        kilobytes = next(line for line in lines if line.startswith("VmHWM:")).split()[1]
    return int(kilobytes) / 1024
