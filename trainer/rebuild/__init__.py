"""Rebuild: features of past days as they were known then. Reads logs and their health map, writes examples.

Order of reading: `run` (the steps), `plan` (what depends on what), `events` (ingestion), `kernels` (counters), `shares` and `answers`
(the entity pass), `targets` (examples), `tails`, `negatives`; `oracle` and `audit` say whether it is right.
"""

from trainer.rebuild.run import rebuild

__all__ = ["rebuild"]
