"""The moving average of a ranker's weights; rows of tables are averaged when they move, and when somebody looks."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.ranker import Ranker
from trainer.fit.rows import can_be_asked

_CHUNK = 65_536  # rows brought up to date at once


def near(averages: list[Tensor], weights: list[Tensor], weight: Tensor) -> None:
    """Moves averages towards weights by the same part of what lies between, in place.

    A weight that is a tensor of its own makes torch's lerp an operation a parameter. On an accelerator, where launching them takes
    longer than computing them, three operations move all parameters; on the CPU one pass a parameter is faster than three.
    """
    if can_be_asked(weight.device):
        torch._foreach_lerp_(averages, weights, [weight] * len(averages))
        return
    between = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(between, weight)
    torch._foreach_add_(averages, between)


class Average(nn.Module):
    """Exponential moving average of a ranker. A skipped step leaves it as it is.

    While a row w of a table stays as it is, the average a of its values only nears it: after steps with decays d1 .. dk it is
    ``w + d1 .. dk (a - w)``. So the average of a row is left alone until the row moves or the average is read, and then makes up
    for the steps it missed; a row that moves at every step is averaged as every other weight is.

    Args:
        ranker: The ranker; its weights are where the average begins.
        decay: Decay a step, reached after a rise: a short run must not serve its initialisation.
        tables: Names of the parameters that are averaged by row.

    Attributes:
        ranker: The averaged weights; up to date after `read` only.
        clock: float64 scalar, sum of log decays of the steps taken.
        seen: float64, `clock` when each row was last brought up to date, rows of all tables one behind the other.
    """

    clock: Tensor
    seen: Tensor

    def __init__(self, ranker: Ranker, decay: float, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.ranker = copy.deepcopy(ranker).requires_grad_(False)
        self.decay = decay
        self.rows = {name: len(table) for name, table in tables.items()}
        self.register_buffer("clock", torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(sum(self.rows.values()), dtype=torch.float64))
        self._before, self._weight = self.clock, torch.zeros(())
        self._by_table: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, source: Ranker, step: int, skip: Tensor) -> None:
        """Starts a step: what `follow` and `finish` do next belongs to it.

        Args:
            source: The ranker that is averaged.
            step: Step number, from 0.
            skip: Scalar, 1 if the step is skipped, else 0.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        self._before = self.clock.clone()
        self._weight = (1 - decay) * (1 - skip)
        self.clock += math.log(decay) * (1 - skip)
        weights, averages = dict(source.named_parameters()), dict(self.ranker.named_parameters())
        self._by_table = {id(weights[name]): (averages[name], seen_V) for name, seen_V in self._seen().items()}

    def follow(self, table: Tensor, row_U: Tensor | slice, old_UD: Tensor, new_UD: Tensor) -> None:
        """Averages rows of a table that the step has moved from `old_UD` to `new_UD`; a row may come twice if it has not moved.

        All rows come as a slice, and are averaged where they are.
        """
        average, seen_V = self._by_table[id(table)]
        if isinstance(row_U, slice):
            self._follow(average[row_U], seen_V[row_U], old_UD, new_UD)
            return
        row_UD, seen_U = average.index_select(0, row_U), seen_V.index_select(0, row_U)
        self._follow(row_UD, seen_U, old_UD, new_UD)
        average.index_copy_(0, row_U, row_UD)
        seen_V.index_copy_(0, row_U, seen_U)

    def _follow(self, row_UD: Tensor, seen_U: Tensor, old_UD: Tensor, new_UD: Tensor) -> None:
        missed_U1 = -torch.expm1(self._before - seen_U)[:, None]
        row_UD.lerp_(old_UD, missed_U1.to(old_UD.dtype)).lerp_(new_UD, self._weight.to(old_UD.dtype))
        seen_U.copy_(self.clock.expand_as(seen_U))

    @torch.no_grad()
    def finish(self, source: Ranker) -> None:
        """Ends a step: averages all that is no table."""
        pairs = zip(self.ranker.named_parameters(), source.parameters(), strict=True)
        ours, theirs = zip(*((mine, their) for (name, mine), their in pairs if name not in self.rows), strict=True)
        near(list(ours), list(theirs), self._weight)

    @torch.no_grad()
    def read(self, source: Ranker) -> Ranker:
        """Brings all rows up to date and returns the averaged ranker; `source` is the ranker that is averaged."""
        weights, averages = dict(source.named_parameters()), dict(self.ranker.named_parameters())
        for name, seen_V in self._seen().items():
            parts = (averages[name].split(_CHUNK), weights[name].split(_CHUNK), seen_V.split(_CHUNK))
            for average_CD, weight_CD, seen_C in zip(*parts, strict=True):
                average_CD.lerp_(weight_CD, -torch.expm1(self.clock - seen_C)[:, None].to(average_CD.dtype))
        self.seen.copy_(self.clock.expand_as(self.seen))
        return self.ranker

    def _seen(self) -> dict[str, Tensor]:
        return dict(zip(self.rows, self.seen.split(list(self.rows.values())), strict=True))
