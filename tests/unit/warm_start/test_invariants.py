"""The map of invariants is whole: every rule has tests that exist, and mutations that still apply to the source."""

import ast

import pytest

from tests.invariants import INVARIANTS, ROOT


def test_every_invariant_has_tests_and_mutations():
    assert list(INVARIANTS) == [f"A{number}" for number in range(1, 26)]
    assert all(rule.tests and rule.mutations for rule in INVARIANTS.values())


@pytest.mark.parametrize("number", INVARIANTS)
def test_its_tests_exist_and_its_mutations_apply(number):
    for test in INVARIANTS[number].tests:
        file, name = test.split("[")[0].split("::")
        functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in functions, test
    for file, old, new in INVARIANTS[number].mutations:
        source = (ROOT / file).read_text()
        assert source.count(old) == 1, f"{file} does not hold this text once: {old}"
        ast.parse(source.replace(old, new))
