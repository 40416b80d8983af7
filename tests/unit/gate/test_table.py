import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import DataError
from trainer.gate.table import prepare


def _table(**columns):
    base = {
        "user": pa.array(["a", "b", "a", "c"]), "item": pa.array([1, 2, 3, 4]), "time": pa.array([0, 1, 2, 86_400_000]),
        "label_click": pa.array([0, 1, 0, None]), "challenger_click": pa.array([0.1, 0.2, 0.3, 0.4]),
    }  # fmt: skip
    return pa.table({**base, **columns})


def test_unripe_labels_are_nan_and_ids_of_any_type_are_codes(policy):
    found = prepare(_table(), policy())
    assert found.user_N.tolist() == [0, 1, 0, 2]
    assert np.isnan(found.actions[0].label_N).tolist() == [False, False, False, True]
    assert found.findings == []


def test_a_slate_is_a_request_or_else_a_users_day(policy):
    assert prepare(_table(), policy()).slates == "user-day"
    assert len(set(prepare(_table(), policy()).slate_N.tolist())) == 3
    stamped = _table(time=pa.array([0, 1, 86_400_000_000_000, 5], pa.timestamp("ns")))
    assert len(set(prepare(stamped, policy()).slate_N.tolist())) == 4
    by_request = prepare(_table(request=pa.array([7, 7, 7, 8])), policy())
    assert by_request.slates == "request" and by_request.slate_N.tolist() == [0, 0, 0, 1]
    assert prepare(_table(request=pa.array([7, None, 7, 8])), policy()).slates == "user-day"


def test_every_other_column_is_a_slice_unless_slices_are_declared(policy):
    table = _table(country=pa.array(["x", None, "y", "x"]), weight=pa.array([1.0, 1, 1, 1]), counting_click=pa.array([0.1] * 4))
    [column] = prepare(table, policy()).slices
    assert column.name == "country" and column.values == ["x", "y", "null"]
    assert prepare(table, policy(slices=[])).slices == []


def test_flags_numbers_and_crosses_become_slices(policy):
    table = _table(new=pa.array([True, False, True, False]), country=pa.array([1, 2, 1, 2]))
    [cross] = prepare(table, policy(slices=["new*country"])).slices
    assert cross.values == ["false*2", "true*1"]
    age = pa.table({**{n: table[n] for n in table.column_names}, "age": pa.array([1.5, 20.25, 33.0, float("nan")])})
    [binned] = prepare(age, policy(slices=["age"], numeric_bins=1)).slices
    assert binned.values == ["[-inf,inf)", "null"] or "20.25" in binned.values


def test_numbers_with_many_values_are_binned_by_mass(policy):
    rng = np.random.default_rng(0)
    table = pa.table(
        {"user": np.arange(1000), "label_click": np.zeros(1000), "challenger_click": np.full(1000, 0.5), "age": rng.normal(size=1000)}
    )
    [binned] = prepare(table, policy(slices=["age"])).slices
    assert np.bincount(binned.group_N)[:5].tolist() == [200] * 5


def test_values_beyond_the_largest_share_one_slice(policy):
    names = [f"c{i}" for i in range(10)] + ["big"] * 90
    table = pa.table({"user": np.arange(100), "label_click": np.zeros(100), "challenger_click": np.full(100, 0.5), "country": names})
    [column] = prepare(table, policy(slices=["country"], max_slice_values=3)).slices
    assert column.values[-1] == "(rest)" and len(column.values) == 4
    assert np.bincount(column.group_N).sum() == 100


def test_the_kind_follows_labels_and_production(policy):
    counts = _table(label_click=pa.array([0, 3, 0, 1]))
    assert prepare(counts, policy()).actions[0].kind == "count"
    assert prepare(_table(), policy()).actions[0].kind == "binary"
    assert prepare(_table(production_click=pa.array([0.1, 1.7, 0.2, 0.3])), policy()).actions[0].kind == "count"


@pytest.mark.parametrize(
    ("columns", "path"),
    [
        ({"label_click": [0.0, -1.0, 0.0, 1.0]}, "labels/click/all"),
        ({"weight": [1.0, -1.0, 1.0, 1.0]}, "weights/all/all"),
        ({"weight": [1.0, None, 1.0, 1.0]}, "weights/all/all"),
        ({"challenger_click": [0.1, None, 0.1, 0.1]}, "scores/click/all"),
    ],
)
def test_what_cannot_be_judged_fails_closed(policy, columns, path):
    found = prepare(_table(**{name: pa.array(values) for name, values in columns.items()}), policy()).findings
    assert [check.path for check in found if check.outcome == "fail"] == [path]


def test_text_where_a_number_belongs_is_a_clear_error(policy):
    with pytest.raises(DataError, match="not numeric"):
        prepare(_table(challenger_click=pa.array(["high", "low", "x", "y"])), policy())
