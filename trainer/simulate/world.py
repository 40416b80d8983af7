"""The state of the simulated world: users whose tastes drift, items that are born and die, and what sessions leave behind.

Everything random comes from a generator keyed by (seed, stream, day), so a day depends on earlier days but never on how many
days are asked for, and two policies in the same world meet the same users.

Shape suffixes: U users, I live items, T topics, A authors, D latent dimensions, N newborn items.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from trainer.schema.simulation import SimulationSpec
from trainer.schema.time import add_days, day_start_ms

LATENT = 8
RECENT_ITEMS = 24
AGE_BANDS = ("18-24", "25-34", "35-44", "45+")
CHANNELS = ("organic", "invite", "campaign")
COUNTRIES = ("CN", "SG", "MY", "TH", "VN", "JP")
DEVICES = ("android", "ios", "web")
TABS = ("home", "discover", "nearby", "channel")

_COUNTRY_SHARES = (0.52, 0.14, 0.12, 0.10, 0.08, 0.04)
_DEVICE_SHARES = (0.62, 0.30, 0.08)
_TASTE_MEMORY = 0.985  # of a taste's deviation from its home, a day: half of it is gone after about 46 days
_TASTE_SPREAD = 0.8
_TREND_MEMORY, _TREND_SPREAD = 0.9, 0.3


class Stream(IntEnum):
    """Independent random streams; the numbers are part of the bytes a seed stands for."""

    RULES = 0
    USERS = 1
    FOUNDERS = 2
    BIRTHS = 3
    DRIFT = 4
    PLAN = 5
    BEHAVIOUR = 6
    CANDIDATES = 7
    POLICY = 8
    DELIVERY = 9
    INCIDENTS = 10
    PRODUCTION = 11


def generator(seed: int, stream: Stream, day: int = 0, *more: int) -> np.random.Generator:
    """Returns the generator of a stream on a day (0 is the first day)."""
    return np.random.default_rng([seed, int(stream), day, *more])


@dataclass(frozen=True)
class Rules:
    """What never changes: topics, authors, and how watching one topic makes a user want, or not want, the next.

    Attributes:
        topic_TD: Place of each topic in the latent space.
        author_A: Quality of each author, in log-odds of a click.
        appeal_A: How much an author is followed, in log-odds.
        author_topic_A: Main topic of each author.
        after_click_TT: Row = topic of a clicked item, column = change of the appetite for each topic.
        after_skip_TT: The same for an item that was shown and not clicked.
        hour_topic_HT: How much each topic is wanted at each local hour, in log-odds.
        tab_B: Offset of each tab, in log-odds.
    """

    topic_TD: np.ndarray
    author_A: np.ndarray
    appeal_A: np.ndarray
    author_topic_A: np.ndarray
    after_click_TT: np.ndarray
    after_skip_TT: np.ndarray
    hour_topic_HT: np.ndarray
    tab_B: np.ndarray


@dataclass
class Users:
    """All users. `taste_UD`, `appetite_UT`, `last_ms_U` and `recent_UH` move; the rest is fixed.

    Attributes:
        home_UD: Taste that a user's taste wanders around.
        taste_UD: Taste today.
        speed_U: How fast it wanders.
        bias_U: How easily a user clicks, in log-odds.
        patience_U: How long a user watches, in log seconds.
        warmth_U: How easily a user likes and follows, in log-odds.
        activity_U: Mean impressions a day.
        appetite_UT: Short-lived want of each topic, left behind by what was just watched.
        last_ms_U: When the user was last seen.
        recent_UH: Ids of the items shown last; the platform does not show them again.
        tab_cdf_UB: Cumulative habit of opening each tab.
        night_U: Hours by which the user's day is shifted.
        country_U: Index into `COUNTRIES`.
        device_U: Index into `DEVICES` of the main device.
        age_U: Index into `AGE_BANDS`.
        channel_U: Index into `CHANNELS`.
    """

    home_UD: np.ndarray
    taste_UD: np.ndarray
    speed_U: np.ndarray
    bias_U: np.ndarray
    patience_U: np.ndarray
    warmth_U: np.ndarray
    activity_U: np.ndarray
    appetite_UT: np.ndarray
    last_ms_U: np.ndarray
    recent_UH: np.ndarray
    tab_cdf_UB: np.ndarray
    night_U: np.ndarray
    country_U: np.ndarray
    device_U: np.ndarray
    age_U: np.ndarray
    channel_U: np.ndarray


@dataclass
class Items:
    """Live items in order of birth (`id_I` ascends).

    Attributes:
        id_I: Item id, 1 for the first ever born.
        born_ms_I: Instant of birth.
        dies_I: First day (index) on which the item is gone.
        author_I: Author.
        topic_I: Topic.
        latent_ID: Place in the latent space.
        quality_I: Quality, author's included, in log-odds of a click.
        grip_I: How long it holds a viewer, in log seconds.
        duration_s_I: Length.
        shown_I: Times it was shown so far.
    """

    id_I: np.ndarray
    born_ms_I: np.ndarray
    dies_I: np.ndarray
    author_I: np.ndarray
    topic_I: np.ndarray
    latent_ID: np.ndarray
    quality_I: np.ndarray
    grip_I: np.ndarray
    duration_s_I: np.ndarray
    shown_I: np.ndarray

    def __len__(self) -> int:
        return len(self.id_I)

    def where(self, keep_I: np.ndarray) -> Items:
        """Returns the items of a mask."""
        return Items(**{name: values[keep_I] for name, values in vars(self).items()})

    def and_(self, other: Items) -> Items:
        """Returns these items followed by `other`."""
        return Items(**{name: np.concatenate([values, getattr(other, name)]) for name, values in vars(self).items()})


class World:
    """Users, items and the rules they follow, from before the first day on.

    Days are begun in order, each once, by `begin_day`; `trainer.simulate.feed.serve` does that.

    Args:
        spec: What to simulate.

    Attributes:
        day: Index of the day that was begun last; -1 before the first.
        rules: What never changes.
        users: All users.
        items: Live items.
        born: Items born on the day that was begun last (founders too, on the first); subset of `items`.
        trend_T: What is in fashion today, in log-odds of a click.
        stale_taste_UD: Tastes as of the day before: what a nightly pipeline can know at best.
        stale_trend_T: Trend as of the day before.
        total_items: Items ever born.
    """

    def __init__(self, spec: SimulationSpec) -> None:
        self.spec = spec
        self.day = -1
        self.rules = _draw_rules(spec)
        self.users = _draw_users(spec, self.rules)
        self.items = _founders(spec, self.rules)
        self.born = self.items
        self.trend_T = np.zeros(spec.topics, np.float32)
        self.stale_taste_UD, self.stale_trend_T = self.users.taste_UD, self.trend_T
        self.total_items = len(self.items)

    def begin_day(self, day: int) -> None:
        """Drifts tastes and trend, buries the dead and adds the newborn.

        Args:
            day: Index of the day; the one after `self.day`.

        Raises:
            ValueError: If a day is skipped or repeated: the state would not be that of any simulation.
        """
        if day != self.day + 1:
            raise ValueError(f"the world is at day {self.day}; day {day} cannot begin")
        self.day = day
        rng = generator(self.spec.seed, Stream.DRIFT, day)
        users = self.users
        self.stale_taste_UD, self.stale_trend_T = users.taste_UD, self.trend_T
        step_UD = rng.standard_normal(users.taste_UD.shape, np.float32) * users.speed_U[:, None]
        users.taste_UD = users.home_UD + _TASTE_MEMORY * (users.taste_UD - users.home_UD) + step_UD
        shock_T = rng.standard_normal(self.spec.topics, np.float32)
        self.trend_T = _TREND_MEMORY * self.trend_T + np.float32(_TREND_SPREAD * np.sqrt(1 - _TREND_MEMORY**2)) * shock_T
        newborn = self._births(day)
        self.born = self.items.and_(newborn) if day == 0 else newborn
        self.items = self.items.where(self.items.dies_I > day).and_(newborn)
        self.total_items += len(newborn)

    @property
    def date(self) -> str:
        """ISO date of the current business day."""
        return add_days(self.spec.first_day, self.day)

    def day_bounds_ms(self) -> tuple[int, int]:
        """Returns the first instant of the current day and of the next one."""
        return day_start_ms(self.date, self.spec.timezone), day_start_ms(add_days(self.date, 1), self.spec.timezone)

    def _births(self, day: int) -> Items:
        rng = generator(self.spec.seed, Stream.BIRTHS, day)
        start_ms, end_ms = self.day_bounds_ms()
        count = int(rng.poisson(self.spec.births_per_day))
        born_ms_N = np.sort(rng.integers(start_ms, end_ms, count))
        return _draw_items(rng, self.spec, self.rules, self.total_items + 1, born_ms_N, day)


def _draw_rules(spec: SimulationSpec) -> Rules:
    rng = generator(spec.seed, Stream.RULES)
    count = spec.topics
    topic_TD = rng.standard_normal((count, LATENT))
    topic_TD /= np.linalg.norm(topic_TD, axis=1, keepdims=True)
    hours_H = np.arange(24)
    peak_T = rng.uniform(0, 24, count)
    return Rules(
        topic_TD=topic_TD.astype(np.float32),
        author_A=(0.3 * rng.standard_normal(spec.authors)).astype(np.float32),
        appeal_A=(0.7 * rng.standard_normal(spec.authors)).astype(np.float32),
        author_topic_A=rng.integers(0, count, spec.authors),
        after_click_TT=_after_click(rng, count),
        after_skip_TT=(-0.6 * np.eye(count)).astype(np.float32),
        hour_topic_HT=(0.3 * np.cos(2 * np.pi * (hours_H[:, None] - peak_T) / 24)).astype(np.float32),
        tab_B=np.array([0.1, 0.0, -0.25, 0.2], np.float32),
    )


def _after_click(rng: np.random.Generator, topics: int) -> np.ndarray:
    """Each topic makes some others more wanted and some less; of itself one has had enough for a while."""
    after_TT = 1.2 * rng.standard_normal((topics, topics))
    after_TT -= after_TT.mean(axis=1, keepdims=True)
    np.fill_diagonal(after_TT, -1.5)
    return after_TT.astype(np.float32)


def _draw_users(spec: SimulationSpec, rules: Rules) -> Users:
    rng = generator(spec.seed, Stream.USERS)
    count = spec.users
    age_U = rng.choice(len(AGE_BANDS), count, p=[0.35, 0.3, 0.2, 0.15])
    group_taste_GD = 0.5 * rng.standard_normal((len(AGE_BANDS), LATENT))
    liked_UT = rng.dirichlet(np.full(spec.topics, 0.3), count)
    # einsum, not @: a BLAS may add in another order with another number of threads.
    home_UD = np.einsum("ut,td->ud", 2.2 * liked_UT, rules.topic_TD) + group_taste_GD[age_U] + 0.5 * rng.standard_normal((count, LATENT))
    speed_U = 0.06 * rng.gamma(2.0, 0.5, count) + 0.02
    activity_U = rng.gamma(0.8, 1.0, count) + 0.05
    tab_UB = rng.dirichlet([3.0, 1.5, 0.6, 0.9], count)

    def normal(scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(count)).astype(np.float32)

    return Users(
        home_UD=home_UD.astype(np.float32),
        taste_UD=(home_UD + _TASTE_SPREAD * 0.3 * rng.standard_normal((count, LATENT))).astype(np.float32),
        speed_U=speed_U.astype(np.float32),
        bias_U=normal(0.55) + np.array([0.2, 0.05, -0.1, -0.25], np.float32)[age_U],
        patience_U=normal(0.3),
        warmth_U=normal(0.8),
        activity_U=activity_U * spec.events_per_user_day / activity_U.mean(),
        appetite_UT=np.zeros((count, spec.topics), np.float32),
        last_ms_U=np.zeros(count, np.int64),
        recent_UH=np.zeros((count, RECENT_ITEMS), np.int64),
        tab_cdf_UB=np.cumsum(tab_UB, axis=1).astype(np.float32),
        night_U=rng.normal(0.0, 1.5, count),
        country_U=rng.choice(len(COUNTRIES), count, p=_COUNTRY_SHARES),
        device_U=rng.choice(len(DEVICES), count, p=_DEVICE_SHARES),
        age_U=age_U,
        channel_U=rng.choice(len(CHANNELS), count, p=[0.6, 0.15, 0.25]),
    )


def _founders(spec: SimulationSpec, rules: Rules) -> Items:
    """Items born before the first day; life has no memory, so what remains of theirs is drawn as if they were new."""
    rng = generator(spec.seed, Stream.FOUNDERS)
    start_ms = day_start_ms(spec.first_day, spec.timezone)
    age_days_N = rng.exponential(spec.lifetime_days, spec.items)
    born_ms_N = np.sort(start_ms - 1 - (age_days_N * 86_400_000).astype(np.int64))
    return _draw_items(rng, spec, rules, 1, born_ms_N, -1)


def _draw_items(rng: np.random.Generator, spec: SimulationSpec, rules: Rules, first_id: int, born_ms_N: np.ndarray, day: int) -> Items:
    count = len(born_ms_N)
    # A few authors publish most items.
    author_N = (rng.random(count) ** 2 * spec.authors).astype(np.int64)
    strays_N = rng.random(count) < 0.2
    topic_N = np.where(strays_N, rng.integers(0, spec.topics, count), rules.author_topic_A[author_N])
    latent_ND = rules.topic_TD[topic_N] + 0.22 * rng.standard_normal((count, LATENT))
    duration_s_N = np.clip(np.exp(rng.normal(3.1, 0.7, count)), 3, 300).round(1)
    grip_N = 0.25 * rng.standard_normal(count) + 0.35 * np.log(duration_s_N / 22)
    return Items(
        id_I=np.arange(first_id, first_id + count, dtype=np.int64),
        born_ms_I=born_ms_N.astype(np.int64),
        # Born at noon on average and gone at a midnight: whole days rounded down give the declared mean.
        dies_I=day + 1 + rng.exponential(spec.lifetime_days, count).astype(np.int64),
        author_I=author_N,
        topic_I=topic_N,
        latent_ID=latent_ND.astype(np.float32),
        quality_I=(0.4 * rng.standard_normal(count)).astype(np.float32) + rules.author_A[author_N],
        grip_I=grip_N.astype(np.float32),
        duration_s_I=duration_s_N.astype(np.float32),
        shown_I=np.zeros(count, np.int64),
    )
