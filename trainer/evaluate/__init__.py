"""Scores the holdout with every model on the same rows, and measures them."""

from trainer.evaluate.run import Evaluation, evaluate
from trainer.evaluate.scorer import RankerScorer

__all__ = ["Evaluation", "RankerScorer", "evaluate"]
