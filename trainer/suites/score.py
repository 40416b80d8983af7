"""Suites made ready for the gate: golden rows scored by the models of this run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from trainer.errors import RewarmError
from trainer.schema.predictions import CHALLENGER, PRODUCTION, SCORES, VALUE_CHALLENGER, VALUE_PRODUCTION
from trainer.schema.suite import GOLDEN, SLICE, Suite, SuiteCase, SuiteSource, trained_on
from trainer.suites.store import GoldenRows, SuiteStore

Score = Callable[[pa.Table, pa.Table, int], Mapping[str, np.ndarray]]
"""(examples, tail, known_until_ms) -> action -> float64 [N], as `trainer.evaluate.RankerScorer` gives it."""


@dataclass(frozen=True)
class Model:
    """A model that can score golden rows.

    Attributes:
        score: Scores a partition.
        trained: Day -> content hash of what its weights have seen.
    """

    score: Score
    trained: Mapping[str, str]


def collect(
    store: SuiteStore, models: Callable[[], Mapping[str, Model]] | None, weights: Mapping[str, float] | None,
    names: Sequence[str] | None = None,
) -> list[SuiteCase]:  # fmt: skip
    """Makes every suite ready to be judged; whatever is in the way becomes the case's problem, never an exception.

    Args:
        store: The suites.
        models: Returns ``challenger_`` and, if a bundle is live, ``production_`` -> model; called once, and only if rows are to be
            scored. Null where there are no models: golden suites are skipped then.
        weights: Action -> weight of the value function; null leaves the value of golden rows out.
        names: Suites to make ready; null takes all.

    Returns:
        A case a suite, by name.
    """
    loaded = cache(models) if models is not None else None
    return [_case(store, name, loaded, weights) for name in (store.names() if names is None else names)]


def _case(store: SuiteStore, name: str, models: Callable[[], Mapping[str, Model]] | None, weights: Mapping[str, float] | None) -> SuiteCase:
    suite = None
    try:
        suite = store.read(name)
        if suite.kind == SLICE:
            return SuiteCase(name=name, suite=suite)
        if models is None:
            return SuiteCase(
                name=name, suite=suite, skipped="golden rows have to be scored, and there is no model here: the main job does it"
            )
        found = models()
        return SuiteCase(
            name=name, suite=suite, table=score_rows(store.rows(suite), found, _source(suite).known_until_ms, weights),
            remark=_remark(_source(suite), found),
        )  # fmt: skip
    except (RewarmError, ValueError, KeyError, pa.ArrowException) as error:
        return SuiteCase(name=name, suite=suite, problem=_words(error))


def score_rows(golden: GoldenRows, models: Mapping[str, Model], known_until_ms: int, weights: Mapping[str, float] | None) -> pa.Table:
    """Scores golden rows with this run's models.

    Args:
        golden: The rows.
        models: Prefix -> model. Without production's, its scores of the day stand in; the challenger's of the day never do.
        known_until_ms: Knowledge cut-off of the rows.
        weights: Action -> weight of the value function.

    Returns:
        Predictions: labels and slice columns as stored, scores of today.

    Raises:
        DataError: If a model needs a feature that the rows do not have.
    """
    replaced = tuple(prefix for prefix in SCORES if prefix != PRODUCTION or PRODUCTION in models)
    values = (VALUE_CHALLENGER, VALUE_PRODUCTION)
    kept = [name for name in golden.rows.column_names if not name.startswith(replaced) and name not in values]
    columns: dict[str, object] = {name: golden.rows[name] for name in kept}
    position_N = golden.position_N.to_numpy()
    for prefix, model in models.items():
        scored = [model.score(examples, tail, known_until_ms) for examples, tail in golden.parts]
        columns |= {prefix + action: np.concatenate([part[action] for part in scored])[position_N] for action in scored[0]}
    return pa.table(columns | _values(columns, weights or {}))


def _values(columns: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The value function of each side, where every action that weighs something was scored by both."""
    used = {action: weight for action, weight in weights.items() if weight}
    if not used or any(prefix + action not in columns for prefix in (CHALLENGER, PRODUCTION) for action in used):
        return {}
    sides = {VALUE_CHALLENGER: CHALLENGER, VALUE_PRODUCTION: PRODUCTION}
    return {
        target: np.sum([weight * np.asarray(columns[prefix + action], np.float64) for action, weight in used.items()], axis=0)
        for target, prefix in sides.items()
    }


def _source(suite: Suite) -> SuiteSource:
    if suite.source is None:  # `Suite` refuses this; said for the type checker
        raise ValueError(f"{suite.kind} {GOLDEN} without a source")
    return suite.source


def _remark(source: SuiteSource, models: Mapping[str, Model]) -> str:
    """Who has seen the rows in training: a model is flattered by rows that it knows."""
    seen = [prefix for prefix, model in models.items() if trained_on(source, model.trained)]
    if len(seen) == 2:
        return "both models were trained on the day of these rows"
    if seen == [CHALLENGER]:
        return "the challenger was trained on the day of these rows and production was not: its result is flattered"
    if seen == [PRODUCTION]:
        return "production was trained on the day of these rows and the challenger was not: the challenger's result looks too bad"
    return "" if PRODUCTION in models else f"against production's scores of {source.as_of}"


def _words(error: Exception) -> str:
    if not isinstance(error, RewarmError):
        return f"{type(error).__name__}: {error}"
    more = [str(part) for part in (error.got, error.where) if part is not None]
    return error.what + (f" ({', '.join(more)})" if more else "") + (f"; {error.remedy}" if error.remedy else "")
