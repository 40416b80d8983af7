"""Single-feature alarm: a feature that alone ranks a label too well has probably seen the future.

Two rules, on training rows. A numeric feature whose AUC on a gated binary label passes `CEILING` is a label in disguise. A
side-table column that ranks a label better than the best point-in-time counter of the same entity, by `MARGIN` and with a
user-clustered interval that excludes it, carries what counters were not allowed to see: whole-period aggregates, typically.
Aggregates leak through their ratios (likes over shows) even where each alone looks harmless, so ratios of a table's columns are
tried as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import DataError
from trainer.logs.hashing import hash_ids
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest, read_partition
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec

CEILING = 0.95
MARGIN = 0.01
MAX_ROWS = 200_000  # newest rows first; an alarm this coarse needs no more
MAX_RATIOS = 200  # ratios tried a side table, in the order of its columns
_Z = 3.5  # many columns and ratios are tried
_MIN_PER_CLASS = 20


@dataclass(frozen=True)
class Alarm:
    """A suspicious feature.

    Attributes:
        feature: Its name.
        action: Label it ranks too well.
        auc: Its AUC, turned so that it is at least 0.5.
        against: Best point-in-time counter of the entity, or None for the ceiling.
        excess: AUC above that counter on the rows that have both (lower end of the interval), or above the ceiling.
    """

    feature: str
    action: str
    auc: float
    against: str | None
    excess: float


def leak_alarm(root: Path, manifest: ExamplesManifest, days: Sequence[str], spec: LogSpec, features: FeatureSpec) -> list[Alarm]:
    """Looks for features that rank a label too well.

    Args:
        root: Folder of the rebuild.
        manifest: Its manifest.
        days: Training days.
        spec: The log.
        features: Declared features.

    Returns:
        Alarms, strongest first; empty if all is well.
    """
    actions = [name for name in spec.gated_actions if spec.actions[name].kind == "binary"]
    rows = _newest(root, manifest, days, actions)
    user_N = hash_ids(rows["user"])
    alarms = []
    for action in actions:
        label_N = _values(rows, LABEL + action)
        alarms += [alarm for name in manifest.numeric if (alarm := _ceiling(rows, name, action, label_N)) is not None]
        for table in spec.side_tables.values():
            columns = _with_ratios(rows, [name for name, column in table.columns.items() if column.kind == "numeric"])
            rivals = [name for name, counter in features.counters.items() if counter.entity == [table.entity]]
            best = max(rivals, key=lambda name: _turned(label_N, _values(rows, FEATURE + name)), default=None)
            if best is not None:
                rival_N = _values(rows, FEATURE + best)
                tried = (_excess(name, value_N, best, rival_N, action, label_N, user_N) for name, value_N in columns.items())
                alarms += [found for found in tried if found is not None]
    return sorted(alarms, key=lambda alarm: (-alarm.excess, alarm.feature, alarm.action))


def refuse_leaks(alarms: Sequence[Alarm]) -> None:
    """Stops the run at the strongest alarm.

    Raises:
        DataError: If there is an alarm.
    """
    if not alarms:
        return
    worst = alarms[0]
    beaten = f"the best point-in-time counter of the entity, {worst.against}" if worst.against else f"at most {CEILING}"
    raise DataError(
        "a feature ranks a label too well: it has probably seen the future", where=f"feature {worst.feature}, label {worst.action}",
        got=f"AUC {worst.auc:.3f}, {worst.excess:.3f} above", expected=beaten,
        remedy="remove the column, or give its table the instant from which each row was known (valid_from)",
    )  # fmt: skip


def auc_parts(label_N: np.ndarray, score_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the AUC and each row's influence on it (DeLong, DeLong, Clarke-Pearson 1988; ties count one half).

    Args:
        label_N: 0 or 1.
        score_N: Finite scores.

    Returns:
        AUC, and influences that sum to zero, float64 [N]: clustered sums of them give the variance.
    """
    positive_N = label_N == 1
    rank_N, own_N = _midranks(score_N), np.empty(len(score_N))
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    own_N[positive_N], own_N[~positive_N] = _midranks(score_N[positive_N]), _midranks(score_N[~positive_N])
    won_N = rank_N - own_N  # rows of the other class below, ties one half
    auc = float(won_N[positive_N].sum() / (positives * negatives))
    influence_N = np.where(positive_N, (won_N / negatives - auc) / positives, (1 - won_N / positives - auc) / negatives)
    return auc, influence_N


def _ceiling(rows: pa.Table, name: str, action: str, label_N: np.ndarray) -> Alarm | None:
    auc = _turned(label_N, _values(rows, FEATURE + name))
    return Alarm(name, action, auc, None, auc - CEILING) if auc > CEILING else None


def _with_ratios(rows: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the columns, and the ratios of their pairs (NaN where the denominator is not positive)."""
    columns = {name: _values(rows, FEATURE + name) for name in names}
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {
            f"{above} / {below}": np.where(columns[below] > 0, columns[above] / columns[below], np.nan)
            for above, below in islice(combinations(names, 2), MAX_RATIOS)
        }
    return {**columns, **ratios}


def _excess(
    name: str, column_N: np.ndarray, rival: str, rival_N: np.ndarray, action: str, label_N: np.ndarray, user_N: np.ndarray
) -> Alarm | None:
    """Compares a column with a counter on the rows that have both."""
    use_N = np.isfinite(column_N) & np.isfinite(rival_N) & np.isfinite(label_N)
    if not _enough(label_N[use_N]):
        return None
    (mine, mine_N), (theirs, theirs_N) = (_turned_parts(label_N[use_N], value_N[use_N]) for value_N in (column_N, rival_N))
    _, cluster_N = np.unique(user_N[use_N], return_inverse=True)
    error = float(np.sqrt((np.bincount(cluster_N, weights=mine_N - theirs_N) ** 2).sum()))
    low = mine - theirs - _Z * error
    return Alarm(name, action, mine, rival, low) if low > MARGIN else None


def _turned(label_N: np.ndarray, score_N: np.ndarray) -> float:
    """AUC on the rows that have both, at least 0.5; 0.5 where there is too little to tell."""
    use_N = np.isfinite(label_N) & np.isfinite(score_N)
    return _turned_parts(label_N[use_N], score_N[use_N])[0] if _enough(label_N[use_N]) else 0.5


def _turned_parts(label_N: np.ndarray, score_N: np.ndarray) -> tuple[float, np.ndarray]:
    auc, influence_N = auc_parts(label_N, score_N)
    return (auc, influence_N) if auc >= 0.5 else (1 - auc, -influence_N)


def _enough(label_N: np.ndarray) -> bool:
    return min(int((label_N == 1).sum()), int((label_N == 0).sum())) >= _MIN_PER_CLASS


def _midranks(score_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties share their mean."""
    _, inverse_N, count_V = np.unique(score_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_V) - (count_V - 1) / 2)[inverse_N]


def _newest(root: Path, manifest: ExamplesManifest, days: Sequence[str], actions: Sequence[str]) -> pa.Table:
    columns = ["user", *(LABEL + action for action in actions), *(FEATURE + name for name in manifest.numeric)]
    tables: list[pa.Table] = []
    for day in sorted(days, reverse=True):
        tables += [read_partition(root, manifest, day, bucket, columns) for bucket in range(manifest.user_buckets)]
        if sum(map(len, tables)) >= MAX_ROWS:
            break
    return pa.concat_tables(tables)


def _values(rows: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(rows[name].cast(pa.float64()), np.nan), np.float64)
