import numpy as np
import pytest

from tests.unit.next_item.small import sequences, unit
from trainer.next_item.units import TEST, VALIDATION, questions, seen_before, training_units

HISTORY = [5, 3, 8, 1, 9, 2]  # trains on 5 3 8 1, validates on 9, tests on 2


def test_leave_one_out_by_hand():
    data = sequences(HISTORY)
    assert unit(training_units(data, 10), 0) == ([5, 3, 8], [(0, 5), (1, 3), (2, 8), (3, 1)])
    assert unit(questions(data, VALIDATION, 10), 0) == ([5, 3, 8, 1], [(4, 9)])
    assert unit(questions(data, TEST, 10), 0) == ([5, 3, 8, 1, 9], [(5, 2)])  # the validation item is history by then


def test_a_question_reads_the_latest_events():
    assert unit(questions(sequences(HISTORY), TEST, 2), 0) == ([1, 9], [(2, 2)])


def test_long_sequences_are_cut_from_their_end():
    shard = training_units(sequences([0, 1, 2, 3, 4, 5, 6, 7, 8]), 3)
    assert [unit(shard, number) for number in range(shard.units)] == [
        ([0, 1, 2], [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ([3, 4, 5], [(1, 4), (2, 5), (3, 6)]),
    ]


def test_a_short_first_unit_keeps_the_empty_history():
    shard = training_units(sequences([0, 1, 2, 3, 4, 5, 6]), 3)
    assert [unit(shard, number) for number in range(shard.units)] == [
        ([0], [(0, 0), (1, 1)]),
        ([1, 2, 3], [(1, 2), (2, 3), (3, 4)]),
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
def test_every_training_event_is_a_target_once_and_nothing_held_out_is_seen(length):
    rng = np.random.default_rng(length)
    users = [np.arange(start, start + size).tolist() for start, size in zip(range(0, 900, 30), rng.integers(1, 30, 30), strict=True)]
    shard = training_units(sequences(*users), length)
    training = [item for user in users for item in (user[:-2] if len(user) >= 3 else user)]
    assert sorted((shard.target_item_N - 2).tolist()) == training
    assert set((shard.token_item_T - 2).tolist()) <= set(training)
    assert np.diff(shard.token_offsets_U1).max() <= length
    for number in range(shard.units):
        history, asked = unit(shard, number)
        user = users[int(shard.row_N[shard.target_offsets_U1[number]])]
        for position, item in asked:
            place = user.index(item)
            assert history[:position] == user[place - position : place]


def test_short_users_train_but_are_not_judged():
    data = sequences([0], [1, 2], [3, 4, 5])
    shard = training_units(data, 5)
    assert [unit(shard, number) for number in range(3)] == [([], [(0, 0)]), ([1], [(0, 1), (1, 2)]), ([], [(0, 3)])]
    assert unit(questions(data, TEST, 5), 0) == ([3, 4], [(2, 5)])
    assert questions(data, TEST, 5).units == 1


def test_seen_is_the_whole_history():
    data = sequences([9, 9, 9], HISTORY)
    for which, expected in ((VALIDATION, [5, 3, 8, 1]), (TEST, [5, 3, 8, 1, 9])):
        row, item = seen_before(data, np.array([1]), which)
        assert item.tolist() == expected and set(row.tolist()) == {0}


def test_only_the_last_two_events_can_be_asked_for():
    with pytest.raises(ValueError, match="none of them"):
        questions(sequences(HISTORY), 3, 5)
