"""How the trunk's blocks are run: compiled, and with or without what is between them kept."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from models.ranker import Ranker
from trainer.config import FitConfig
from trainer.fit.task import RankingTask


class TrunkSettings(Callback):
    """Applies the settings where training happens: a spawned rank would lose what was compiled before it started.

    Args:
        config: `fit.compile` and `fit.checkpoint_activations`.
    """

    def __init__(self, config: FitConfig) -> None:
        self.config = config

    def on_fit_start(self, trainer: L.Trainer, task: RankingTask) -> None:  # type: ignore[override]
        """Sets up the trunk and the branch that is annealed."""
        for learner in (task.trunk, task.branch):
            if learner is not None:
                set_up(learner.ranker, self.config)

    def on_fit_end(self, trainer: L.Trainer, task: RankingTask) -> None:  # type: ignore[override]
        """Leaves the ranker as it came."""
        for learner in (task.trunk, task.branch):
            if learner is not None:
                set_up(learner.ranker, FitConfig())


def set_up(ranker: Ranker, config: FitConfig) -> None:
    """Sets how a ranker's blocks are run; weights and results stay what they are.

    One compiled graph serves every number of rows (`dynamic`), so batches of another size compile nothing anew; attention is a
    break in it, because its groups change from batch to batch.
    """
    ranker.checkpointed = config.checkpoint_activations
    for block in ranker.blocks:
        if config.compile:
            block.compile(dynamic=True)
        else:
            block._compiled_call_impl = None  # undoes `compile`, for which torch has no public opposite
