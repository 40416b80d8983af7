"""Who chooses what is shown: candidates, a scorer, a ranking with exploration.

A scorer maps (requests, candidates) to scores. The default one, `ProductionScorer`, is the imperfect model that the company
runs: it knows tastes and trend as of yesterday, misjudges every user a little and new items more, knows nothing of sessions,
hours or positions, adds noise, and is too sure of itself. Its scores are what the log records.

Shape suffixes: R requests, C candidates, S positions of a slate, T topics, K personal candidates, I live items, G cells of a
grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import expit

from trainer.errors import DataError
from trainer.schema.simulation import ACTIONS
from trainer.simulate import behaviour
from trainer.simulate.behaviour import Requests
from trainer.simulate.world import LATENT, Stream, World, generator

# Production's value function; `conf/data/simulated.yaml` declares the same weights.
VALUE_WEIGHTS = {"click": 1.0, "long_view": 1.0, "like": 3.0, "follow": 5.0, "watch_time": 0.02}
_PERSONAL_SHARE = 2 / 3
_GRID = 16  # cells an item of average weight has on the grid of draws
_ERRORS = 65_521  # prime; item ids far apart share what production gets wrong about them


@dataclass(frozen=True)
class Candidates:
    """Items that may be shown.

    Attributes:
        item_id_RC: Item ids.
        slot_RC: Index of each into `World.items`.
        eligible_RC: Whether the item may be shown: born already, no repeat, not shown lately. Other scores are not used.
    """

    item_id_RC: np.ndarray
    slot_RC: np.ndarray
    eligible_RC: np.ndarray


@dataclass(frozen=True)
class Scores:
    """What a scorer says.

    Attributes:
        value_RC: What the slate is ranked by, descending.
        actions: Action -> prediction (R, C), logged; all of `trainer.schema.simulation.ACTIONS`. Probabilities, and seconds.
    """

    value_RC: np.ndarray
    actions: dict[str, np.ndarray]


class Scorer(Protocol):
    """Chooses what is shown. `version` is logged with every row that it served."""

    version: str

    def __call__(self, requests: Requests, candidates: Candidates) -> Scores:
        """Scores every candidate of every request; only those of eligible candidates are used."""


@dataclass(frozen=True)
class Slate:
    """What is shown.

    Attributes:
        column_RS: Index into the candidates of the item at each position.
        shown_RS: Whether there is an item at the position (a slate is short when candidates are).
        random_R: Whether the slate was drawn uniformly from the eligible candidates.
        propensity_RS: Probability that this policy shows this item at this position, given the candidates.
    """

    column_RS: np.ndarray
    shown_RS: np.ndarray
    random_R: np.ndarray
    propensity_RS: np.ndarray


class Shelf:
    """Candidate generation for one day: items by topic, weighted by what the platform believes about them.

    Args:
        world: The world; `begin_day` has been called.

    Raises:
        DataError: If the catalogue has died out.
    """

    def __init__(self, world: World) -> None:
        items, spec = world.items, world.spec
        if len(items) < spec.slate:
            raise DataError(
                "the catalogue died out", where=f"day {world.day}", got=f"{len(items)} live items", expected=f"at least {spec.slate}",
                remedy="raise simulation.births_per_day or simulation.lifetime_days",
            )  # fmt: skip
        self._world = world
        order_I = np.argsort(items.topic_I, kind="stable")
        noise_I = generator(spec.seed, Stream.CANDIDATES, world.day, 1).standard_normal(len(items))
        # Items nobody has seen yet are pushed, or they would never be found out.
        weight_I = np.exp(0.6 * items.quality_I + 0.5 * noise_I) + 2.0 * (items.shown_I < 20)
        share_I = np.cumsum(weight_I[order_I]) / weight_I.sum()
        # The inverse of the cumulated shares on a grid: a look-up is much cheaper than a search, and draws need not be finer.
        grid = _GRID * len(items)
        self._slot_G = order_I[np.searchsorted(share_I[:-1], (np.arange(grid) + 0.5) / grid, side="right")].astype(np.int32)
        ends_T = np.searchsorted(items.topic_I[order_I], np.arange(spec.topics), side="right")
        edges_T = grid * np.concatenate([[0.0], share_I])[np.concatenate([[0], ends_T])]
        self._low_T, self._width_T = edges_T[:-1].astype(np.float32), np.diff(edges_T).astype(np.float32)
        self._wanted_TD = np.float32(1.4) * world.rules.topic_TD

    def draw(self, requests: Requests, uniform_RC: np.ndarray) -> Candidates:
        """Draws candidates: two thirds from the user's topics, the rest from the whole catalogue.

        Args:
            requests: R requests.
            uniform_RC: Luck in [0, 1); C is the number of candidates.

        Returns:
            Candidates, sorted by item within a request.
        """
        world, personal = self._world, round(uniform_RC.shape[1] * _PERSONAL_SHARE)
        taste_RT = np.einsum("rd,td->rt", world.stale_taste_UD[requests.user_R], self._wanted_TD)
        share_RT = np.exp(taste_RT - taste_RT.max(axis=1, keepdims=True)).cumsum(axis=1)
        steps_K = (np.arange(personal, dtype=np.float32) + uniform_RC[:, -1:]) / personal  # systematic: few random numbers
        topic_RK = (share_RT[:, None, :-1] < (steps_K * share_RT[:, -1:])[:, :, None]).sum(axis=2)
        place_RC = uniform_RC * np.float32(len(self._slot_G))
        place_RC[:, :personal] = self._low_T[topic_RK] + uniform_RC[:, :personal] * self._width_T[topic_RK]
        slot_RC = self._slot_G[np.minimum(place_RC.astype(np.int64), len(self._slot_G) - 1)]
        return self._checked(requests, np.sort(slot_RC, axis=1))

    def _checked(self, requests: Requests, slot_RC: np.ndarray) -> Candidates:
        items = self._world.items
        id_RC = items.id_I[slot_RC]
        eligible_RC = items.born_ms_I[slot_RC] < requests.time_ms_R[:, None]
        eligible_RC[:, 1:] &= slot_RC[:, 1:] != slot_RC[:, :-1]
        recent_RH = self._world.users.recent_UH[requests.user_R]
        eligible_RC &= ~(id_RC[:, :, None] == recent_RH[:, None, :]).any(axis=2)
        return Candidates(id_RC, slot_RC, eligible_RC)


class ProductionScorer:
    """The model that the company runs.

    Args:
        world: The world it was trained in; it reads yesterday's state of it.
    """

    version = "production-1"

    def __init__(self, world: World) -> None:
        rng = generator(world.spec.seed, Stream.PRODUCTION)
        self._world = world
        self._taste_error_UD = 0.3 * rng.standard_normal((world.spec.users, LATENT), np.float32)
        self._item_error_E = rng.standard_normal(_ERRORS, np.float32)

    def __call__(self, requests: Requests, candidates: Candidates) -> Scores:
        """Scores candidates (`Scorer`)."""
        users, items, world = self._world.users, self._world.items, self._world
        slot_RC, user_R = candidates.slot_RC, requests.user_R
        believed_RD = world.stale_taste_UD[user_R] + self._taste_error_UD[user_R]
        taste_RC = np.einsum("rd,rcd->rc", believed_RD, items.latent_ID[slot_RC])
        doubt_RC = 0.25 + 0.6 / np.sqrt(1 + items.shown_I[slot_RC] / 10).astype(np.float32)
        quality_RC = items.quality_I[slot_RC] + doubt_RC * self._item_error_E[candidates.item_id_RC % _ERRORS]
        noise_RC = 0.25 * self._rng(requests).standard_normal(slot_RC.shape, np.float32)
        trend_RC = world.stale_trend_T[items.topic_I[slot_RC]]
        logit_RC = 0.8 * users.bias_U[user_R, None] + quality_RC + taste_RC + trend_RC + noise_RC
        click_RC = expit(1.1 * logit_RC - 2.95)
        mean_RC = 2.4 + items.grip_I[slot_RC] + 0.7 * users.patience_U[user_R, None] + 0.2 * taste_RC + 0.3 * noise_RC
        threshold_RC = np.minimum(items.duration_s_I[slot_RC], np.float32(behaviour.LONG_VIEW_S))
        warmth_RC = 0.7 * users.warmth_U[user_R, None] + 0.4 * taste_RC + noise_RC
        actions = {
            "click": click_RC,
            "long_view": click_RC * behaviour.long_view_given_click(mean_RC, threshold_RC),
            "like": click_RC * expit(warmth_RC - 3.35),
            "follow": click_RC * expit(warmth_RC - 5.6),
            "watch_time": behaviour.expected_watch(click_RC, mean_RC),
        }
        return Scores(value(actions), actions)

    def _rng(self, requests: Requests) -> np.random.Generator:
        # Keyed by the first request, so that noise depends on what is asked and not on how often the scorer was called before.
        return generator(self._world.spec.seed, Stream.PRODUCTION, int(requests.request_R[0]))


def value(actions: dict[str, np.ndarray]) -> np.ndarray:
    """Returns production's value function of predictions."""
    return sum((VALUE_WEIGHTS[name] * actions[name] for name in ACTIONS[1:]), VALUE_WEIGHTS["click"] * actions["click"])


