"""Bundles on disk: written once, verified on every read, never unpickled."""

from trainer.checkpoint.bundle import Bundle, build_ranker, read_bundle, write_bundle

__all__ = ["Bundle", "build_ranker", "read_bundle", "write_bundle"]
