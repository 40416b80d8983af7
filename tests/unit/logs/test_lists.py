"""Columns of lists and vectors: read from Arrow and JSON, damage kept to its cell, and what becomes of them in examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.logs.conform import conform, declared_type, logical_type
from trainer.logs.normalise import feature_values
from trainer.logs.treat import treat
from trainer.schema.health import CellRule
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, SideTableSpec, TimeSpec, parts_of, whole_name

TAGS, VECTOR = ColumnSpec(kind="list", width=3), ColumnSpec(kind="vector", width=2, minimum=-10, maximum=10)


def specification(**changes) -> LogSpec:
    values = {
        "name": "log", "root": ".", "user": "user", "item": "item", "event_time": TimeSpec(column="ts"),
        "actions": {"click": ActionSpec(expression="click")}, "features": {"tags": TAGS, "taste": VECTOR},
    }  # fmt: skip
    return LogSpec(**{**values, **changes})


def conformed(column: pa.Array, kind: str):
    table, findings = conform(pa.table({"x": column}), {"x": kind})
    return table["x"].to_pylist(), [(finding.kind, finding.rows, finding.action) for finding in findings]


def parts(spec: ColumnSpec, column: pa.Array):
    kind = declared_type(logical_type(column.type), spec)
    findings = []
    values = feature_values(conform(pa.table({"x": column}), {"x": kind})[0], "x", spec, "UTC", findings)
    rows = list(zip(*(value.to_pylist() for value in values.values()), strict=True))
    return list(values), rows, [(finding.kind, finding.rows, finding.action) for finding in findings]


@pytest.mark.parametrize(
    ("kind", "column", "expected", "damaged"),
    [
        ("integer[]", pa.array([[1, 2], None, [], [3]]), [[1, 2], None, [], [3]], 0),
        ("integer[]", pa.array([[1.0, 2.5], [2.5]]), [[1], None], 2),
        ("integer[]", pa.array([[1, None], [None]]), [[1], None], 2),
        (
            "integer[]", pa.array(["[1, 2]", "[]", None, "1, 2", "[[1]]", "{}", "[1", '["7"]']),
            [[1, 2], [], None, None, None, None, None, [7]], 4,
        ),
        ("text[]", pa.array(['["a", 5, true]', '["b"'], pa.large_string()), [["a", "5", "true"], None], 1),
        ("text[]", pa.array([["a"], ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), [["a"], ["b", "a"]], 0),
        ("text[]", pa.array([["a"]], pa.large_list(pa.string())), [["a"]], 0),
        ("text[]", pa.array([7, 8]), [None, None], 2),
        ("text[]", pa.array([None, None]), [None, None], 0),
        ("real[2]", pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)), [[1.0, 2.0], [3.0, 4.0]], 0),
        ("real[2]", pa.array([[1.0, 2.0], [1.0], [1.0, 2.0, 3.0], [1.0, None], None, []]), [[1.0, 2.0], None, None, None, None, None], 4),
        ("real[2]", pa.array(["[0.5, 1e-3]", "[0.5, NaN]", '["a", 1]']), [[0.5, 1e-3], None, None], 2),
        ("real[2]", pa.array([0.5]), [None], 1),
    ],
)  # fmt: skip
def test_lists_are_read_value_by_value_and_damage_stays_in_its_cell(kind, column, expected, damaged):
    got, findings = conformed(column, kind)
    assert got == expected
    assert findings == ([("list_damage", damaged, "mask")] if damaged else [])


def test_a_slice_is_read_like_the_whole():
    whole = pa.array([[9, 9], [1, 2], None, [3]])
    assert conformed(whole.slice(1), "integer[]")[0] == [[1, 2], None, [3]]
    assert conformed(pa.array([["a"], None, ["b", "c"]]).slice(1, 2), "text[]")[0] == [None, ["b", "c"]]


def test_the_finding_shows_what_is_wrong():
    evidence = conform(pa.table({"x": pa.array(["a|b"])}), {"x": "text[]"})[1][0].evidence
    assert "1 of 1 cells" in evidence and "JSON array" in evidence and "a|b" in evidence
    evidence = conform(pa.table({"x": pa.array([[1.0, 2.0, 3.0]])}), {"x": "real[8]"})[1][0].evidence
    assert "vectors of 8 numbers" in evidence and "3 values" in evidence


def test_a_list_is_its_first_distinct_values_in_ascending_order():
    names, rows, findings = parts(TAGS, pa.array([["b", "a", "b"], ["d", "c", "b", "a"], [], None, ["z"]]))
    assert names == ["x[0]", "x[1]", "x[2]"]
    assert rows == [("a", "b", None), ("b", "c", "d"), (None,) * 3, (None,) * 3, ("z", None, None)]
    assert findings == [("list_overflow", 1, "count")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.lists(st.integers(-3, 9), max_size=6)), max_size=8), st.randoms())
def test_parts_of_lists_agree_with_plain_python_and_do_not_depend_on_order(cells, random):
    column = pa.array(cells, pa.list_(pa.int64()))
    _, rows, _ = parts(replace(TAGS, width=4), column)
    for cell, row in zip(cells, rows, strict=True):
        first = sorted(list(dict.fromkeys(cell or []))[:4])
        assert list(row) == first + [None] * (4 - len(first))
    short = [list(dict.fromkeys(cell or []))[:4] for cell in cells]
    turned = [random.sample(cell, len(cell)) for cell in short]
    assert parts(replace(TAGS, width=4), pa.array(turned, column.type))[1] == rows


def test_a_vector_is_its_numbers_and_null_as_a_whole():
    column = pa.array([[1.0, 2.0], [np.nan, 1.0], [1.0, 11.0], None, [-10.0, 10.0], [1.0]])
    names, rows, findings = parts(VECTOR, column)
    assert names == ["x[0]", "x[1]"]
    assert rows == [(1.0, 2.0), (None, None), (None, None), (None, None), (-10.0, 10.0), (None, None)]
    assert findings == [("non_finite", 1, "mask"), ("out_of_range", 1, "mask")]


def rule(feature: str, **changes) -> CellRule:
    return CellRule(kind="sentinel_spike", feature=feature, evidence="", **changes)


def treated(table: pa.Table, *rules: CellRule):
    kept, findings, dropped = treat(table, specification(), rules, "file")
    assert not dropped
    return kept, [finding.rows for finding in findings]


def test_rules_take_values_out_of_lists_and_null_vectors_that_hold_them():
    tags = pa.array([["a", "-1"], ["-1"], None, ["b"]])
    table = pa.table({"tags": tags, "taste": pa.array([[1.0, -1.0], [2.0, 2.0], None, [-1.0, -1.0]])})
    kept, rows = treated(table, rule("tags", values=["-1"]), rule("taste", values=["-1"]))
    assert kept["tags"].to_pylist() == [["a"], [], None, ["b"]] and rows == [2, 2]
    assert kept["taste"].to_pylist() == [None, [2.0, 2.0], None, None]
    kept, rows = treated(table, rule("tags", file="file"), rule("taste", multiply=10.0))
    assert kept["tags"].to_pylist() == [None] * 4 and kept["taste"].to_pylist() == [[10.0, -10.0], [20.0, 20.0], None, [-10.0, -10.0]]
    assert rows == [3, 3]


def test_names_of_parts():
    assert list(parts_of({"a": ColumnSpec(kind="list"), "b": ColumnSpec(), "c": VECTOR})) == [
        *(f"a[{i}]" for i in range(8)),
        "b",
        "c[0]",
        "c[1]",
    ]
    assert parts_of({"c": VECTOR})["c[1]"].kind == "numeric" and parts_of({"c": VECTOR})["c[1]"].minimum == -10
    assert [whole_name(name) for name in ("a[12]", "a", "a[x]", "[3]", "a[1]b")] == ["a", "a", "a[x]", "[3]", "a[1]b"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: ColumnSpec(kind="vector"), "needs a width"),
        (lambda: ColumnSpec(kind="vector", width=0), "at least 1"),
        (lambda: ColumnSpec(kind="numeric", width=3), "only a list or a vector"),
        (lambda: ColumnSpec(kind="list", minimum=0), "no range"),
        (lambda: ColumnSpec(kind="list", transform="log"), "no transform"),
        (lambda: ColumnSpec(kind="vector", width=2, token=True), "history tokens"),
        (lambda: ColumnSpec(kind="list", expression="tags + 1"), "as it stands"),
        (lambda: specification(features={"x[0]": ColumnSpec(expression="x")}), "like a part"),
        (lambda: specification(features={"a": TAGS, "b": replace(VECTOR, expression="a")}), "another role"),
        (lambda: specification(features={"a": TAGS, "b": ColumnSpec(expression="a")}), "another role"),
        (lambda: specification(features={"a": replace(TAGS, expression="click")}), "another role"),
        (lambda: specification(carried={"shown": "tags"}), "another role"),
        (lambda: SideTableSpec(path="i", entity="item", key="i", static=True, columns={"x[3]": ColumnSpec(expression="x")}), "like a part"),
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
