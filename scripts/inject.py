"""Thin entry point; see trainer/commands.py."""

from trainer.commands import inject

if __name__ == "__main__":
    inject()
