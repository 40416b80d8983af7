"""Lists under the encoder: their values' rows, padding behind them, and one unknown value where nothing is known."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tests import small
from trainer.data import Encoder
from trainer.data.inputs import freeze_inputs
from trainer.errors import ConfigError
from trainer.schema.examples import ExamplesManifest
from trainer.schema.logs import ActionSpec, LogSpec, TimeSpec
from trainer.schema.vocabulary import OOV_ROW, PAD_ROW

LATE = 100 * small.HOUR
SLOTS = {"tags[0]": "tags", "tags[1]": "tags", "tags[2]": "tags"}


def listed():
    """An encoder whose context, items and tokens have a list, and tables with nulls, unknown values and short lists."""
    base = small.encoder()
    genres = {name.replace("tags", "genres"): "tags" for name in SLOTS}
    inputs = dataclasses.replace(
        base.inputs,
        categorical={**base.inputs.categorical, **SLOTS},
        token_features=SLOTS,
        item_features={**base.inputs.item_features, **genres},
    )
    encoder = Encoder(inputs, {**base.vocabularies, "tags": small.vocabulary("tags", ["a", "b", "c", "d"])})
    cells = [("a", "c", "d"), ("b", None, None), ("unknown", "zebra", None), (None, None, None)]

    def with_lists(table, seed):
        rng = np.random.default_rng(seed)
        for name in ("tags", "genres"):
            chosen = [cells[place] for place in rng.integers(0, 4, len(table))]
            for place in range(3):
                table = table.append_column(f"feature_{name}[{place}]", pa.array([cell[place] for cell in chosen], pa.string()))
        return table

    examples, tail = small.tables()
    return encoder, with_lists(examples, 0), with_lists(tail, 1)


def by_hand(table, name, rows):
    keys = {"a": 2, "b": 3, "c": 4, "d": 5}
    columns = [table[f"feature_{name}[{place}]"].to_pylist() for place in range(3)]
    expected = []
    for row in rows:
        cell = [column[row] for column in columns]
        expected.append([keys.get(cell[0], OOV_ROW), *(PAD_ROW if one is None else keys.get(one, OOV_ROW) for one in cell[1:])])
    return np.array(expected)


def test_lists_become_rows_with_padding_behind_and_the_unknown_row_where_they_are_missing():
    encoder, examples, tail = listed()
    shard = encoder.encode(examples, tail, LATE)
    expected = by_hand(examples, "tags", shard.row_N.tolist())
    np.testing.assert_array_equal(shard.categorical_NC[:, -3:], expected)
    np.testing.assert_array_equal(shard.target_token_features_NK, expected)
    np.testing.assert_array_equal(shard.target_item_features_NI[:, -3:], by_hand(examples, "genres", shard.row_N.tolist()))
    assert {tuple(row) for row in shard.token_features_TK.tolist()} == {(2, 4, 5), (3, 0, 0), (1, 1, 0), (1, 0, 0)}


def test_histories_without_a_target_have_a_missing_list():
    encoder, _, tail = listed()
    shard, _ = encoder.encode_histories(tail, LATE)
    assert (shard.categorical_NC[:, -3:] == [OOV_ROW, PAD_ROW, PAD_ROW]).all()
    assert (shard.target_item_features_NI == [OOV_ROW, OOV_ROW, PAD_ROW, PAD_ROW]).all()


def manifest(numeric, categorical):
    return ExamplesManifest(
        declarations_sha256="", user_buckets=1, max_history=4, numeric=dict.fromkeys(numeric, "none"), item_features=[], token_features=[],
        categorical={name: name.partition("[")[0] for name in categorical}, source_days={}, partitions=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("numeric", "categorical", "named"),
    [
        (["v[0]", "v[1]"], ["tags[0]", "tags[1]", "tags[2]"], "tags"),
        (["v[0]", "v[1]"], ["tags[0]"], "tags"),
        (["v[0]", "v[1]"], ["tags"], "tags"),
        (["v[0]"], ["tags[0]", "tags[1]"], "v"),
        (["v[0]", "v[1]", "w[0]"], ["tags[0]", "tags[1]"], None),
        ([], [], None),
    ],
)  # fmt: skip
def test_a_list_or_vector_of_another_width_needs_a_new_name(numeric, categorical, named):
    spec = LogSpec(
        name="x", root=".", user="u", item="i", event_time=TimeSpec(column="t"), actions={"click": ActionSpec(expression="click")}
    )
    table = pa.table({f"feature_{name}": pa.array([1.0]) for name in numeric} | {"label_click": [1.0]})
    parent = dataclasses.replace(small.inputs(numeric=("v[0]", "v[1]")), categorical={"tags[0]": "tags", "tags[1]": "tags"})

    def freeze():
        return freeze_inputs(spec, manifest(numeric, categorical), {}, [table], user_id=False, parent=parent)

    if named is None:
        assert list(freeze().categorical) == categorical
        return
    with pytest.raises(ConfigError, match="not what it was in production") as error:
        freeze()
    assert error.value.where == f"features: {named}" and "new name" in str(error.value.remedy)
