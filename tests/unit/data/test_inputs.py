"""Joining vocabularies: production's ids keep their order, retired ones lose their row, and no id is taken for another."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.data.inputs import merge_vocabulary
from trainer.errors import CheckpointError
from trainer.schema.vocabulary import Vocabulary


def vocabulary(keys, last="2026-01-05", kind=None):
    keys = pa.array(keys, kind)
    days = pa.array(["2026-01-01"] * len(keys), pa.string())
    return Vocabulary("item", keys, np.arange(1, len(keys) + 1), days, pa.array([last] * len(keys), pa.string()))


def test_productions_ids_keep_their_order_and_counts_add_up():
    merged = merge_vocabulary(vocabulary([5, 3, 9]), vocabulary([9, 4], last="2026-02-01"))
    assert merged.keys.to_pylist() == [5, 3, 9, 4]
    assert merged.count_V.tolist() == [1, 2, 4, 2]
    assert merged.last_seen.to_pylist() == ["2026-01-05", "2026-01-05", "2026-02-01", "2026-02-01"]


@pytest.mark.parametrize(("before", "left"), [("2026-01-05", [5, 3, 9, 4]), ("2026-01-06", [9, 4]), ("2026-03-01", [])])
def test_ids_last_seen_before_a_day_lose_their_row(before, left):
    merged = merge_vocabulary(vocabulary([5, 3, 9]), vocabulary([9, 4], last="2026-02-01"), before)
    assert merged.keys.to_pylist() == left and merged.rows == len(left) + 2


@pytest.mark.parametrize(
    ("old", "new", "joined"),
    [
        (["7", "8"], [8, 9], [7, 8, 9]),
        ([7, 8], ["8", "abc"], ["7", "8", "abc"]),
        (vocabulary([7, 8]).keys, pa.array([], pa.null()), [7, 8]),
        ([], ["a"], ["a"]),
    ],
    ids=["text to numbers", "numbers to text", "nothing new", "nothing old"],
)
def test_ids_of_another_type_are_the_same_ids(old, new, joined):
    assert merge_vocabulary(vocabulary(old), vocabulary(new)).keys.to_pylist() == joined


@pytest.mark.parametrize("old", [["7", "abc"], ["7", "07"]], ids=["no number", "two names of one number"])
def test_ids_that_cannot_be_the_logs_are_refused(old):
    with pytest.raises(CheckpointError, match="not of the log's type") as error:
        merge_vocabulary(vocabulary(old), vocabulary([7]))
    assert error.value.where == "vocabulary item" and str(error.value.expected) == "int64"


@pytest.mark.parametrize(
    ("keys", "asked", "rows"),
    [
        ([5, 3], ["3", "abc", None, "03"], [3, 1, 1, 1]),
        (["5", "3"], [3, 4], [3, 1]),
        ([5, 3], pa.array([3, 2**40], pa.int64()), [3, 1]),
        ([], ["3"], [1]),
    ],
)
def test_an_id_is_found_as_a_number_or_as_text_and_everything_else_is_unknown(keys, asked, rows):
    assert vocabulary(keys).lookup(pa.array(asked)).tolist() == rows


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_keys_looked_up_a_part_at_a_time_give_the_same_rows(monkeypatch, kind):
    keys = pa.array(np.random.default_rng(0).permutation(20)).cast(kind)
    asked = pa.concat_arrays([keys[3:15], pa.array([None, 77, 78], pa.int64()).cast(kind), keys[:5]])
    whole = vocabulary(keys).lookup(asked)
    monkeypatch.setattr("trainer.schema.vocabulary._HASHED_KEYS", 7)
    assert np.array_equal(vocabulary(keys).lookup(asked), whole)
    assert whole.tolist() == [*range(5, 17), 1, 1, 1, *range(2, 7)]


def test_matching_many_ids_takes_arrow_no_table_of_all_of_them():
    ids = vocabulary(np.random.default_rng(0).permutation(2_500_000))
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        ids.lookup(ids.keys)
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 40 * len(ids.keys), "all at once 80 bytes and more an id"
