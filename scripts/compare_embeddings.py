"""Thin entry point; see trainer/commands.py."""

from trainer.commands import compare_embeddings

if __name__ == "__main__":
    compare_embeddings()
