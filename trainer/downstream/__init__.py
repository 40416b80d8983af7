"""The ranking model behind the embeddings: what they are worth to it, and whether the live one survives them. No torch."""

from trainer.downstream.arms import lift
from trainer.downstream.assemble import assemble
from trainer.downstream.baseline import baseline
from trainer.downstream.booster import Booster, LightGBM, Model
from trainer.downstream.features import Encoder, Features
from trainer.downstream.replay import replay

__all__ = ["Booster", "Encoder", "Features", "LightGBM", "Model", "assemble", "baseline", "lift", "replay"]
