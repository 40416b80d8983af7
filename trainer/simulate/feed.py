"""One day of the feed: who opens it when, what the scorer shows, what they do.

A day is simulated in rounds: round k holds the k-th request of every user who makes that many, so that a user's requests are
sequential and numpy still works on thousands of them at once. All luck is drawn per planned request before the first round:
another scorer meets the same users at the same moments with the same luck.

Shape suffixes: P planned requests, Q their positions in the plan for one round, U users, R requests, S positions, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.schema.simulation import ACTIONS, BINARY_ACTIONS, MAX_SLATE, SCORE
from trainer.schema.time import MINUTE_MS, SECOND_MS, parse_day
from trainer.simulate import behaviour
from trainer.simulate.behaviour import Noise, Requests
from trainer.simulate.policy import Scorer, Scores, Shelf, Slate, ask, choose
from trainer.simulate.world import COUNTRIES, DEVICES, TABS, Stream, World, generator

TRUTH = "true_"
LABELS = {"tab": TABS, "country": COUNTRIES, "device": DEVICES}
_REQUESTS_A_DAY = 100_000_000  # room for request ids within a day
_HOUR_WEIGHTS = (4, 2, 1, 1, 1, 1, 2, 4, 5, 5, 5, 6, 8, 7, 5, 5, 5, 6, 8, 10, 12, 12, 10, 7)
_WEEKEND = 1.15  # more impressions on Saturdays and Sundays
_NEW_SESSION = 0.3
_PAUSE_MS = 20 * MINUTE_MS  # at least, between sessions
_BLINK_MS = 300  # from the request to the first item, and between items


@dataclass(frozen=True)
class Feed:
    """What happened on one day, sorted by (event time, event id).

    Attributes:
        day: Index of the day.
        cells: Column -> values (E,): those of `EVENTS_SCHEMA`, with codes for strings (`LABELS`), and ``true_<action>``.
            `known_at_ms` is when the user was done with the item, the earliest moment at which the row could be known.
        version: Who chose what was shown.
    """

    day: int
    cells: dict[str, np.ndarray]
    version: str

    def __len__(self) -> int:
        return len(self.cells.get("event_id", ()))


@dataclass(frozen=True)
class _Plan:
    """Requests that users would make today if nothing kept them, user by user, busiest users first."""

    user_P: np.ndarray
    opens_P: np.ndarray  # whether the request opens a session, at `open_ms_P` or after a pause
    open_ms_P: np.ndarray
    gap_ms_P: np.ndarray
    tab_P: np.ndarray
    device_P: np.ndarray
    explore_P: np.ndarray
    noise: Noise
    candidate_PC: np.ndarray
    order_PC: np.ndarray
    first_B: np.ndarray  # position in the plan of each busy user's first request
    count_B: np.ndarray  # descending


def serve(world: World, scorer: Scorer, day: int) -> Feed:
    """Simulates one day of the feed, with `scorer` choosing what is shown.

    Args:
        world: State after the day before; it is moved to the end of `day`.
        scorer: Ranks the candidates; see `trainer.simulate.policy.ProductionScorer`.
        day: Index of the day, one after the last.

    Returns:
        The day's events and their truth.

    Raises:
        ValueError: If a day is skipped or repeated.
        DataError: If the scorer returns unusable scores, or no items are left.
    """
    world.begin_day(day)
    start_ms, end_ms = world.day_bounds_ms()
    shelf, plan = Shelf(world), _plan(world, start_ms, end_ms)
    rounds = []
    free_at_B = np.full(len(plan.count_B), start_ms - _PAUSE_MS, np.int64)
    for k in range(int(plan.count_B[0]) if len(plan.count_B) else 0):
        many = int(np.searchsorted(-plan.count_B, -k))  # busy users are in order, so those with more than k requests come first
        row_Q = plan.first_B[:many] + k
        time_ms_Q = _request_times(plan, row_Q, free_at_B[:many])
        awake_Q = time_ms_Q < end_ms - SECOND_MS
        free_at_B[:many][~awake_Q] = end_ms
        if awake_Q.any():
            row_R, time_ms_R = row_Q[awake_Q], time_ms_Q[awake_Q]
            requests = _requests(world, plan, row_R, time_ms_R, start_ms)
            cells, free_at_B[:many][awake_Q] = _round(world, scorer, shelf, plan, requests, row_R, end_ms)
            rounds.append(cells)
    return _collect(world, scorer.version, rounds)


def _plan(world: World, start_ms: int, end_ms: int) -> _Plan:
    spec, users, day = world.spec, world.users, world.day
    rng = generator(spec.seed, Stream.PLAN, day)
    rate_U = users.activity_U / spec.slate * (_WEEKEND if parse_day(world.date).weekday() >= 5 else 1.0)
    count_U = rng.poisson(rate_U)
    busiest_B = np.argsort(-count_U, kind="stable")[: np.count_nonzero(count_U)]
    count_B = count_U[busiest_B]
    user_P = np.repeat(busiest_B, count_B)
    total = len(user_P)
    opens_P, open_ms_P = _sessions(rng, users.night_U[user_P], user_P, start_ms, end_ms)
    tab_P = (rng.random((total, 1), np.float32) > users.tab_cdf_UB[user_P][:, :-1]).sum(axis=1)
    other_device_P = rng.random(total) < 0.08
    luck = generator(spec.seed, Stream.CANDIDATES, day)
    return _Plan(
        user_P=user_P,
        opens_P=opens_P,
        open_ms_P=open_ms_P,
        gap_ms_P=(SECOND_MS * (4 + rng.exponential(25, total))).astype(np.int64),
        tab_P=tab_P,
        device_P=np.where(other_device_P, rng.integers(0, len(DEVICES), total), users.device_U[user_P]),
        explore_P=generator(spec.seed, Stream.POLICY, day).random(total),
        noise=Noise.draw(generator(spec.seed, Stream.BEHAVIOUR, day), total, spec.slate),
        candidate_PC=luck.random((total, spec.candidates), np.float32),
        order_PC=luck.random((total, spec.candidates), np.float32),
        first_B=np.cumsum(count_B) - count_B,
        count_B=count_B,
    )


def _sessions(
    rng: np.random.Generator, night_P: np.ndarray, user_P: np.ndarray, start_ms: int, end_ms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decides which requests open a session, and when; users are contiguous, and their sessions ascend.

    Returns:
        Whether each request opens a session, and when it does so (0 where it does not).
    """
    first_P = np.concatenate([user_P[:1] == user_P[:1], np.diff(user_P) != 0])
    opens_P = first_P | (rng.random(len(user_P)) < _NEW_SESSION)
    cumulative_H = np.concatenate([[0.0], np.cumsum(_HOUR_WEIGHTS)]) / sum(_HOUR_WEIGHTS)
    hour_P = (np.interp(rng.random(len(user_P)), cumulative_H, np.arange(25)) + night_P) % 24
    time_P = np.where(opens_P, start_ms + (hour_P / 24 * (end_ms - start_ms)).astype(np.int64), 0)
    time_S, visitor_S = time_P[opens_P], np.cumsum(first_P)[opens_P]
    time_P[opens_P] = time_S[np.lexsort((time_S, visitor_S))]
    return opens_P, time_P


