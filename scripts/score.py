"""Thin entry point; see trainer/commands.py."""

from trainer.commands import score

if __name__ == "__main__":
    score()
