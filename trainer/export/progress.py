"""How far a long export has come, said now and then."""

from __future__ import annotations

import time

_EVERY_S = 10.0


class Progress:
    """Prints rows, rows a second and, where the total is known, the time that is left; silent for the first ten seconds.

    Args:
        what: What is counted, for the line.
        total: Rows in all, if known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._rows = 0
        self._start = self._last = time.monotonic()

    def add(self, rows: int) -> None:
        """Counts rows."""
        self._rows += rows
        now = time.monotonic()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        rate = self._rows / (now - self._start)
        left = f", {(self._total - self._rows) / rate:,.0f} s left" if self._total and rate else ""
        print(f"{'export':<11}{self._rows:,} {self._what}, {rate:,.0f} a second{left}", flush=True)
