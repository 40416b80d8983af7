"""The report of a run: one HTML page that a person reads instead of the JSON beside it."""

from trainer.report.run import render

__all__ = ["render"]
