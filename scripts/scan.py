"""Thin entry point; see trainer/commands.py."""

from trainer.commands import scan

if __name__ == "__main__":
    scan()
