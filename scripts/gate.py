"""Thin entry point; see trainer/commands.py."""

from trainer.commands import gate

if __name__ == "__main__":
    gate()
