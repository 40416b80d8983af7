"""Scan: verifies the logs before anything is trained on them. Reads files, writes the health map and the ledger."""

from trainer.logs.layout import discover_days
from trainer.scan.judge import check_budget
from trainer.scan.ledger import write_scan
from trainer.scan.run import run, scan

__all__ = ["check_budget", "discover_days", "run", "scan", "write_scan"]
