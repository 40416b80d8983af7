"""Rankers in plain torch. This package imports nothing of `trainer`; see README.md for how to add a ranker."""
