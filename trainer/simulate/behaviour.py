"""What users do with what they are shown: true probabilities, and outcomes drawn from them.

A click depends on the user's taste and bias, the item's latent place, quality, author and freshness, the topic's trend, the
hour, the tab, the position, and the appetite that the last items left behind (`Rules.after_click_TT`): what a user just
watched makes some topics more wanted and the same topic less. That appetite is a function of the order of the history, so
counts cannot express it. Given a click the watch time is log-normal, a long view is a watch time of at least
``min(duration, 18 s)``, and like and follow are drawn on their own.

All of it is independent of who chose the slate: a policy changes what is shown and nothing else.

Shape suffixes: R requests, S positions of a slate, T topics, D latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtr

from trainer.schema.time import DAY_MS, HOUR_MS
from trainer.simulate.world import World

LONG_VIEW_S = 18.0
_WATCH_SIGMA = np.float32(0.8)
_SKIP_SIGMA = np.float32(0.5)
_SKIP_LOG_S = np.float32(np.log(1.8))
_POSITION_SLOPE = np.float32(-0.22)  # per doubling of (1 + position)
_FRESHNESS, _FRESHNESS_DAYS = np.float32(0.5), 2.0
_APPETITE_DECAY = np.float32(0.7)  # a shown item
_APPETITE_MS = 3 * DAY_MS  # and with time, even if nothing is shown
_APPETITE_LIMIT = np.float32(3.0)
_CLICK_OFFSET, _WATCH_OFFSET, _LIKE_OFFSET, _FOLLOW_OFFSET = map(np.float32, (-2.05, 2.35, -3.4, -5.7))


@dataclass(frozen=True)
class Requests:
    """Slates that are asked for, at most one a user: what a scorer may know about them.

    Attributes:
        request_R: Request ids.
        user_R: Index of the user; the user id is ``user_R + 1``.
        time_ms_R: When the slate was asked for.
        hour_R: Local hour.
        tab_R: Index into `TABS`.
        device_R: Index into `DEVICES`.
        country_R: Index into `COUNTRIES`.
    """

    request_R: np.ndarray
    user_R: np.ndarray
    time_ms_R: np.ndarray
    hour_R: np.ndarray
    tab_R: np.ndarray
    device_R: np.ndarray
    country_R: np.ndarray

    @property
    def user_id_R(self) -> np.ndarray:
        return self.user_R + 1


@dataclass(frozen=True)
class Truth:
    """True probabilities and expectations of a slate, each float32 (R, S).

    Attributes:
        click: P(click).
        long_view: P(long_view); a long view implies a click.
        like: P(like); implies a click.
        follow: P(follow); implies a click.
        watch_time: E(watch time) in seconds.
        watch_mean: Mean of the log watch time given a click.
        threshold_s: Watch time from which on a click is a long view.
    """

    click: np.ndarray
    long_view: np.ndarray
    like: np.ndarray
    follow: np.ndarray
    watch_time: np.ndarray
    watch_mean: np.ndarray
    threshold_s: np.ndarray


@dataclass(frozen=True)
class Noise:
    """Luck of each position of each request, drawn before anybody knows what will be shown: uniform, but `watch` is normal."""

    click: np.ndarray
    watch: np.ndarray
    like: np.ndarray
    follow: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, requests: int, slate: int) -> Noise:
        """Draws the luck of `requests` slates."""
        shape = (requests, slate)
        uniform = [rng.random(shape, np.float32) for _ in range(3)]
        return cls(uniform[0], rng.standard_normal(shape, np.float32), uniform[1], uniform[2])

    def take(self, rows_R: np.ndarray) -> Noise:
        """Returns the luck of some requests."""
        return Noise(self.click[rows_R], self.watch[rows_R], self.like[rows_R], self.follow[rows_R])


@dataclass(frozen=True)
class Outcomes:
    """What happened, each (R, S): booleans, and the watch time in seconds."""

    click: np.ndarray
    long_view: np.ndarray
    like: np.ndarray
    follow: np.ndarray
    watch_time: np.ndarray


def appetite(world: World, requests: Requests) -> np.ndarray:
    """Returns each user's appetite for each topic at request time, (R, T)."""
    users, user_R = world.users, requests.user_R
    idle_R = np.exp((users.last_ms_U[user_R] - requests.time_ms_R) / _APPETITE_MS).astype(np.float32)
    return users.appetite_UT[user_R] * idle_R[:, None]


