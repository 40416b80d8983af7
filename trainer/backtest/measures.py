"""From learning curves to answers: how much compute until an arm is as good as another one, and stays so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.schema.succession import Cost


@dataclass(frozen=True)
class Step:
    """One judged point of an arm's curve over all nights.

    Attributes:
        flops: Operations spent since the first night.
        seconds: Seconds of training since the first night.
        gap: Relative distance in NE to another arm at the end of the same night: ``ne / its ne - 1``.
        last: Whether this is what the night ended with.
    """

    flops: int
    seconds: float
    gap: float
    last: bool


def compute_until(steps: Sequence[Step], within: float, stay: float, unit: int) -> Cost:
    """Finds the first point that is within reach and after which every night ends within reach.

    Args:
        steps: The curve, in order; it must end with the end of a night.
        within: Largest gap of the point itself.
        stay: Largest gap at the end of its own and of every later night.
        unit: Operations that are one unit of `Cost.share`.

    Returns:
        The cost at that point. Not reached: everything spent, as a lower bound. A gap that is NaN is never within.

    Raises:
        ValueError: If there is no point, or the curve does not end with a night.
    """
    if not steps or not steps[-1].last:
        raise ValueError("a curve ends with the end of a night")
    found = None
    for step in reversed(steps):
        if step.last and not step.gap <= stay:
            break
        if step.gap <= within:
            found = step
    step = found or steps[-1]
    return Cost(flops=step.flops, seconds=step.seconds, share=step.flops / unit if unit else 0.0, reached=found is not None)
