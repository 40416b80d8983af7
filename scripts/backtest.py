"""Thin entry point; see trainer/commands.py."""

from trainer.commands import backtest

if __name__ == "__main__":
    backtest()
