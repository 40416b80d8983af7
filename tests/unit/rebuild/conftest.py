"""The laboratory of rebuild tests, as a fixture."""

from types import ModuleType

import pytest

from tests import rebuild_lab


@pytest.fixture
def lab() -> ModuleType:
    """Small nasty logs, and functions that scan, rebuild and read them."""
    return rebuild_lab
