"""Scores the holdout with every model on the same rows, and measures them."""

from trainer.evaluate.run import Evaluation, Holdout, evaluate, fit_counting, read_evaluation, write_evaluation
from trainer.evaluate.scorer import RankerScorer
from trainer.evaluate.vectors import RankerVectors

__all__ = ["Evaluation", "Holdout", "RankerScorer", "RankerVectors", "evaluate", "fit_counting", "read_evaluation", "write_evaluation"]
