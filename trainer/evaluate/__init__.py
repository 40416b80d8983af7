"""Scores the holdout with every model on the same rows, and measures them."""

from trainer.evaluate.copies import compare_copies
from trainer.evaluate.rescoring import Rescoring, rescoring_checks
from trainer.evaluate.run import Evaluation, Holdout, evaluate, fit_counting, read_evaluation, write_evaluation
from trainer.evaluate.scorer import RankerScorer
from trainer.evaluate.vectors import RankerVectors

__all__ = [
    "Evaluation",
    "Holdout",
    "RankerScorer",
    "RankerVectors",
    "Rescoring",
    "compare_copies",
    "evaluate",
    "fit_counting",
    "read_evaluation",
    "rescoring_checks",
    "write_evaluation",
]
