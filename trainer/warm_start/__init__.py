"""Warm start: production's weights into a new run. Plan (pure), apply, verify."""

from trainer.warm_start.apply import apply, carry_moments
from trainer.warm_start.plan import Side, plan
from trainer.warm_start.verify import Parity, verify

__all__ = ["Parity", "Side", "apply", "carry_moments", "plan", "verify"]
