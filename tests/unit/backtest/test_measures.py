"""Compute until an arm is level, and stays so."""

import math

import pytest

from trainer.backtest.measures import Step, compute_until


def curve(*points):
    """(flops, gap) inside a night; (flops, gap, 'end') where a night ends."""
    return [Step(point[0], point[0] / 10, point[1], len(point) == 3) for point in points]


def test_the_first_point_after_which_every_night_ends_within_reach():
    cost = compute_until(curve((0, 0.05), (10, 0.001), (20, 0.004), (30, 0.002, "end"), (60, -0.01, "end")), 0.002, 0.002, 100)
    assert (cost.flops, cost.seconds, cost.share, cost.reached) == (10, 1.0, 0.1, True)


def test_a_night_that_ends_out_of_reach_sets_the_count_back():
    cost = compute_until(curve((10, 0.0), (30, 0.001, "end"), (60, 0.01, "end"), (70, 0.0), (90, 0.001, "end")), 0.002, 0.002, 100)
    assert (cost.flops, cost.reached) == (70, True)


def test_a_last_night_out_of_reach_is_a_bound_on_everything_spent():
    cost = compute_until(curve((0, -0.1), (30, -0.1, "end"), (60, 0.0021, "end")), 0.002, 0.002, 100)
    assert (cost.flops, cost.share, cost.reached) == (60, 0.6, False)


def test_starting_within_reach_costs_nothing():
    assert compute_until(curve((0, 0.0), (30, 0.0, "end")), 0.002, 0.002, 100).flops == 0


def test_reaching_is_stricter_than_staying():
    points = curve((10, 0.001), (30, 0.001, "end"), (50, 0.0), (60, 0.001, "end"))
    assert compute_until(points, 0.0, 0.002, 100).flops == 50
    assert not compute_until(points[:2], 0.0, 0.002, 100).reached


def test_nan_is_never_within_reach():
    assert not compute_until(curve((10, math.nan, "end")), 0.002, 0.002, 100).reached
    assert not compute_until(curve((10, 0.0), (30, math.nan, "end")), 0.002, 0.002, 100).reached, "nor is a night that ends with it"


@pytest.mark.parametrize("points", [[], curve((10, 0.0))])
def test_a_curve_must_end_with_a_night(points):
    with pytest.raises(ValueError, match="end of a night"):
        compute_until(points, 0.002, 0.002, 100)
