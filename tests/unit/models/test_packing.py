import torch
from hypothesis import given
from hypothesis import strategies as st

from models.packing import (
    GAP_BUCKETS,
    NO_CLOCK,
    POSITION_BUCKETS,
    gap_bucket,
    next_item_rows,
    pack,
    position_bucket,
    row_times,
)


def test_rows_stand_where_the_docstring_says(kit):
    batch = kit.batch(kit.bare(), [2, 0, 3], [[0, 2], [0], [1]])
    packing = pack(batch)
    assert packing.start_S.tolist() == [0, 3, 4]
    assert packing.length_S.tolist() == [3, 1, 4]
    assert packing.source_R.tolist() == [0, 1, 2, 0, 0, 3, 4, 5]
    assert packing.sequence_R.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert packing.position_R.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert packing.state_N.tolist() == [0, 2, 3, 5]
    assert packing.target_length_S.tolist() == [2, 1, 1]
    times = batch.token_time_T.tolist()
    assert row_times(batch, packing).tolist() == [-1, *times[:2], -1, -1, *times[2:]]


def test_the_row_before_a_token_predicts_it(kit):
    batch = kit.batch(kit.bare(), [2, 0, 3], [[], [], []])
    assert next_item_rows(batch).tolist() == [0, 1, 4, 5, 6]


def test_next_item_rows_do_not_see_their_item(kit):
    batch = kit.batch(kit.bare(), [6], [[]])
    model = kit.model(kit.bare(actions=()))
    before = model.states(batch)[next_item_rows(batch)]
    batch.token_item_T[3] = batch.token_item_T[3] % 38 + 1
    after = model.states(batch)[next_item_rows(batch)]
    assert (before != after).any(1).tolist() == [False, False, False, False, True, True]


@given(seconds=st.integers(0, 2**40))
def test_gap_buckets_double(seconds):
    bucket = int(gap_bucket(torch.tensor(seconds * 1000 + 999), torch.tensor(0)))
    assert bucket == min(seconds.bit_length(), GAP_BUCKETS - 2) + 1


def test_a_gap_bucket_begins_at_its_very_millisecond():
    """Also where a double cannot hold a thousandth of the gap exactly."""
    doublings = [1000 * 2**power for power in range(40)]
    for gap in sorted({gap + shift for gap in doublings for shift in (-1000, -999, -1, 0, 1, 999, 1000) if gap + shift >= 0}):
        assert int(gap_bucket(torch.tensor(gap), torch.tensor(0))) == min((gap // 1000).bit_length(), GAP_BUCKETS - 2) + 1, gap


def test_gaps_without_a_clock_and_backwards():
    now, unknown = torch.tensor(10_000), torch.tensor(NO_CLOCK)
    assert int(gap_bucket(now, unknown)) == int(gap_bucket(unknown, now)) == int(gap_bucket(unknown, unknown)) == 0
    assert int(gap_bucket(now, now + 5000)) == 1


def test_position_buckets_are_exact_then_half_octaves_and_never_fall():
    distance = torch.arange(-3, 20_000)
    bucket = position_bucket(distance)
    assert bucket[:3].tolist() == [0, 0, 0]
    assert bucket[3:19].tolist() == list(range(16))
    assert [int(position_bucket(torch.tensor(d))) for d in (16, 23, 24, 31, 32, 48)] == [16, 16, 17, 17, 18, 19]
    assert (bucket.diff() >= 0).all()
    assert int(bucket.max()) == POSITION_BUCKETS - 1
