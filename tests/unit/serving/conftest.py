import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("models_kit", Path(__file__).parent.parent / "models" / "conftest.py")
_KIT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_KIT)


@pytest.fixture(scope="session")
def kit():
    """Shapes and rankers of the tests of `models`, every parameter random."""
    return _KIT.Kit
