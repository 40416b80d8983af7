"""Imports a checkpoint of other code, with a proof that the imported ranker gives the same scores.

`read` takes tensors out of a file and nothing else, `names` says where each goes, `probe` compares scores, `run` seals the release.
"""

from trainer.importing.run import Imported, run

__all__ = ["Imported", "run"]
