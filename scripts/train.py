"""Thin entry point; see trainer/commands.py."""

from trainer.commands import train

if __name__ == "__main__":
    train()