def truth(world: World, requests: Requests, slot_RS: np.ndarray) -> Truth:
    """Computes what users would truly do with a slate, given everything that happened before it was asked for.

    Args:
        world: The world at request time.
        requests: R requests.
        slot_RS: Index into `world.items` of the item at each position; position s is column s.

    Returns:
        True probabilities and expectations.
    """
    users, items, rules = world.users, world.items, world.rules
    user_R = requests.user_R
    topic_RS = items.topic_I[slot_RS]
    taste_RS = np.einsum("rd,rsd->rs", users.taste_UD[user_R], items.latent_ID[slot_RS])
    appetite_RS = np.take_along_axis(appetite(world, requests), topic_RS, axis=1)
    age_RS = (requests.time_ms_R[:, None] - items.born_ms_I[slot_RS]) / DAY_MS
    fresh_RS = _FRESHNESS * np.exp(-age_RS / _FRESHNESS_DAYS).astype(np.float32)
    position_S = _POSITION_SLOPE * np.log2(1 + np.arange(slot_RS.shape[1], dtype=np.float32))
    context_RS = world.trend_T[topic_RS] + rules.hour_topic_HT[requests.hour_R[:, None], topic_RS] + position_S
    user_side_R = _CLICK_OFFSET + users.bias_U[user_R] + rules.tab_B[requests.tab_R]
    click_RS = expit(user_side_R[:, None] + items.quality_I[slot_RS] + taste_RS + appetite_RS + fresh_RS + context_RS)

    mean_RS = _WATCH_OFFSET + items.grip_I[slot_RS] + users.patience_U[user_R, None] + 0.25 * taste_RS + 0.15 * appetite_RS
    threshold_RS = np.minimum(items.duration_s_I[slot_RS], np.float32(LONG_VIEW_S))
    warmth_RS = users.warmth_U[user_R, None] + 0.4 * taste_RS
    like_RS = expit(_LIKE_OFFSET + warmth_RS + 0.4 * items.quality_I[slot_RS])
    follow_RS = expit(_FOLLOW_OFFSET + warmth_RS + rules.appeal_A[items.author_I[slot_RS]])
    return Truth(
        click=click_RS,
        long_view=click_RS * long_view_given_click(mean_RS, threshold_RS),
        like=click_RS * like_RS,
        follow=click_RS * follow_RS,
        watch_time=expected_watch(click_RS, mean_RS),
        watch_mean=mean_RS,
        threshold_s=threshold_RS,
    )


def expected_watch(click: np.ndarray, watch_mean: np.ndarray) -> np.ndarray:
    """Returns the expected watch time (s) of an item that is clicked with probability `click` and skipped otherwise."""
    watched = np.exp(watch_mean + _WATCH_SIGMA**2 / 2)
    skipped = np.exp(_SKIP_LOG_S + _SKIP_SIGMA**2 / 2)
    return click * watched + (1 - click) * skipped


def long_view_given_click(watch_mean: np.ndarray, threshold_s: np.ndarray) -> np.ndarray:
    """Returns the probability that a log-normal watch time reaches the threshold."""
    return ndtr((watch_mean - np.log(threshold_s)) / _WATCH_SIGMA)


def act(true: Truth, noise: Noise) -> Outcomes:
    """Draws what happens.

    Args:
        true: True probabilities of R slates.
        noise: Their luck.

    Returns:
        Outcomes whose probabilities are exactly those of `true`.
    """
    click_RS = noise.click < true.click
    log_watch_RS = np.where(click_RS, true.watch_mean + _WATCH_SIGMA * noise.watch, _SKIP_LOG_S + _SKIP_SIGMA * noise.watch)
    watch_RS = np.exp(log_watch_RS)
    return Outcomes(
        click=click_RS,
        long_view=click_RS & (watch_RS >= true.threshold_s),
        like=click_RS & (noise.like * true.click < true.like),
        follow=click_RS & (noise.follow * true.click < true.follow),
        watch_time=watch_RS,
    )


def remember(
    world: World, requests: Requests, slot_RS: np.ndarray, seen_RS: np.ndarray, click_RS: np.ndarray, end_ms_R: np.ndarray
) -> None:
    """Lets a slate leave its trace in the users' appetite (the world is changed in place).

    Args:
        world: The world at request time.
        requests: R requests of different users.
        slot_RS: Item at each position.
        seen_RS: Whether the position was seen at all.
        click_RS: Whether it was clicked.
        end_ms_R: When the user was done with the slate.
    """
    users, rules = world.users, world.rules
    topics = len(rules.topic_TD)
    trace_2T_T = np.concatenate([rules.after_click_TT, rules.after_skip_TT])
    row_RS = world.items.topic_I[slot_RS] + np.where(click_RS, 0, topics)
    later_RS = seen_RS[:, ::-1].cumsum(axis=1)[:, ::-1] - seen_RS  # items seen after this one
    weight_RS = (_APPETITE_DECAY**later_RS * seen_RS).astype(np.float32)
    left_RT = np.einsum("rs,rst->rt", weight_RS, trace_2T_T[row_RS])
    kept_R = (_APPETITE_DECAY ** seen_RS.sum(axis=1)).astype(np.float32)
    appetite_RT = appetite(world, requests) * kept_R[:, None] + left_RT
    users.appetite_UT[requests.user_R] = np.clip(appetite_RT, -_APPETITE_LIMIT, _APPETITE_LIMIT)
    users.last_ms_U[requests.user_R] = end_ms_R


def local_hour(time_ms: np.ndarray, day_start_ms: int) -> np.ndarray:
    """Returns the hour since local midnight, 0 to 23 (the 25th hour of a long day counts as the 24th)."""
    return np.minimum((time_ms - day_start_ms) // HOUR_MS, 23)
