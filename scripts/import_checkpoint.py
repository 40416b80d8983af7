"""Thin entry point; see trainer/commands.py."""

from trainer.commands import import_checkpoint

if __name__ == "__main__":
    import_checkpoint()
