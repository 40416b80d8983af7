"""A column that says the same in every row of every day is told once, and held against nobody."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from tests.unit.scan.conftest import DAYS, LAST, ROWS, with_column
from trainer.scan.ledger import as_document
from trainer.scan.show import print_health
from trainer.schema.logs import ColumnSpec, NegativesSpec


def filled(name: str, value: object, kind: pa.DataType | None = None):
    return lambda table: with_column(table, name, pa.array([value] * len(table), kind))


def told(health) -> list[tuple[str, str, str]]:
    return [(notice["day"], notice["kind"], notice["what"]) for notice in as_document(health)["notices"]]


@pytest.mark.parametrize(
    ("name", "value", "kind", "named"),
    [
        ("country", None, pa.string(), "country is null"),
        ("country", "CN", pa.string(), "country is 'CN'"),
        ("age", None, pa.float64(), "age is null"),
        ("age", None, pa.null(), "age is null"),
        ("age", 0.0, pa.float64(), "age is '0'"),
        ("price", 9.5, pa.float64(), "price is '9.5'"),
    ],
)
def test_a_column_that_is_the_same_everywhere_is_told_once_and_is_no_damage(judge, capsys, name, value, kind, named):
    health = judge(dict.fromkeys(DAYS, filled(name, value, kind)))
    fault = "null_spike" if value is None else "constant"
    assert told(health) == [(LAST, fault, f"{named} in all {ROWS * len(DAYS):,} rows ({DAYS[0]} to {LAST})")]
    assert {state.status for state in health.days.values()} == {"ok"}
    assert not [column for state in health.days.values() for column in state.masked_columns]
    print_health(health, Console(width=300))
    assert capsys.readouterr().out.count("never otherwise") == 1


def test_one_value_elsewhere_or_nulls_here_and_there_are_told_by_nobody(judge):
    def nearly(table):
        return with_column(table, "age", np.r_[np.full(len(table) - 1, 30.0), 31.0])

    assert told(judge({DAYS[0]: nearly} | dict.fromkeys(DAYS[1:], filled("age", 30.0)))) == []
    sparse = pa.array([None, 30.0] * (ROWS // 2))
    assert told(judge(dict.fromkeys(DAYS, lambda table: with_column(table, "age", sparse)))) == []


def test_days_on_which_damage_made_a_column_constant_say_nothing_about_it(judge):
    health = judge({LAST: filled("age", 0.0)})
    assert told(health) == [] and health.days[LAST].masked_columns == ["age"]


def test_a_day_without_a_constant_column_is_damaged_and_the_others_are_told(judge):
    health = judge(dict.fromkeys(DAYS[:-1], filled("country", "CN")) | {LAST: filled("country", None, pa.string())})
    assert [fault.kind for fault in health.days[LAST].faults] == ["null_spike"]
    assert [what.split(" rows")[0] for _, _, what in told(health)] == [f"country is 'CN' in all {ROWS * (len(DAYS) - 1):,}"]


def test_a_label_that_is_always_zero_is_told_and_one_that_is_always_one_is_what_a_click_only_log_holds(judge):
    assert [kind for _, kind, _ in told(judge(dict.fromkeys(DAYS, filled("click", 0, pa.int8()))))] == ["constant"]
    assert told(judge(dict.fromkeys(DAYS, filled("click", 1, pa.int8())), negatives=NegativesSpec())) == []


def test_lists_of_one_length_are_told_only_where_they_are_missing(judge):
    features = {"country": ColumnSpec(), "tags": ColumnSpec(kind="list")}

    def tagged(table):
        return table.append_column("tags", pa.array([[f"t{row % 7}", "b"] for row in range(len(table))]))

    def untagged(table):
        return with_column(table, "tags", pa.nulls(len(table), pa.list_(pa.string())))

    assert told(judge(dict.fromkeys(DAYS, tagged), features=features)) == []
    assert [what.split(" in all")[0] for _, _, what in told(judge(dict.fromkeys(DAYS, untagged), features=features))] == ["tags is null"]
