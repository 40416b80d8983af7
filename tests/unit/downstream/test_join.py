from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import FeatureTable
from trainer.downstream import join_tables
from trainer.errors import ConfigError, DataError


@pytest.fixture
def rows() -> pa.Table:
    return pa.table({"user": ["a", "b", "a", None, "z"], "item": [1, 2, 3, 1, 2], "time": [10, 20, 30, 40, 50]})


def write(folder: Path, columns: dict) -> str:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return str(folder / "t.parquet")


def test_rows_keep_their_order_and_unknown_keys_are_null(rows, tmp_path: Path):
    path = write(tmp_path, {"item": pa.array([3, 1], pa.int32()), "price": [0.3, 0.1], "brand": ["c", "a"]})
    joined, names = join_tables(rows, [FeatureTable(path=path, on=["item"])])
    assert names == ["own_price", "own_brand"]
    assert joined["own_price"].to_pylist() == [0.1, None, 0.3, 0.1, None]
    assert joined.select(rows.column_names).equals(rows)
    joined, names = join_tables(rows, [FeatureTable(path=path, on=["item"], columns=["brand"])])
    assert names == ["own_brand"]


def test_a_key_of_two_columns(rows, tmp_path: Path):
    path = write(tmp_path, {"user": ["a", "a", "b"], "item": [1, 2, 2], "x": [1.0, 2.0, 3.0]})
    joined, _ = join_tables(rows, [FeatureTable(path=path, on=["user", "item"])])
    assert joined["own_x"].to_pylist() == [1.0, 3.0, None, None, None]


def test_as_of_reads_the_newest_row_known_strictly_before_the_request(tmp_path: Path):
    generator = np.random.default_rng(0)
    rows = pa.table({"user": generator.integers(0, 8, 400), "time": generator.integers(0, 50, 400)})
    own = {"user": generator.integers(0, 10, 200), "at": generator.permutation(200) // 4, "x": np.arange(200.0)}
    keep = np.unique(own["user"] * 1000 + own["at"], return_index=True)[1]
    own = {name: values[keep] for name, values in own.items()}
    joined, _ = join_tables(rows, [FeatureTable(path=write(tmp_path, own), on=["user"], known_at="at")])
    for user, time, got in zip(*(joined[name].to_pylist() for name in ("user", "time", "own_x")), strict=True):
        earlier = [(at, x) for u, at, x in zip(own["user"], own["at"], own["x"], strict=True) if u == user and at < time]
        assert got == (max(earlier)[1] if earlier else None)


def test_what_cannot_be_joined_is_refused(rows, tmp_path: Path):
    for columns, declared, words in (
        ({"item": [1, 1], "x": [1.0, 2.0]}, {"on": ["item"]}, "more than once"),
        ({"item": ["1"], "x": [1.0]}, {"on": ["item"]}, "another type"),
        ({"itm": [1], "x": [1.0]}, {"on": ["item"]}, "join key"),
        ({"item": [1], "x": [1.0]}, {"on": ["item"], "columns": ["y"]}, "not in its table"),
    ):
        with pytest.raises((ConfigError, DataError), match=words):
            join_tables(rows, [FeatureTable(path=write(tmp_path, columns), **declared)])
    with pytest.raises(DataError, match="no feature table"):
        join_tables(rows, [FeatureTable(path=str(tmp_path / "absent"), on=["item"])])
    with pytest.raises(ConfigError, match="without a join key"):
        FeatureTable(path="x", on=[])
    good = FeatureTable(path=write(tmp_path, {"item": [1], "x": [1.0]}), on=["item"])
    with pytest.raises(DataError, match="same column"):
        join_tables(rows, [good, good])
