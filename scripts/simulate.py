"""Thin entry point; see trainer/commands.py."""

from trainer.commands import simulate

if __name__ == "__main__":
    simulate()
