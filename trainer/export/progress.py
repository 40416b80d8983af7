"""How far a long export has come, said now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator

from trainer.schema.embeddings import VectorBlock

_EVERY_S = 10.0


class Progress:
    """Prints vectors, vectors a second and, where the source tells how much has come, the time that is left.

    Silent for the first ten seconds.

    Args:
        what: What is counted, for the line.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows = 0

    def over(self, blocks: Iterator[VectorBlock]) -> Iterator[VectorBlock]:
        """Hands blocks on and counts them."""
        start = last = time.monotonic()
        for block in blocks:
            self._rows += len(block.ids)
            now = time.monotonic()
            if now - last >= _EVERY_S:
                last = now
                self._tell(now - start, block.done)
            yield block

    def _tell(self, passed_s: float, done: float | None) -> None:
        left = f", {passed_s * (1 - done) / done:,.0f} s left" if done else ""
        print(f"{'export':<11}{self._rows:,} {self._what}, {self._rows / passed_s:,.0f} a second{left}", flush=True)
