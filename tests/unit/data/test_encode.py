from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from tests import small
from trainer.data import take
from trainer.data.encode import NO_CLOCK, _units, fit_numeric, squash_action, standardise
from trainer.errors import DataError
from trainer.schema.inputs import NumericInput

LATE = 100 * small.HOUR


def histories_by_hand(examples, tail):
    """The plain definition: what each row may see, computed row by row."""
    tokens = defaultdict(list)
    for order, row in enumerate([*tail.to_pylist(), *(r for r in examples.to_pylist() if r["is_event"])]):
        available = -(2**62) if row["available"] is None else row["available"]
        event = -(2**62) if row["event_time"] is None else row["event_time"]
        tokens[row["user"]].append((available, event, order, row["item"]))
    return [
        [item for available, _, _, item in sorted(tokens[row["user"]]) if available <= row["request_time"]] for row in examples.to_pylist()
    ]


def seen_by_targets(shard, vocabulary):
    """Items of the tokens that each target may read, by row of the examples."""
    keys = [None, None, *vocabulary.keys.to_pylist()]
    seen = {}
    for unit in range(shard.units):
        start = shard.token_offsets_U1[unit]
        for target in range(shard.target_offsets_U1[unit], shard.target_offsets_U1[unit + 1]):
            rows = shard.token_item_T[start : start + shard.target_position_N[target]]
            seen[int(shard.row_N[target])] = [keys[row] for row in rows]
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_every_target_sees_exactly_the_events_available_to_it(seed):
    examples, tail = small.tables(seed=seed)
    encoder = small.encoder(max_history=1000)
    shard = encoder.encode(examples, tail, LATE)
    known = set(encoder.vocabularies["item"].keys.to_pylist())
    expected = [[item if item in known else None for item in items] for items in histories_by_hand(examples, tail)]
    assert seen_by_targets(shard, encoder.vocabularies["item"]) == dict(enumerate(expected))


@pytest.mark.parametrize("max_history", [1, 3, 8])
def test_long_users_are_cut_into_units_that_keep_the_newest_history(max_history):
    examples, tail = small.tables(users=3, rows=300, seed=7)
    encoder = small.encoder(max_history=max_history, items=range(100, 200))
    shard = encoder.encode(examples, tail, LATE)
    full = histories_by_hand(examples, tail)
    for row, items in seen_by_targets(shard, encoder.vocabularies["item"]).items():
        assert len(items) >= min(max_history, len(full[row]))
        assert len(items) <= 3 * max_history
        assert items == full[row][len(full[row]) - len(items) :]
    assert sorted(shard.row_N.tolist()) == list(range(300))


def test_unit_order_does_not_depend_on_the_order_of_rows():
    examples, tail = small.tables()
    encoder = small.encoder()
    shuffled = examples.take(pa.array(np.random.default_rng(1).permutation(len(examples))))
    first, second = encoder.encode(examples, tail, LATE), encoder.encode(shuffled, tail, LATE)
    np.testing.assert_array_equal(first.token_offsets_U1, second.token_offsets_U1)
    np.testing.assert_array_equal(first.target_position_N, second.target_position_N)


def test_unripe_and_null_labels_are_unknown():
    examples, tail = small.tables()
    cutoff = 36 * small.HOUR
    shard = small.encoder().encode(examples, tail, cutoff)
    known_at = examples["known_at"].to_numpy()[shard.row_N]
    np.testing.assert_array_equal(shard.known_NA[:, 0], known_at <= cutoff)
    like_is_null = np.asarray(examples["label_like"].is_null())[shard.row_N]
    np.testing.assert_array_equal(shard.known_NA[:, 1], (known_at <= cutoff) & ~like_is_null)
    assert (shard.label_NA[~shard.known_NA] == 0).all()


def test_missing_numbers_are_masked_and_unknown_ids_are_oov():
    examples, tail = small.tables()
    shard = small.encoder().encode(examples, tail, LATE)
    np.testing.assert_array_equal(~shard.present_NF[:, 0], np.asarray(examples["feature_rate"].is_null())[shard.row_N])
    assert (shard.numeric_NF[~shard.present_NF] == 0).all()
    np.testing.assert_array_equal(shard.target_item_N == 1, examples["item"].to_numpy()[shard.row_N] >= 140)
    assert (shard.token_time_T == NO_CLOCK).any()


def test_a_missing_feature_column_is_named():
    examples, tail = small.tables()
    with pytest.raises(DataError, match="age"):
        small.encoder().encode(examples.drop_columns(["feature_age"]), tail, LATE)


def test_take_gathers_units_in_the_given_order():
    examples, tail = small.tables()
    shard = small.encoder().encode(examples, tail, LATE)
    batch = take(shard, np.array([5, 2]))
    for sequence, unit in enumerate((5, 2)):
        tokens = slice(*shard.token_offsets_U1[unit : unit + 2])
        got = batch.token_item_T[batch.offsets_S1[sequence] : batch.offsets_S1[sequence + 1]]
        np.testing.assert_array_equal(got, shard.token_item_T[tokens])
        targets = slice(*shard.target_offsets_U1[unit : unit + 2])
        np.testing.assert_array_equal(batch.row_N[batch.target_sequence_N == sequence], shard.row_N[targets])


def test_no_users_gives_an_empty_shard():
    empty = np.zeros(0, np.int64)
    offsets, targets, positions, tokens = _units(empty, np.zeros(1, np.int64), empty, 8)
    assert offsets.tolist() == targets.tolist() == [0]
    assert len(positions) == len(tokens) == 0


def test_garbage_numbers_are_masked_or_clipped():
    entry = NumericInput(name="x", transform="log", mean=0.0, std=1.0)
    values = standardise(pa.chunked_array([pa.array([np.inf, np.nan, None, 1e300, 0.0], pa.float64())]), entry)
    np.testing.assert_array_equal(np.isnan(values), [True, True, True, False, False])
    assert np.nanmax(np.abs(values)) <= 6


def test_fitted_statistics_standardise():
    column = pa.chunked_array([pa.array([1.0, 2.0, 3.0, None])])
    entry = fit_numeric("x", "none", [column])
    values = standardise(column, entry)
    assert np.nanmean(values) == pytest.approx(0) and np.nanstd(values) == pytest.approx(1)
    assert fit_numeric("x", "none", []).std == 1.0


def test_squash_maps_to_the_unit_interval():
    for kind in ("count", "duration"):
        values = squash_action(np.array([0.0, 1.0, 1e9, -5.0]), kind)
        assert values[0] == 0 and values.max() <= 1 and values.min() >= 0 and values[1] > 0
