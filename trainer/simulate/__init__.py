"""A seeded short-video feed whose true probabilities are known.

`simulate` writes it day by day; `World` and `serve` are the same feed as a function of who chooses what is shown.

How hard it is, measured on 28 days with the default settings by ``python scripts/bench/simulate.py signal=true`` (last seven
days; counting = smoothed rates by item, user, tab and position from strictly earlier days, log-odds added):

SIGNAL_TABLE
"""

from trainer.simulate.behaviour import Requests
from trainer.simulate.feed import Feed, serve
from trainer.simulate.policy import Candidates, ProductionScorer, Scorer, Scores
from trainer.simulate.stage import simulate
from trainer.simulate.world import World

__all__ = ["Candidates", "Feed", "ProductionScorer", "Requests", "Scorer", "Scores", "World", "serve", "simulate"]
