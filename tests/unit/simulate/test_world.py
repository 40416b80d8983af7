from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.schema.time import DAY_MS
from trainer.simulate import World


@pytest.fixture
def world(tiny):
    return World(tiny)


def test_days_begin_in_order_and_once(world):
    world.begin_day(0)
    for day in (0, 2):
        with pytest.raises(ValueError, match="cannot begin"):
            world.begin_day(day)


def test_items_are_born_within_their_day_and_live_on_average_as_declared(tiny):
    world = World(dataclasses.replace(tiny, items=2000, births_per_day=400.0, lifetime_days=5.0))
    lives = []
    for day in range(40):
        world.begin_day(day)
        start_ms, end_ms = world.day_bounds_ms()
        newborn_I = world.items.born_ms_I >= start_ms
        assert (world.items.born_ms_I < end_ms).all()
        assert (np.diff(world.items.id_I) > 0).all()
        assert (world.items.dies_I > day).all()
        lives.append(world.items.dies_I[newborn_I] - day - 0.5)  # born at noon, on average
    assert np.mean(np.concatenate(lives)) == pytest.approx(5.0, rel=0.03)
    assert len(world.items) == pytest.approx(400 * 5.5, rel=0.05)  # today's newborn are all there
    assert world.total_items == 2000 + sum(map(len, lives))


def test_tastes_drift_but_stay_near_home(tiny):
    world = World(dataclasses.replace(tiny, users=3000))
    start_UD = world.users.taste_UD.copy()
    spreads, moves = [], []
    for day in range(120):
        world.begin_day(day)
        spreads.append(np.std(world.users.taste_UD - world.users.home_UD))
        moves.append(np.std(world.users.taste_UD - start_UD))
    assert moves[0] < moves[6] < moves[29]
    assert moves[29] > 0.25
    assert spreads[119] < 1.3 * spreads[59]  # a random walk without a home would grow by 1.41


def test_production_sees_yesterday(world):
    world.begin_day(0)
    taste_UD, trend_T = world.users.taste_UD.copy(), world.trend_T.copy()
    world.begin_day(1)
    assert np.array_equal(world.stale_taste_UD, taste_UD)
    assert np.array_equal(world.stale_trend_T, trend_T)
    assert not np.array_equal(world.users.taste_UD, taste_UD)


def test_a_day_across_a_clock_change_is_as_long_as_it_is(tiny):
    world = World(dataclasses.replace(tiny, timezone="Europe/Berlin", first_day="2026-03-29"))
    world.begin_day(0)
    start_ms, end_ms = world.day_bounds_ms()
    assert end_ms - start_ms == DAY_MS - 3_600_000
