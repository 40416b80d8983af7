"""Thin entry point; see trainer/commands.py."""

from trainer.commands import retrain

if __name__ == "__main__":
    retrain()
