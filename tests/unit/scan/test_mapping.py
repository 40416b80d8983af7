"""A mapping that fits no day is the specification's fault: it is refused by name, and not masked without an end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.scan.conftest import DAYS, LAST, with_column
from trainer.errors import ConfigError
from trainer.schema.logs import ColumnSpec


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
