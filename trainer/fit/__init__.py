"""Training: a ranker, a plan of batches, Lightning around them."""

from trainer.fit.train import Trained, train

__all__ = ["Trained", "train"]
