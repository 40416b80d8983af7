"""Serving: the ranker as an artefact that other runtimes load, proven equal to what was judged, and timed against production's."""

from trainer.serving.artefact import Artefact, load_artefact, write_artefact
from trainer.serving.judge import judge_serving

__all__ = ["Artefact", "judge_serving", "load_artefact", "write_artefact"]