def _request_times(plan: _Plan, row_Q: np.ndarray, free_at_Q: np.ndarray) -> np.ndarray:
    opened_Q = np.maximum(plan.open_ms_P[row_Q], free_at_Q + _PAUSE_MS)
    return np.where(plan.opens_P[row_Q], opened_Q, free_at_Q + plan.gap_ms_P[row_Q])


def _requests(world: World, plan: _Plan, row_R: np.ndarray, time_ms_R: np.ndarray, start_ms: int) -> Requests:
    user_R = plan.user_P[row_R]
    return Requests(
        request_R=(world.day + 1) * _REQUESTS_A_DAY + row_R,
        user_R=user_R,
        time_ms_R=time_ms_R,
        hour_R=behaviour.local_hour(time_ms_R, start_ms),
        tab_R=plan.tab_P[row_R],
        device_R=plan.device_P[row_R],
        country_R=world.users.country_U[user_R],
    )


def _round(
    world: World, scorer: Scorer, shelf: Shelf, plan: _Plan, requests: Requests, row_R: np.ndarray, end_ms: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Serves one request of each of R users; returns the events and when each user is done."""
    spec = world.spec
    candidates = shelf.draw(requests, plan.candidate_PC[row_R])
    scores = ask(scorer, requests, candidates)
    slate = choose(scores, candidates, spec.slate, spec.exploration, plan.explore_P[row_R], plan.order_PC[row_R])
    slot_RS = np.take_along_axis(candidates.slot_RC, slate.column_RS, axis=1)
    true = behaviour.truth(world, requests, slot_RS)
    outcomes = behaviour.act(true, plan.noise.take(row_R))
    watch_ms_RS = (outcomes.watch_time * SECOND_MS).astype(np.int64) + _BLINK_MS
    after_ms_RS = requests.time_ms_R[:, None] + _BLINK_MS + watch_ms_RS.cumsum(axis=1)
    time_ms_RS = after_ms_RS - watch_ms_RS
    seen_RS = slate.shown_RS & (time_ms_RS < end_ms)  # at midnight everybody goes to sleep
    done_ms_R = np.where(seen_RS, after_ms_RS, requests.time_ms_R[:, None]).max(axis=1)
    behaviour.remember(world, requests, slot_RS, seen_RS, outcomes.click, done_ms_R)
    _note_shown(world, requests, slot_RS, seen_RS)
    cells = {
        "event_time_ms": time_ms_RS,
        "known_at_ms": after_ms_RS,
        **_request_cells(requests),
        **_item_cells(world, slot_RS),
        **_slate_cells(scores, slate),
        **{action: getattr(outcomes, action) for action in BINARY_ACTIONS},
        "watch_time_s": outcomes.watch_time,
        **{TRUTH + action: getattr(true, action) for action in ACTIONS},
    }
    return {name: np.broadcast_to(values_RS, seen_RS.shape)[seen_RS] for name, values_RS in cells.items()}, done_ms_R


def _request_cells(requests: Requests) -> dict[str, np.ndarray]:
    cells_R = {
        "request_id": requests.request_R,
        "request_time_ms": requests.time_ms_R,
        "user_id": requests.user_id_R,
        "tab": requests.tab_R,
        "country": requests.country_R,
        "device": requests.device_R,
    }
    return {name: values_R[:, None] for name, values_R in cells_R.items()}


def _item_cells(world: World, slot_RS: np.ndarray) -> dict[str, np.ndarray]:
    items = world.items
    return {"slot": slot_RS, "item_id": items.id_I[slot_RS], "duration_s": items.duration_s_I[slot_RS]}


def _slate_cells(scores: Scores, slate: Slate) -> dict[str, np.ndarray]:
    cells = {SCORE + action: np.take_along_axis(values_RC, slate.column_RS, axis=1) for action, values_RC in scores.actions.items()}
    return cells | {
        "position": np.arange(slate.column_RS.shape[1]),
        "is_random": slate.random_R[:, None],
        "exposure_probability": slate.propensity_RS,
    }


def _note_shown(world: World, requests: Requests, slot_RS: np.ndarray, seen_RS: np.ndarray) -> None:
    shown_RS = np.where(seen_RS, world.items.id_I[slot_RS], 0)
    recent_UH, user_R = world.users.recent_UH, requests.user_R
    kept = max(recent_UH.shape[1] - shown_RS.shape[1], 0)
    recent_UH[user_R] = np.concatenate([shown_RS, recent_UH[user_R, :kept]], axis=1)[:, : recent_UH.shape[1]]


def _collect(world: World, version: str, rounds: list[dict[str, np.ndarray]]) -> Feed:
    """Puts the rounds of a day in order of time, and counts what was shown."""
    cells = {name: np.concatenate([cells[name] for cells in rounds]) for name in rounds[0]} if rounds else {}
    if cells:
        world.items.shown_I += np.bincount(cells.pop("slot"), minlength=len(world.items))
        cells["event_id"] = cells["request_id"] * MAX_SLATE + cells["position"]
        order_E = np.lexsort((cells["event_id"], cells["event_time_ms"]))
        cells = {name: values[order_E] for name, values in cells.items()}
    return Feed(world.day, cells, version)
