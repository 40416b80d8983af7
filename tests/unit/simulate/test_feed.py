from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.schema.simulation import ACTIONS
from trainer.schema.time import add_days, day_start_ms
from trainer.simulate import Candidates, ProductionScorer, Requests, Scores, World, serve
from trainer.simulate.feed import TRUTH


class Reversed(ProductionScorer):
    """Shows what production likes least."""

    version = "reversed"

    def __call__(self, requests: Requests, candidates: Candidates) -> Scores:
        scores = super().__call__(requests, candidates)
        return dataclasses.replace(scores, value_RC=-scores.value_RC)


@pytest.fixture
def one_day(tiny):
    world = World(tiny)
    return world, serve(world, ProductionScorer(world), 0)


def test_events_are_in_order_of_time_and_lie_within_their_day(one_day):
    world, feed = one_day
    start_ms, end_ms = world.day_bounds_ms()
    time_E = feed.cells["event_time_ms"]
    assert len(feed) > 1000
    assert (np.diff(time_E) >= 0).all()
    assert time_E[0] >= start_ms and time_E[-1] < end_ms
    assert (feed.cells["request_time_ms"] < time_E).all()
    assert (time_E < feed.cells["known_at_ms"]).all()


def test_at_midnight_everybody_goes_to_sleep(tiny, many):
    starts = np.array([day_start_ms(add_days(tiny.first_day, day), tiny.timezone) for day in range(8)])
    assert (many["event_time_ms"] >= starts[many["day"]]).all()
    assert (many["event_time_ms"] < starts[many["day"] + 1]).all()
    sizes = np.unique(many["request_id"], return_counts=True)[1]
    assert 0 < (sizes < tiny.slate).sum() < 0.02 * len(sizes)  # slates that midnight cut off


def test_event_ids_are_unique_and_slates_hold_different_items(many):
    assert len(np.unique(many["event_id"])) == len(many["event_id"])
    assert np.array_equal(many["event_id"] // 100, many["request_id"])
    assert np.array_equal(many["event_id"] % 100, many["position"])
    pairs = np.stack([many["request_id"], many["item_id"]])
    assert len(np.unique(pairs, axis=1).T) == len(many["item_id"])


def test_a_user_makes_one_request_after_the_other(many):
    """The next slate is asked for only when every row of the one before could have been known."""
    order_N = np.lexsort((many["position"], many["request_time_ms"], many["user_id"]))
    user_N, request_N, asked_N, done_N = (many[name][order_N] for name in ("user_id", "request_id", "request_time_ms", "known_at_ms"))
    same_user_N = user_N[1:] == user_N[:-1]
    next_request_N = same_user_N & (request_N[1:] != request_N[:-1])
    assert next_request_N.sum() > 5000
    assert (asked_N[1:] - done_N[:-1])[next_request_N].min() >= 4000
    same_request_N = same_user_N & ~next_request_N
    assert (many["event_time_ms"][order_N][1:] - done_N[:-1])[same_request_N].min() >= 0


def test_items_are_not_shown_again_too_soon(many):
    order_N = np.lexsort((many["event_time_ms"], many["user_id"]))
    user_N, item_N = many["user_id"][order_N], many["item_id"][order_N]
    for lag in range(1, 15):  # 24 places, of which slates cut off at midnight waste some
        assert not ((user_N[lag:] == user_N[:-lag]) & (item_N[lag:] == item_N[:-lag])).any()
    again = (user_N[30:] == user_N[:-30]) & (item_N[30:] == item_N[:-30])
    assert again.any()


def test_exploration_has_its_declared_share_and_propensity(tiny, play):
    cells = play(dataclasses.replace(tiny, users=2000, exploration=0.2, days=3))
    first_N = cells["position"] == 0
    share = cells["is_random"][first_N].mean()
    assert share == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / first_N.sum()))
    greedy_N = ~cells["is_random"]
    assert (cells["exposure_probability"][greedy_N] > 0.8).all()
    by_chance_N = cells["exposure_probability"][cells["is_random"]]
    # A random slate repeats the ranked item with probability 1/n, n eligible candidates; that is what propensities say.
    luck_N = by_chance_N > 0.5
    expected_N = np.where(luck_N, by_chance_N - 0.8, by_chance_N) / 0.2
    assert (expected_N <= 1 / tiny.slate).all() and (expected_N >= 1 / tiny.candidates - 1e-6).all()
    assert abs(luck_N.sum() - expected_N.sum()) < 4 * np.sqrt(expected_N.sum())


def test_production_is_useful_and_imperfect(many):
    def correlation(name):
        return np.corrcoef(many[name], many[TRUTH + "click"])[0, 1]

    assert 0.58 < correlation("score_click") < 0.72
    assert 1.03 < many["score_click"].mean() / many["click"].mean() < 1.35
    for action in ACTIONS:
        assert np.isfinite(many[f"score_{action}"]).all()


def test_ranking_shows_what_production_prefers(many):
    value_N = many["score_click"][~many["is_random"]]
    position_N = many["position"][~many["is_random"]]
    means = np.bincount(position_N, value_N) / np.bincount(position_N)
    assert (np.diff(means) < 0).all()


def test_another_scorer_changes_what_is_shown_but_not_how_users_behave(tiny, play):
    mine, other = play(dataclasses.replace(tiny, days=1)), play(dataclasses.replace(tiny, days=1), Reversed)
    _, a, b = np.intersect1d(mine["event_id"], other["event_id"], return_indices=True)
    moved_N = mine["item_id"][a] != other["item_id"][b]
    assert moved_N.mean() > 0.8
    # First requests meet the same users at the same time: where the same item lies in the same place, all is the same.
    first_of_mine = first_requests(mine)
    same_N = ~moved_N & np.isin(mine["request_id"][a], first_of_mine)
    assert same_N.sum() > 20
    for name in ("request_time_ms", "tab", *(TRUTH + action for action in ACTIONS), "click", "long_view", "like", "follow", "watch_time_s"):
        assert np.array_equal(mine[name][a][same_N], other[name][b][same_N]), name
    assert other["true_click"].mean() < mine["true_click"].mean() - 0.03  # and a worse policy is rewarded less


def first_requests(cells: dict[str, np.ndarray]) -> np.ndarray:
    order_N = np.lexsort((cells["request_time_ms"], cells["user_id"]))
    _, index = np.unique(cells["user_id"][order_N], return_index=True)
    return cells["request_id"][order_N][index]


def test_other_scorers_leave_their_name(tiny):
    world = World(tiny)
    assert serve(world, Reversed(world), 0).version == "reversed"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda scores: dataclasses.replace(scores, value_RC=scores.value_RC[:, :3]), "wrong shape"),
        (lambda scores: dataclasses.replace(scores, value_RC=scores.value_RC * np.nan), "not finite"),
        (lambda scores: dataclasses.replace(scores, actions={"click": scores.actions["click"]}), "does not predict"),
    ],
)
def test_unusable_scores_are_refused(tiny, change, what):
    class Broken(ProductionScorer):
        version = "broken"

        def __call__(self, requests: Requests, candidates: Candidates) -> Scores:
            return change(super().__call__(requests, candidates))

    world = World(tiny)
    with pytest.raises(DataError, match=what) as error:
        serve(world, Broken(world), 0)
    assert "scorer broken" in str(error.value)
