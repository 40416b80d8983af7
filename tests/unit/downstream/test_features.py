import numpy as np
import pyarrow as pa
import pytest

from trainer.downstream import Encoder, Features
from trainer.errors import ConfigError, DataError


def test_columns_become_one_float32_matrix():
    table = pa.table(
        {
            "x": pa.array([1.5, None, -2.0]), "half": pa.array(np.array([1, 2, 3], np.float16)), "flag": [True, None, False],
            "tab": ["b", "a", "b"], "code": pa.array([7, 7, None], pa.int32()), "dict": pa.array(["q", None, "q"]).dictionary_encode(),
            "vector": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32(), 2)),
        }
    )  # fmt: skip
    features = Encoder.fit(table, table.column_names).encode(table)
    nan = np.nan
    expected_NF = [[1.5, 1, 1, 0, 0, 0, 1, 2], [nan, 2, nan, 1, 0, nan, nan, nan], [-2, 3, 0, 0, nan, 0, 3, nan]]
    assert features.names == ["x", "half", "flag", "tab", "code", "dict", "vector_e000", "vector_e001"]
    assert features.categorical == [3, 4, 5]
    assert features.values_NF.dtype == np.float32
    np.testing.assert_array_equal(features.values_NF, np.array(expected_NF, np.float32))


def test_codes_come_from_the_rows_it_was_fitted_on_by_falling_frequency():
    encoder = Encoder.fit(pa.table({"tab": ["z", "a", "z", "b", None]}), ["tab"])
    coded_N = encoder.encode(pa.table({"tab": ["a", "b", "z", "new", None]})).values_NF[:, 0]
    np.testing.assert_array_equal(coded_N, np.array([1, 2, 0, np.nan, np.nan], np.float32))


def test_slices_of_vectors_keep_their_rows():
    table = pa.table({"v": pa.array([[float(i), None if i == 3 else -i] if i % 2 else None for i in range(8)], pa.list_(pa.float32(), 2))})
    whole_NF = Encoder.fit(table, ["v"]).encode(table).values_NF
    part_NF = Encoder.fit(table, ["v"]).encode(table.slice(3, 4)).values_NF
    np.testing.assert_array_equal(part_NF, whole_NF[3:7])
    np.testing.assert_array_equal(whole_NF[[1, 5]], [[1, -1], [5, -5]])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1.0, np.inf]), "infinite"), (pa.array([1.0, 1e300]), "infinite"), (pa.array([[1.0], [2.0, 3.0]]), "cannot be a feature"),
        (pa.array([1, 2], pa.timestamp("ms")), "cannot be a feature"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_feature_is_refused(column: pa.Array, words: str):
    table = pa.table({"x": column})
    with pytest.raises(DataError, match=words):
        Encoder.fit(table, ["x"]).encode(table)


def test_columns_that_are_absent_doubled_or_of_another_type_are_refused():
    table = pa.table({"feature_x": [1.0], "tab": ["a"]})
    with pytest.raises(ConfigError, match="did you mean 'feature_x'"):
        Encoder.fit(table, ["feature_y"])
    with pytest.raises(ConfigError, match="twice"):
        Encoder.fit(table, ["tab", "tab"])
    with pytest.raises(ConfigError, match="no features"):
        Encoder.fit(table, [])
    for other in ([1], [1.0]):
        with pytest.raises(DataError, match="changed its type"):
            Encoder.fit(table, ["tab"]).encode(pa.table({"tab": other}))
    with pytest.raises(DataError, match="not a feature matrix"):
        Features(["x"], np.zeros((2, 1)), [])
