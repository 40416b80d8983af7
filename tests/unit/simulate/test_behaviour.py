from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.schema.simulation import BINARY_ACTIONS
from trainer.schema.time import DAY_MS
from trainer.simulate import ProductionScorer, Requests, World, serve
from trainer.simulate.behaviour import remember, truth


def z_scores(label_N, probability_N, group_N):
    """How many standard deviations each group's positives lie from their expectation."""
    surplus = np.bincount(group_N, label_N - probability_N.astype(float))
    variance = np.bincount(group_N, probability_N * (1.0 - probability_N))
    return (surplus / np.sqrt(np.maximum(variance, 1e-9)))[variance > 10]  # fewer are not nearly normal


@pytest.mark.parametrize("action", BINARY_ACTIONS)
def test_outcomes_happen_with_their_true_probability(many, action):
    label_N, probability_N = many[action].astype(float), many[f"true_{action}"]
    assert probability_N.min() > 0 and probability_N.max() < 1
    assert len(z_scores(label_N, probability_N, np.zeros(len(label_N), int))) == 1
    decile_N = np.argsort(np.argsort(probability_N)) * 10 // len(probability_N)
    for group_N in (decile_N, many["position"], many["tab"], many["day"], np.zeros(len(label_N), int)):
        assert np.abs(z_scores(label_N, probability_N, group_N)).max() < 4


def test_watch_time_has_its_true_expectation(many):
    watch_N, expected_N = many["watch_time_s"].astype(float), many["true_watch_time"].astype(float)
    decile_N = np.argsort(np.argsort(expected_N)) * 10 // len(expected_N)
    for decile in range(10):
        error_N = (watch_N - expected_N)[decile_N == decile]
        assert abs(error_N.mean()) < 4 * error_N.std() / np.sqrt(len(error_N))
        assert error_N.std() / np.sqrt(len(error_N)) < 0.05 * expected_N[decile_N == decile].mean()  # the check has teeth


def test_every_action_implies_a_click_and_a_long_view_is_long(many):
    for action in ("long_view", "like", "follow"):
        assert many["click"][many[action]].all()
    threshold_N = np.minimum(many["duration_s"], 18)
    assert np.array_equal(many["long_view"], many["click"] & (many["watch_time_s"] >= threshold_N))


def test_lower_positions_are_clicked_less(tiny):
    world = World(tiny)
    world.begin_day(0)
    slot_RS = np.full((1, tiny.slate), 7)
    click_S = truth(world, request(world, 3), slot_RS).click[0]
    assert (np.diff(click_S) < 0).all()


