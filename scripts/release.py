"""Thin entry point; see trainer/commands.py."""

from trainer.commands import release

if __name__ == "__main__":
    release()
