"""The next-item objective on ordered sequences without a clock: leave-one-out, full catalogue, seen items removed.

A benchmark of the trunk, comparable with published tables. `sequences` reads and splits, `units` cuts the units of training and
the questions of the judgement, `train` learns and chooses the pass, `judge` ranks, `run` puts them in order.
"""

from trainer.next_item.run import run

__all__ = ["run"]
