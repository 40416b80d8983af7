import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import DataError
from trainer.schema.ids import hash_ids, plain_ids, splitmix64


def fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


@given(st.lists(st.text(max_size=12), min_size=1), st.integers(0, 3))
def test_strings_hash_as_a_byte_by_byte_fnv_does(texts: list[str], skip: int):
    ids = pa.array(texts).slice(skip)
    expected_N = splitmix64(np.array([fnv(text) for text in texts[skip:]], np.uint64))
    assert np.array_equal(hash_ids(ids), expected_N)


def test_the_hash_never_changes():
    assert hash_ids(pa.array([0, 1, -1])).tolist() == [16294208416658607535, 10451216379200822465, 16490336266968443936]
    assert hash_ids(pa.array(["user-1"])).tolist() == [hash_ids(pa.array(["x", "user-1"]))[1]]


def test_integers_never_collide_and_every_form_of_an_id_has_one_hash():
    hash_N = hash_ids(pa.array(np.arange(100_000)))
    assert len(np.unique(hash_N)) == 100_000
    assert abs((hash_N % np.uint64(2)).mean() - 0.5) < 0.01
    assert hash_ids(pa.chunked_array([[1, 2], [3]], pa.int32())).tolist() == hash_ids(pa.array([1, 2, 3])).tolist()
    assert hash_ids(pa.array(["a", "b"]).dictionary_encode()).tolist() == hash_ids(pa.array(["a", "b"], pa.large_string())).tolist()


def test_what_is_no_id_is_refused():
    with pytest.raises(DataError, match="null"):
        hash_ids(pa.array([1, None]))
    with pytest.raises(DataError, match="not an id"):
        plain_ids(pa.array([1.5]))
