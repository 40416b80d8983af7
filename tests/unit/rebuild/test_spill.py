"""Rows put aside come back once, a user's rows of a day together, in groups of bounded size."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.rebuild import spill
from trainer.rebuild.events import user_bucket
from trainer.rebuild.spill import ROW, Spill
from trainer.schema.time import DAY_MS, day_start_ms

BUCKETS, ROWS, GROUP = 3, 4000, 100


@pytest.fixture
def rows() -> pa.Table:
    """Two days with a day without rows between them, the first with three quarters of the rows; ids as strings."""
    generator = np.random.default_rng(0)
    day_N = np.where(generator.random(ROWS) < 0.75, 0, 2)
    time_N = day_start_ms("2026-03-02", "UTC") + day_N * DAY_MS + generator.integers(0, DAY_MS, ROWS)
    users = [f"user-{index}" for index in generator.integers(0, 500, ROWS)]
    return pa.table({"user": users, "request_time": time_N, "note": pa.array(np.arange(ROWS)).cast(pa.string())})


@pytest.mark.parametrize("at_a_time", [1, 97, ROWS])
def test_every_row_comes_back_once_with_all_of_its_user_and_day(rows, tmp_path, monkeypatch, at_a_time: int):
    monkeypatch.setattr(spill, "GROUP_ROWS", GROUP)
    some = rows.slice(0, 400) if at_a_time == 1 else rows
    day_N = np.where(some["request_time"].to_numpy() < day_start_ms("2026-03-03", "UTC"), "2026-03-02", "2026-03-04")
    rows_of = {day: int((day_N == day).sum()) for day in ("2026-03-02", "2026-03-04")}
    aside = Spill(tmp_path / "rows.arrow", some.schema, rows_of, BUCKETS, "UTC")
    aside.write(some.slice(start, at_a_time) for start in range(0, len(some), at_a_time))
    groups = list(aside.groups())

    place_N = np.concatenate([group[ROW].to_numpy() for _, _, group in groups])
    assert sorted(place_N) == list(range(len(some)))
    homes: dict[tuple[str, str], int] = {}
    for index, (bucket, day, group) in enumerate(groups):
        place_M = group[ROW].to_numpy()
        assert (np.diff(place_M) > 0).all(), "rows stay as they came"
        assert group.drop_columns([ROW]).equals(some.take(pa.array(place_M)).combine_chunks())
        assert set(day_N[place_M]) == {day}
        assert set(user_bucket(group["user"], BUCKETS)) == {bucket}
        for user in set(group["user"].to_pylist()):
            assert homes.setdefault((user, day), index) == index, "a user's day is in one group"
    assert [bucket for bucket, _, _ in groups] == sorted(bucket for bucket, _, _ in groups)
    assert max(len(group) for _, _, group in groups) < 2 * GROUP
