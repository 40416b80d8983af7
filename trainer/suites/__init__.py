"""Suites: permanent validation sets beside the registry. No torch: models come in as functions that score examples."""

from trainer.suites.operate import run
from trainer.suites.score import Model, Score, collect
from trainer.suites.store import SuiteStore

__all__ = ["Model", "Score", "SuiteStore", "collect", "run"]
