"""Rules hit exactly the cells they name; repairs come first."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.logs.treat import treat
from trainer.schema.health import CellRule
from trainer.schema.logs import ActionSpec, LogSpec, TimeSpec

SPEC = LogSpec(name="x", root="/", user="u", item="i", event_time=TimeSpec(column="t"), actions={"a": ActionSpec(expression="a")})


def table():
    return pa.table(
        {"u": [1, 2, 3, 4], "i": ["a", "b", None, "d"], "t": [10, 20, 30, 40], "a": [0, 1, 0, None], "x": [1.0, -5.0, None, 9e9]}
    )


def applied(*rules, path="f"):
    return treat(table(), SPEC, rules, path)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"feature": "x", "minimum": 0.0}, [1.0, None, None, 9e9]),
        ({"feature": "x", "maximum": 100.0}, [1.0, -5.0, None, None]),
        ({"feature": "x", "minimum": 0.0, "maximum": 100.0}, [1.0, None, None, None]),
        ({"feature": "x", "values": ["-5", "1"]}, [None, None, None, 9e9]),
        ({"feature": "x"}, [None, None, None, None]),
        ({"feature": "i", "values": ["b"]}, ["a", None, None, "d"]),
        ({"feature": "a", "values": ["0"], "from_ms": 20}, [0, 1, None, None]),
        ({"feature": "a", "from_ms": 20}, [0, None, None, None]),
    ],
)
def test_cells(rule, expected):
    result, [finding], dropped = applied(CellRule(kind="k", evidence="e", **rule))
    assert result[rule["feature"]].to_pylist() == expected and dropped == 0
    before = table()[rule["feature"]].null_count
    assert (finding.kind, finding.action, finding.rows) == ("k", "mask", expected.count(None) - before)
    for name in {"u", "i", "t", "a", "x"} - {rule["feature"]}:
        assert result[name].equals(table()[name])


def test_a_masked_user_is_a_stranger_by_event():
    rule = CellRule(kind="id_collapse", feature="u", evidence="", values=["0"])
    columns = {"u": [0, 0, 0, 7], "i": ["a", "b", "a", "a"], "t": [10, 10, 10, 10], "a": [0, 1, 0, 1]}
    whole, part = pa.table(columns), pa.table(columns).slice(1)
    result, [finding], dropped = treat(whole, SPEC, [rule], "f")
    one, other, again, known = result["u"].to_pylist()
    assert known == 7 and one == again != other and max(one, other) < 0 and (finding.rows, finding.action, dropped) == (3, "mask", 0)
    assert treat(part, SPEC, [rule], "another file")[0]["u"].to_pylist() == [other, again, known], "wherever it is delivered"
    texts = whole.set_column(0, "u", pa.array(["0", "0", "0", "x"]))
    named = treat(texts, SPEC, [rule], "f")[0]["u"]
    assert named.type == pa.string() and len(set(named.to_pylist())) == 3 and named.to_pylist()[3] == "x"
    from_event = LogSpec(**{**vars(SPEC), "event_id": "e"})
    distinct = treat(whole.append_column("e", pa.array([1, 2, 3, 4])), from_event, [rule], "f")[0]["u"].to_pylist()
    assert len(set(distinct)) == 4


def test_rows_are_left_out_once():
    rules = [
        CellRule(kind="k", feature="u", evidence="", drop=True, values=["2"]),
        CellRule(kind="l", feature="u", evidence="", drop=True, maximum=1),
    ]
    result, findings, dropped = applied(*rules)
    assert result["u"].to_pylist() == [1] and dropped == 3 and [finding.rows for finding in findings] == [1, 2]


def test_repairs_come_first_and_other_files_are_left_alone():
    repair = CellRule(kind="repaired", feature="t", evidence="", multiply=10.0)
    mask = CellRule(kind="k", feature="t", evidence="", minimum=250.0)
    result, findings, _ = applied(mask, repair)
    assert result["t"].to_pylist() == [None, None, 300, 400] and [finding.kind for finding in findings] == ["repaired", "k"]
    assert result.schema.field("t").type == pa.int64()
    other, findings, dropped = applied(CellRule(kind="k", feature="u", evidence="", file="g", drop=True))
    assert other.equals(table()) and not findings and not dropped
    real, _, _ = applied(CellRule(kind="repaired", feature="x", evidence="", multiply=0.5))
    assert real["x"].to_pylist() == [0.5, -2.5, None, 4.5e9] and not np.isnan(real["x"].to_pylist()[0])
