"""A mapping that fits no day is the specification's fault: it is refused by name, and not masked without an end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.scan.conftest import DAYS, LAST, with_column
from trainer.config import ScanConfig
from trainer.config.inputs import RepairRule
from trainer.errors import ConfigError, DataError
from trainer.scan import check_budget
from trainer.schema.logs import ActionSpec, ColumnSpec, TimeSpec


def tagged(table):
    return table.append_column("tags", pa.array([["a", "b"]] * len(table)))


def as_odds(table):
    """Production logs scaled odds."""
    score = table["score"].to_numpy()
    return with_column(table, "score", 40 + 37 * score / (1 - score))


def test_a_list_mapped_as_a_feature_is_refused_by_name(judge):
    features = {"country": ColumnSpec(), "tags": ColumnSpec()}
    with pytest.raises(ConfigError, match="is on no day what its role says") as error:
        judge(dict.fromkeys(DAYS, tagged), features=features)
    assert "tags" in str(error.value.where) and "list<" in str(error.value.got) and "one value a row" in str(error.value.remedy)


def test_scores_that_are_no_probabilities_are_refused_and_an_expression_mends_them(judge):
    with pytest.raises(ConfigError, match="is on no day what its role says") as error:
        judge(dict.fromkeys(DAYS, as_odds))
    assert "score" in str(error.value.where) and "odds / (1 + odds)" in str(error.value.remedy)
    health = judge(logged_scores={"click": "(score - 40) / 37 / (1 + (score - 40) / 37)"})
    assert {state.status for state in health.days.values()} == {"ok"}


def test_an_expression_over_a_score_is_masked_by_its_column_where_a_day_is_wrong(judge):
    health = judge({LAST: as_odds}, logged_scores={"click": "score * 1"})
    assert health.days[LAST].masked_columns == ["score"] and health.days[DAYS[0]].status == "ok"


def test_a_feature_whose_declared_range_fits_no_day_is_refused_and_a_bad_day_is_not(judge):
    with pytest.raises(ConfigError, match="price"):
        judge(features={"price": ColumnSpec(kind="numeric", maximum=0.01)})
    health = judge({LAST: lambda table: with_column(table, "price", np.full(len(table), 9e9))})
    assert health.days[LAST].masked_columns == ["price"]


def test_damage_of_every_day_is_named_beside_a_wrong_mapping_and_either_is_mended(judge):
    """Nothing tells the two apart where no day is sound: the reader knows which it is, and what to do then."""
    features = {"price": ColumnSpec(kind="numeric", maximum=100.0)}

    def in_cents(table):
        return with_column(table, "price", np.asarray(table["price"]) * 1000)

    with pytest.raises(ConfigError) as error:
        judge(dict.fromkeys(DAYS, in_cents), features=features)
    told = error.value
    assert f"all {len(DAYS)} days ({DAYS[0]} to {LAST})" in str(told.got) and "above" in str(told.got)
    assert "mapping is wrong" in str(told.expected) and "damaged on every day" in str(told.expected)
    assert "if the mapping is wrong: correct its expression" in told.remedy and "if the data is: " in told.remedy
    repaired = ScanConfig(repairs=[RepairRule(feature="price", first_day=DAYS[0], last_day=LAST, multiply=0.001)])
    assert not [column for state in judge(config=repaired, features=features).days.values() for column in state.masked_columns]
    one_sound = judge({DAYS[0]: lambda table: with_column(table, "price", np.asarray(table["price"]) / 1000)}, features=features)
    assert one_sound.days[LAST].masked_columns == ["price"] and not one_sound.days[DAYS[0]].masked_columns


def test_a_duration_taken_for_a_binary_action_is_refused_and_not_left_without_positives(judge):
    with pytest.raises(ConfigError, match="length") as error:
        judge(actions={"click": ActionSpec(expression="length")}, logged_scores={})
    assert "write a comparison" in str(error.value.remedy)


def test_times_in_another_unit_are_named_where_every_day_is_refused(judge):
    health = judge(event_time=TimeSpec(column="ts", unit="s"), known_at=None)
    with pytest.raises(DataError, match="every day is refused") as error:
        check_budget(health, ScanConfig())
    assert "time_unit (ts)" in str(error.value.got)
