"""Slices as they are declared, and those that are only found lying there."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import ConfigError
from trainer.gate import judge
from trainer.gate.table import prepare


def _table(rows=1_000, **columns):
    rng = np.random.default_rng(0)
    base = {"user": np.arange(rows) // 4, "label_click": (rng.random(rows) < 0.3).astype(float), "challenger_click": np.full(rows, 0.3)}
    return pa.table({**base, **columns})


def _only(table, policy, *slices):
    [column] = prepare(table, policy(slices=list(slices))).slices
    return column


def test_one_value_stands_against_the_rest(policy):
    column = _only(_table(country=["TR", "DE", "FR", None] * 250), policy, "country=TR")
    assert column.values == ["TR", "(rest)"] and column.name == "country=TR"
    assert np.bincount(column.group_N).tolist() == [250, 750]


def test_declared_quantiles_have_equal_mass_and_null_stands_apart(policy):
    age = pa.array([None if i % 10 == 0 else i % 73 + 13 for i in range(1_000)])
    column = _only(_table(age=age), policy, "age:quantile4")
    assert len(column.values) == 5 and column.values[-1] == "null"
    counts = np.bincount(column.group_N)
    assert counts[-1] == 100 and counts[:4].min() > 200


def test_crosses_take_any_of_these(policy):
    table = _table(country=["TR", "DE"] * 500, age=np.arange(1_000))
    column = _only(table, policy, "country=TR*age:quantile2")
    assert set(column.values) == {f"{country}*{age}" for country in ("TR", "(rest)") for age in ("[-inf,499.5)", "[499.5,inf)")}
    assert np.bincount(column.group_N).tolist() == [250] * 4


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("region", "region is missing"), ("country=XX", "country=XX has no row"), ("country*region", "region is missing")],
)
def test_what_is_declared_and_missing_rejects(world, policy, no_rules, table, wanted, words):
    verdict = judge(table(world(rows=5_000)), policy(slices=[wanted]), no_rules)
    assert verdict.verdict == "REJECT" and verdict.failed == [f"slice_column/all/{wanted}=*"]
    assert words in verdict.reason


def test_a_declared_column_that_cannot_be_grouped_rejects(world, policy, no_rules):
    columns = world(rows=5_000) | {"vector": pa.array([[1.0, 2.0]] * 5_000)}
    assert judge(pa.table(columns), policy(slices=["vector"]), no_rules).failed == ["slice_column/all/vector=*"]


def test_columns_that_are_no_slices_are_left_out_and_listed(world, policy, no_rules):
    columns = world(rows=5_000) | {"vector": pa.array([[1.0, 2.0]] * 5_000), "trace": [f"t{i}" for i in range(5_000)]}
    verdict = judge(pa.table(columns), policy(), no_rules)
    assert verdict.verdict == "PROMOTE", verdict.reason
    left_out = {check.slice for check in verdict.checks if check.name == "slice_column"}
    assert left_out == {"vector=*", "trace=*"}
    assert not any(check.slice.startswith("trace=t") for check in verdict.checks)


def test_dictionary_columns_are_like_plain_ones(world, policy, no_rules):
    columns = world(rows=20_000)
    names = pa.array([f"c{i}" if i else None for i in columns["country"]])
    plain, encoded = (judge(pa.table({**columns, "country": x}), policy(), no_rules) for x in (names, names.dictionary_encode()))
    assert plain.checks == encoded.checks
    assert any(check.slice == "country=null" for check in plain.checks)


def test_a_slice_that_cannot_be_read_is_a_configuration_error(policy):
    with pytest.raises(ConfigError, match="a slice cannot be read"):
        prepare(_table(age=np.arange(1_000)), policy(slices=["age:quantile0"]))


@pytest.mark.parametrize("check", ["gauc/click", "gauc/like", "ndcg/value"])
def test_a_single_slate_that_can_be_ranked_rejects_nobody(world, policy, no_rules, table, revalued, check):
    """A mean over one slate has no standard error: two rows that changed places there would be harm for certain."""
    columns = world(rows=40_000, noise=0.0)
    slates, size_S = np.unique(columns["request"], return_counts=True)
    slates = slates[size_S >= 3][:80]
    there_N, mixed_N = np.isin(columns["request"], slates), np.flatnonzero(columns["request"] == slates[0])
    columns["country"] = np.where(there_N, 99, columns["country"])
    for action in ("click", "like"):
        label_N, p_N = columns[f"label_{action}"], columns[f"production_{action}"]
        label_N[there_N] = np.isin(columns["request"], slates[1:10])[there_N]  # the others agree within themselves
        label_N[mixed_N[0]] = 1.0
        p_N[mixed_N] = 0.3 - 0.01 * np.arange(len(mixed_N))
        columns[f"challenger_{action}"] = p_N.copy()
        columns[f"challenger_{action}"][mixed_N] = p_N[mixed_N][::-1]
    found = {one.path: one for one in judge(table(revalued(columns)), policy(), no_rules).checks}[f"{check}/country=99"]
    assert found.estimate > 0.1
    assert found.outcome == "not_testable" and "1 users with different outcomes" in found.sentence
