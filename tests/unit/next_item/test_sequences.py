import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import NextItemConfig
from trainer.errors import ConfigError, DataError
from trainer.next_item.sequences import read_sequences

COLUMNS = NextItemConfig(path="order.parquet")


def write(folder, **columns):
    pq.write_table(pa.table(columns), folder / "order.parquet")
    return folder


def events(sequences):
    """User id -> item ids in order."""
    items = sequences.item_ids.to_pylist()
    bounds = zip(sequences.user_ids.to_pylist(), sequences.offsets_U1[:-1], sequences.offsets_U1[1:], strict=True)
    return {user: [items[code] for code in sequences.item_E[first:last]] for user, first, last in bounds}


def test_rows_in_any_order_give_the_same_sequences(tmp_path):
    rows = [(7, 30, 0), (7, 10, 1), (7, 20, 5), (3, 20, 2), (3, 30, 9), (5, 10, 0)]
    for seed in range(3):
        user, item, position = zip(*np.random.default_rng(seed).permutation(rows).tolist(), strict=True)
        found = read_sequences(write(tmp_path, user_id=user, item_id=item, seq_pos=position), COLUMNS)
        assert events(found) == {3: [20, 30], 5: [10], 7: [30, 10, 20]}
        assert found.item_ids.to_pylist() == [10, 20, 30]


def test_ids_may_be_strings_and_positions_instants(tmp_path):
    when = pa.array([3.5, 1.0, 2.0])
    found = read_sequences(write(tmp_path, who=["b", "a", "b"], what=["x", "y", "z"], when=when), NextItemConfig(
        path="order.parquet", user="who", item="what", position="when"
    ))  # fmt: skip
    assert events(found) == {"a": ["y"], "b": ["z", "x"]}


def test_two_held_out_events_need_a_third_to_train(tmp_path):
    found = read_sequences(write(tmp_path, user_id=[1, 1, 1, 2, 2, 3], item_id=[1, 2, 3, 1, 2, 1], seq_pos=[0, 1, 2, 0, 1, 0]), COLUMNS)
    assert found.judged_U.tolist() == [True, False, False]
    assert (found.training_end_U - found.offsets_U1[:-1]).tolist() == [1, 2, 1]


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent[\s\S]*order\.parquet[\s\S]*data\.root"):
        read_sequences(tmp_path, COLUMNS)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "order.parquet").write_bytes(b"PAR1 no such thing")
    with pytest.raises(DataError, match="cannot read"):
        read_sequences(tmp_path, COLUMNS)


def test_a_missing_column_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'item_ids'"):
        read_sequences(write(tmp_path, user_id=[1], item_ids=[1], seq_pos=[0]), COLUMNS)


def test_an_empty_file_is_refused(tmp_path):
    empty = pa.array([], pa.int64())
    with pytest.raises(DataError, match="empty"):
        read_sequences(write(tmp_path, user_id=empty, item_id=empty, seq_pos=empty), COLUMNS)


def test_a_null_id_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"item_id[\s\S]*1 nulls"):
        read_sequences(write(tmp_path, user_id=[1, 1], item_id=[1, None], seq_pos=[0, 1]), COLUMNS)


def test_a_shared_position_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 times, first at user 2"):
        read_sequences(write(tmp_path, user_id=[1, 2, 2], item_id=[1, 2, 3], seq_pos=[4, 4, 4]), COLUMNS)
