"""Fixtures shared by all tests: where the real logs are, and small seeded examples."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the machine; oversubscribed threads make them many times slower

import pytest

ROOT = Path(__file__).resolve().parent.parent


def real_log(name: str) -> Path:
    """Returns the folder of a real log, or skips the test that needs it."""
    folder = Path(os.environ.get("REWARM_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"real log {name!r} is not here: {folder} (set REWARM_DATA)")
    return folder