def request(world: World, user: int, minutes: int = 600) -> Requests:
    zero = np.zeros(1, np.int64)
    time_ms = world.day_bounds_ms()[0] + minutes * 60_000
    return Requests(zero, zero + user, zero + time_ms, zero + minutes // 60, zero, zero, zero)


def watch(world: World, user: int, slots: list[int], clicked: bool, minutes: int, seen: int = 99) -> None:
    slot_RS = np.array([slots])
    asked = request(world, user, minutes)
    seen_RS = np.arange(len(slots))[None] < seen
    remember(world, asked, slot_RS, seen_RS, np.full(slot_RS.shape, clicked), asked.time_ms_R + 30_000)


def click_by_topic(world: World, user: int, minutes: int) -> np.ndarray:
    """True click log-odds of one item of each topic at the first position."""
    first_T = np.array([np.flatnonzero(world.items.topic_I == topic)[0] for topic in range(world.spec.topics)])
    odds = [truth(world, request(world, user, minutes), np.array([[slot]])).click[0, 0] for slot in first_T]
    return np.log(odds / (1 - np.array(odds)))


def item_of(world: World, topic: int) -> int:
    return int(np.flatnonzero(world.items.topic_I == topic)[0])


@pytest.fixture
def world(tiny):
    world = World(tiny)
    world.begin_day(0)
    return world


def test_what_was_just_watched_changes_what_is_wanted(world):
    before_T = click_by_topic(world, 5, 601)
    watch(world, 5, [item_of(world, 2)], clicked=True, minutes=600)
    change_T = click_by_topic(world, 5, 601) - before_T
    wanted = int(np.argmax(world.rules.after_click_TT[2]))
    assert np.argmax(change_T) == wanted and change_T[wanted] > 1
    assert change_T[2] < -0.5  # one has had enough of what one just saw


def test_what_one_user_watches_is_nothing_to_another(world):
    before_T = click_by_topic(world, 6, 601)
    watch(world, 5, [item_of(world, 2)], clicked=True, minutes=600)
    assert np.array_equal(click_by_topic(world, 6, 601), before_T)


def test_a_skip_bores_and_leads_nowhere(world):
    before_T = click_by_topic(world, 5, 601)
    watch(world, 5, [item_of(world, 2)], clicked=False, minutes=600)
    change_T = click_by_topic(world, 5, 601) - before_T
    assert change_T[2] < -0.3
    assert np.allclose(np.delete(change_T, 2), 0, atol=1e-4)


def test_the_order_of_the_history_matters(tiny):
    outcomes = []
    for topics in ((0, 1), (1, 0)):
        world = World(tiny)
        world.begin_day(0)
        for minute, topic in enumerate(topics):
            watch(world, 5, [item_of(world, topic)], clicked=True, minutes=600 + minute)
        outcomes.append(click_by_topic(world, 5, 610))
    assert np.abs(outcomes[0] - outcomes[1]).max() > 0.1


def test_positions_of_a_slate_count_one_after_the_other(tiny):
    together, apart = World(tiny), World(tiny)
    for world in (together, apart):
        world.begin_day(0)
    first, second = item_of(together, 0), item_of(together, 1)
    watch(together, 5, [first, second], clicked=True, minutes=600)
    for slot in (first, second):
        watch(apart, 5, [slot], clicked=True, minutes=600)
    assert np.allclose(click_by_topic(together, 5, 610), click_by_topic(apart, 5, 610), atol=2e-3)


def test_what_was_not_seen_leaves_no_trace(tiny):
    cut, short = World(tiny), World(tiny)
    for world in (cut, short):
        world.begin_day(0)
    watch(cut, 5, [item_of(cut, 0), item_of(cut, 1)], clicked=True, minutes=600, seen=1)
    watch(short, 5, [item_of(short, 0)], clicked=True, minutes=600)
    assert np.array_equal(click_by_topic(cut, 5, 610), click_by_topic(short, 5, 610))


def test_appetite_fades_with_time(world):
    before_T = click_by_topic(world, 5, 601)
    watch(world, 5, [item_of(world, 2)], clicked=True, minutes=600)
    soon = np.abs(click_by_topic(world, 5, 601) - before_T).max()
    world.users.last_ms_U[5] -= 30 * DAY_MS  # the same, as if it had been a month ago
    assert np.abs(click_by_topic(world, 5, 601) - before_T).max() < 0.01 * soon


def test_the_log_alone_shows_the_sequence_effect(tiny):
    """What the last click led on to, learned from the first half of the log, predicts the second half; without order it does not."""
    spec = dataclasses.replace(tiny, users=1500, days=8)
    world = World(spec)
    scorer = ProductionScorer(world)
    rows = []
    topic_of: dict[int, int] = {}
    for day in range(spec.days):
        cells = serve(world, scorer, day).cells
        topic_of |= dict(zip(world.items.id_I.tolist(), world.items.topic_I.tolist(), strict=True))
        topic_E = np.array([topic_of[item] for item in cells["item_id"].tolist()])
        rows.append(np.stack([cells["user_id"], cells["request_id"], topic_E, cells["click"]]))
    user_N, request_N, topic_N, click_N = np.concatenate(rows, axis=1)
    last_N = last_click_before_request(user_N, request_N, topic_N, click_N)
    half = len(click_N) // 2
    known_N = last_N >= 0
    rng = np.random.default_rng(0)
    shuffled_N = last_N.copy()
    shuffled_N[known_N] = rng.permutation(last_N[known_N])
    assert transition_gain(last_N, topic_N, click_N, half) > 10
    assert abs(transition_gain(shuffled_N, topic_N, click_N, half)) < 4


def last_click_before_request(user_N, request_N, topic_N, click_N):
    """Topic of each user's last click in an earlier request; -1 for none. Rows are in order of time."""
    last: dict[int, int] = {}
    pending: dict[int, tuple[int, int]] = {}
    found = []
    for user, request, topic, click in zip(user_N.tolist(), request_N.tolist(), topic_N.tolist(), click_N.tolist(), strict=True):
        held = pending.get(user)
        if held and held[0] != request:
            last[user] = held[1]
            del pending[user]
        found.append(last.get(user, -1))
        if click:
            pending[user] = (request, topic)
    return np.array(found)


def transition_gain(last_N, topic_N, click_N, half):
    """z score of the correlation between learned lift of (last topic, topic) and clicks beyond the topic's rate."""
    topics = topic_N.max() + 1
    part_N = topics * (np.arange(len(topic_N)) >= half) + topic_N  # trends move between the halves
    beyond_N = click_N - (np.bincount(part_N, click_N) / np.bincount(part_N))[part_N]
    pair_N = np.where(last_N >= 0, last_N * topics + topic_N, topics * topics)
    seen_P = np.bincount(pair_N[:half], minlength=topics * topics + 1)
    lift_P = np.bincount(pair_N[:half], beyond_N[:half], minlength=len(seen_P)) / (seen_P + 50)
    judged_N = np.flatnonzero(last_N >= 0)
    judged_N = judged_N[judged_N >= half]
    product_N = (lift_P[pair_N] * beyond_N)[judged_N]
    return product_N.sum() / np.sqrt((product_N**2).sum())
