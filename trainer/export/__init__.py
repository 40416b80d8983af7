"""Embeddings as files that consumers can trust: streamed, checked, hashed, read back, and visible only as a whole. No torch."""

from trainer.export.drift import compare_exports, earlier_moves
from trainer.export.features import read_alignment
from trainer.export.read import lookup, read_embeddings, read_manifest, read_pairs
from trainer.export.write import export

__all__ = [
    "compare_exports",
    "earlier_moves",
    "export",
    "lookup",
    "read_alignment",
    "read_embeddings",
    "read_manifest",
    "read_pairs",
]
