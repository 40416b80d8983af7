"""rewarm: retrain the recommender ranker you already run. Read `trainer/pipeline.py` first."""

__version__ = "0.1.0"
