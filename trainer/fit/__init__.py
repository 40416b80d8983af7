"""Training: a ranker, a plan of batches, Lightning around them."""

from trainer.fit.train import Trained, TrainLog, read_trained, train

__all__ = ["TrainLog", "Trained", "read_trained", "train"]
