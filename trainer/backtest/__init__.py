"""All stages, day by day: what each way of replacing a model costs until it is as good as the one in production.

`run` replays the nights, `arms` says what each arm trains on and from, `meter` watches the training loop and counts (`models.flops`),
`holdout` judges, `measures` turns curves into answers, `show` prints them.
"""

from trainer.backtest.run import backtest

__all__ = ["backtest"]
