"""Thin entry point; see trainer/commands.py."""

from trainer.commands import diagnose

if __name__ == "__main__":
    diagnose()
