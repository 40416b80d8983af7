"""Work files: what comes back, group by group, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import DataError
from trainer.rebuild.work import read_work, write_work

TABLE = pa.table({"a": pa.array([1, None, 3, 4, 5]), "b": ["x", "y", None, "z", "x"]})


def test_a_group_is_read_without_the_others(tmp_path):
    path = tmp_path / "t.arrows"
    write_work(path, TABLE, [2, 0, 3])
    assert [read_work(path, group=group).to_pydict() for group in range(3)] == [
        TABLE.slice(n, m).to_pydict() for n, m in ((0, 2), (2, 0), (2, 3))
    ]
    assert read_work(path, ["b"]).equals(TABLE.select(["b"]))
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the first group
    path.write_bytes(content)
    assert read_work(path, group=2).equals(TABLE.slice(2, 3))
    with pytest.raises(DataError, match="checksum of group 0"):
        read_work(path, group=0)


def test_same_table_same_bytes(tmp_path):
    same = pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2, 3)]).combine_chunks()
    assert write_work(tmp_path / "a", TABLE, [2, 3]) == write_work(tmp_path / "b", same, [2, 3])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
    path = tmp_path / "t.arrows"
    write_work(path, TABLE, [2, 3])
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, 8 * len(whole), 300):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot read a file of the rebuild"):
            read_work(path)
    for size in (0, 3, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot read a file of the rebuild"):
            read_work(path)
