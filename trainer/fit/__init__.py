"""Training: a ranker, a plan of batches, Lightning around them."""

from trainer.fit.run import FitResult, fit

__all__ = ["FitResult", "fit"]
