"""What it costs to replace a model: production continued, grown, stacked, distilled, another architecture, and from scratch.

    python scripts/bench/succession.py --out DIR                                    # simulated log, 30 days, the last 4 judged
    python scripts/bench/succession.py --out DIR --days 90 --nights 7
    python scripts/bench/succession.py --out DIR --log globo --data DIR --one-in 16 # or kuairand: real logs

Production is a two-layer sasrec of width 64, trained once on all earlier days; the new model has four layers of width 128. The
table and `succession.json` are those of `scripts/backtest.py`, which this only calls with the settings of the benchmark;
``OVERRIDES`` after ``--`` are added to them (``-- arms.warm_grown.seeds=1``, or ``-- arms=core`` for the few arms that a real log
needs). A stopped run goes on with the same command. More for less time: ``truth=FOLDER`` of the simulated log judges against its true
probabilities, and ``behind=10 nights=1`` has one night learn eleven days, with a curve over all of them, instead of eleven nights
that each learn one.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from composed import configured, log_arguments, log_settings, parsed

from trainer.backtest import backtest
from trainer.backtest.show import show
from trainer.config import BacktestConfig

# Short histories and few checkpoints: the whole table is to fit half an hour of one core.
SETTINGS = ("model.max_history=20", "fit.batch_targets=256", "checkpoints=6")


def main() -> None:
    options = _arguments()
    settings = [*log_settings(options), f"nights={options.nights}", *SETTINGS, *options.overrides]
    show(backtest(configured(BacktestConfig, "backtest", *settings)))


def _arguments() -> argparse.Namespace:
    parser = log_arguments(__doc__, ("globo", "kuairand"), days=30, users=3000)
    parser.add_argument("--nights", type=int, default=4)
    return parsed(parser)


if __name__ == "__main__":
    main()
