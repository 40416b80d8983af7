"""Negatives that all rows of a step share, and how often each item is drawn: estimated from the stream, never counted beforehand.

Additional shape suffixes:
    V  rows of the item vocabulary        M  shared negatives        N  targets of a step
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEMORY = 0.01  # share of an item's estimate that one more occurrence replaces, once it has occurred often enough
POPULAR = 0.5  # of the negatives are other rows' targets; the rest is uniform, so that rare items are pushed down as well


class StreamedFrequency(nn.Module):
    """How often items occur in a stream of targets, from the gaps between occurrences.

    The mean gap of an item is the inverse of its frequency (Yi et al. 2019, RecSys, "Sampling-bias-corrected neural modeling",
    algorithm 2). Gaps are measured in targets, not in batches, so an item may occur several times in a batch. An item's first
    gaps are averaged plainly; later ones replace `MEMORY` of the estimate each, so that it follows a drift. The state costs
    three numbers an item; a step costs no more for a larger vocabulary, and asks the device nothing.

    Args:
        rows: V.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.gap_V: Tensor
        self.count_V: Tensor
        self.last_V: Tensor
        self.seen: Tensor
        self.register_buffer("gap_V", torch.zeros(rows))
        self.register_buffer("count_V", torch.zeros(rows))
        self.register_buffer("last_V", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("_now_V", torch.zeros(rows), persistent=False)

    @torch.no_grad()
    def observe(self, target_N: Tensor) -> None:
        """Adds a step's targets, int64 rows."""
        now_V: Tensor = self._now_V  # type: ignore[assignment]
        now_V.index_add_(0, target_N, torch.ones_like(target_N, dtype=now_V.dtype))
        now_N = now_V[target_N]  # an item that occurs twice is written twice, with the same numbers
        now_V[target_N] = 0.0
        self.seen += len(target_N)
        gap_N = (self.seen - self.last_V[target_N]) / now_N
        count_N = self.count_V[target_N] + now_N
        weight_N = torch.maximum(now_N / count_N, 1 - (1 - MEMORY) ** now_N)
        self.gap_V[target_N] = torch.lerp(self.gap_V[target_N], gap_N, weight_N)
        self.count_V[target_N] = count_N
        self.last_V[target_N] = self.seen.expand(len(target_N))

    def share(self, item_M: Tensor) -> Tensor:
        """Returns float32 [M]: the estimated share of each item (int64 rows) among the targets; 0 for an item never seen."""
        gap_M = self.gap_V[item_M]
        return torch.where(gap_M > 0, 1 / gap_M, 0.0)


class SharedNegatives(nn.Module):
    """Draws negatives: half of them targets of the same step, half uniformly from the catalogue (Yang et al. 2020, mixed sampling).

    Args:
        rows: V, reserved rows included.
        reserved: Rows in front that nobody can be served.
        draws: M.
    """

    def __init__(self, rows: int, reserved: int, draws: int) -> None:
        super().__init__()
        self.rows = rows
        self.reserved = reserved
        self.draws = draws
        self.frequency = StreamedFrequency(rows)

    def forward(self, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Draws for one step, after adding its targets to the estimate.

        Args:
            target_N: int64 rows of the step's targets.

        Returns:
            int64 rows [M], and the logarithm of how many times each was to be expected among them: subtracted from the logits,
            the sum of their exponentials estimates that of the whole catalogue without bias. A row's own target is there for
            certain, so nothing is subtracted from it.
        """
        self.frequency.observe(target_N)
        popular = round(self.draws * POPULAR) if len(target_N) else 0
        uniform = self.draws - popular
        popular_M = target_N[torch.randint(max(len(target_N), 1), (popular,), device=target_N.device)]
        uniform_M = torch.randint(self.reserved, self.rows, (uniform,), device=target_N.device)
        negative_M = torch.cat([popular_M, uniform_M])
        expected_M = popular * self.frequency.share(negative_M) + uniform / (self.rows - self.reserved)
        return negative_M, expected_M.log()
