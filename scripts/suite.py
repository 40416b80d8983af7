"""Thin entry point; see trainer/commands.py."""

from trainer.commands import suite

if __name__ == "__main__":
    suite()
