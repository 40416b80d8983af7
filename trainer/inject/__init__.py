"""Inject: damages a copy of any log directory on purpose, every kind of the catalogue, and says exactly what it did."""

from trainer.inject.hazards import HAZARDS, hazard
from trainer.inject.run import KINDS, damage, inject, run
from trainer.inject.score import Score, score

__all__ = ["HAZARDS", "KINDS", "Score", "damage", "hazard", "inject", "run", "score"]