def choose(scores: Scores, candidates: Candidates, slate: int, exploration: float, luck_R: np.ndarray, order_RC: np.ndarray) -> Slate:
    """Ranks the candidates; some slates are random instead.

    Args:
        scores: What the scorer says.
        candidates: What was scored.
        slate: Positions to fill, S.
        exploration: Share of random slates.
        luck_R: Uniform; decides which slates are random.
        order_RC: Uniform; the order of random slates.

    Returns:
        The slates, and how probable each of their items was.
    """
    eligible_RC = candidates.eligible_RC
    random_R = luck_R < exploration
    best_RS = np.argsort(np.where(eligible_RC, -scores.value_RC, np.inf), axis=1, kind="stable")[:, :slate]
    column_RS = best_RS.copy()
    column_RS[random_R] = np.argsort(np.where(eligible_RC, order_RC, np.inf)[random_R], axis=1, kind="stable")[:, :slate]
    eligible_R = eligible_RC.sum(axis=1)
    by_chance_R = exploration / np.maximum(eligible_R, 1)
    return Slate(
        column_RS=column_RS,
        shown_RS=np.arange(slate) < eligible_R[:, None],
        random_R=random_R,
        propensity_RS=((1 - exploration) * (column_RS == best_RS) + by_chance_R[:, None]).astype(np.float32),
    )


def ask(scorer: Scorer, requests: Requests, candidates: Candidates) -> Scores:
    """Returns the scorer's scores, checked.

    Raises:
        DataError: If they have the wrong shape, lack an action, or are not finite for an eligible candidate.
    """
    scores, shape = scorer(requests, candidates), candidates.slot_RC.shape
    for name in ("value", *ACTIONS):
        values_RC = scores.value_RC if name == "value" else scores.actions.get(name)
        where = f"scorer {scorer.version}, {name}"
        if values_RC is None:
            raise DataError("the scorer does not predict an action", where=where, got=sorted(scores.actions), expected=list(ACTIONS))
        if values_RC.shape != shape:
            raise DataError("the scorer returned the wrong shape", where=where, got=values_RC.shape, expected=shape)
        if not np.isfinite(values_RC[candidates.eligible_RC]).all():
            raise DataError("the scorer returned scores that are not finite", where=where)
    return scores
