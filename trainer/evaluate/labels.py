"""Labels that were turned over, found by production before anybody learns them.

A label flip at a base rate of one half moves no mean. The scan sees it by production's logged scores or by a model that counts;
where the log has none and counts say little, production's bundle is asked here, on rebuilt examples: it ranks the labels of every
day as it always has, or the other way round. A world that moved is ranked worse, not backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pyarrow as pa

from trainer.evaluate.counting import ripe_labels
from trainer.evaluate.run import Scorer
from trainer.metrics import arrange, auc, spread
from trainer.schema.logs import LogSpec

MOST_ROWS = 5_000  # of a day: labels turned over show in a few hundred
_RANKS, _ERRORS = 0.55, 3.0
_FEWEST = 20  # positives, and negatives


@dataclass(frozen=True)
class DayRanking:
    """How a model ranks the labels of one action on one day.

    Attributes:
        day: Business day.
        action: Binary action.
        auc: Area under the ROC curve.
        error: Its standard error, users as clusters.
        base_rate: Share of positives.
        rows: Rows looked at.
    """

    day: str
    action: str
    auc: float
    error: float
    base_rate: float
    rows: int


def rank_day(
    spec: LogSpec, scorer: Scorer, day: str, partitions: Iterable[Callable[[], tuple[pa.Table, pa.Table]]], known_until_ms: int
) -> list[DayRanking]:
    """Ranks the gated binary actions of a day with a model.

    Args:
        spec: The log.
        scorer: The model.
        day: Business day.
        partitions: Readers of (examples, tail); as many are read as it takes for `MOST_ROWS` rows.
        known_until_ms: Labels ripe later are unknown.

    Returns:
        One entry an action that the model scores and of which both outcomes are there often enough.
    """
    actions = [name for name in spec.gated_actions if spec.actions[name].kind == "binary"]
    maturities = {name: spec.actions[name].maturity_ms for name in actions}
    users, labels, scores, rows = [], [], [], 0
    for read in partitions:
        if rows >= MOST_ROWS:
            break
        examples, tail = read()
        if not len(examples):
            continue
        examples = examples.slice(0, MOST_ROWS - rows)  # sorted by user: each but the last keeps the whole day
        rows += len(examples)
        users.append(examples["user"])
        labels.append(ripe_labels(examples, maturities, known_until_ms))
        scores.append(scorer.score(examples, tail, known_until_ms).score_N)
    found = []
    for action in actions if rows else []:
        if action in scores[0]:
            user_N = pa.chunked_array([chunk for column in users for chunk in column.chunks]).to_numpy()
            label_N, score_N = (np.concatenate([part[action] for part in parts]) for parts in (labels, scores))
            found += _ranking(day, action, label_N, score_N, user_N)
    return found


def turned_over(found: Sequence[DayRanking]) -> list[tuple[DayRanking, float]]:
    """Returns the rankings that are surely the wrong way round, though other days' are not, with the others' median AUC.

    A model that ranks no day tells nothing about one.
    """
    odd = []
    for one in found:
        others = [other.auc for other in found if other.action == one.action and other.day != one.day]
        usual = median(others) if others else 0.0
        if usual >= _RANKS and one.auc + _ERRORS * one.error < 0.5:
            odd.append((one, usual))
    return odd


def _ranking(day: str, action: str, label_N: np.ndarray, score_N: np.ndarray, user_N: np.ndarray) -> list[DayRanking]:
    known_N = np.isfinite(label_N)
    label_N, score_N, user_N = label_N[known_N], score_N[known_N], user_N[known_N]
    if min(label_N.sum(), len(label_N) - label_N.sum()) < _FEWEST:
        return []
    rows = arrange(user_N)
    estimate = auc(score_N, label_N, rows)
    error = float(spread(estimate, rows).se_G[0])
    return [DayRanking(day, action, float(estimate.value_G[0]), error, float(label_N.mean()), len(label_N))]
