"""Registry of releases: seal, promote, roll back, freeze. A release (bundle, embeddings, verdict) moves as one.

No torch: a rollback has to work on any machine that sees the files.
"""

from trainer.release.operate import run
from trainer.release.registry import Registry, RegistryStatus, VersionState

__all__ = ["Registry", "RegistryStatus", "VersionState", "run"]
