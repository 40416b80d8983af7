"""rewarm's column of scripts/bench/silent_failures.py, and that its judge sees what other tools do wrong."""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("silent_failures", ROOT / "scripts" / "bench" / "silent_failures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["silent_failures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["silent_failures"]


def outcomes(bench, tool):
    return {case.name: bench.outcome(case, tool).outcome for case in bench.CASES}


def test_rewarm_is_never_wrong_without_a_word(bench):
    found = outcomes(bench, "rewarm")
    assert len(found) >= 12
    refused = {"tied layer not resized", "extra unused tensor", "renamed tower", "other hash size", "other hash, same size"}
    assert found == {name: bench.ERROR if name in refused else bench.RIGHT for name in found}


@pytest.mark.parametrize(
    "name", ["same ids in another order", "one id swapped for a new one", "padding row moved", "other hash, same size"]
)
def test_the_judge_sees_a_table_that_was_copied_by_position(bench, name):
    case = next(case for case in bench.CASES if case.name == name)
    assert bench.outcome(case, "torch DCP allow_partial_load").outcome == bench.WRONG


@pytest.mark.parametrize("name", ["parameter before others in the optimizer", "step kept with zero moments"])
def test_the_judge_sees_moments_that_are_another_parameters_or_missing(bench, name):
    case = next(case for case in bench.CASES if case.name == name)
    assert bench.outcome(case, "Lightning strict=False").outcome == bench.WRONG
