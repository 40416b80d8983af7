"""The ranking model behind the embeddings: what they are worth to it, and whether the live one survives them. No torch."""

from trainer.downstream.arms import later_scores, lift
from trainer.downstream.assemble import assemble
from trainer.downstream.baseline import baseline
from trainer.downstream.booster import Booster, CatBoost, LightGBM, Model, make_booster
from trainer.downstream.features import Encoder, Features
from trainer.downstream.final import Fitted, final_scores, read_final, write_final
from trainer.downstream.join import join_tables
from trainer.downstream.joint import Choice, choose_final, first_final
from trainer.downstream.replay import features_of, replay, used_columns

__all__ = [
    "Booster",
    "CatBoost",
    "Choice",
    "Encoder",
    "Features",
    "Fitted",
    "LightGBM",
    "Model",
    "assemble",
    "baseline",
    "choose_final",
    "features_of",
    "final_scores",
    "first_final",
    "join_tables",
    "later_scores",
    "lift",
    "make_booster",
    "read_final",
    "replay",
    "used_columns",
    "write_final",
]
