"""A seeded short-video feed whose true probabilities are known.

`simulate` writes it day by day; `World` and `serve` are the same feed as a function of who chooses what is shown.

How hard and how fast it is with the default settings, measured on 2026-11-22 on one core of an Intel Xeon (289,972 events) by
``python scripts/bench/simulate.py signal=true``; AUC on the last seven of 28 days:

    =========  =========  =====  ==========  ========  ========
    action     base rate  truth  production  counting  sequence
    =========  =========  =====  ==========  ========  ========
    click          0.330  0.788       0.704     0.703     0.727
    long_view      0.177  0.798       0.726     0.716     0.734
    like           0.031  0.798       0.745     0.701     0.703
    follow         0.004  0.816       0.744     0.642     0.652
    =========  =========  =====  ==========  ========  ========

*counting* adds the log-odds of smoothed rates by item, user, tab and position from strictly earlier days; *sequence* is a
logistic regression on these and on what the user watched or skipped in earlier requests, in order. With seeds 1 and 2 click is
0.792 and 0.790, 0.700 and 0.707, 0.700 and 0.699, 0.730 and 0.723. Per second of processor time the feed makes 390,000 events
and the whole stage 235,000; with ``users=40000 days=10`` (103,000 events a day) 360,000 and 280,000.
"""

from trainer.simulate.behaviour import Requests
from trainer.simulate.feed import Feed, serve
from trainer.simulate.policy import Candidates, ProductionScorer, Scorer, Scores
from trainer.simulate.stage import simulate
from trainer.simulate.world import World

__all__ = ["Candidates", "Feed", "ProductionScorer", "Requests", "Scorer", "Scores", "World", "serve", "simulate"]
