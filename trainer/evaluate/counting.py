"""The counting baseline: smoothed counts of earlier days, log-odds added. A ranker that does not beat it has learned nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.schema.examples import FEATURE, LABEL


@dataclass
class _Counts:
    """Sums by key of one entity: exposures with a known label and the labels' sum."""

    keys: pa.Array | None = None
    exposures_K: np.ndarray = field(default_factory=lambda: np.zeros(0))
    total_K: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, ids: pa.Array, label_N: np.ndarray, weight_N: np.ndarray) -> None:
        known_N = np.isfinite(label_N)
        ids = ids.filter(pa.array(known_N))
        merged = pc.unique(ids) if self.keys is None else pc.unique(pa.concat_arrays([self.keys, ids]))
        old = len(self.exposures_K)
        index_N = np.asarray(pc.index_in(ids, value_set=merged), np.int64)
        grow = np.zeros(len(merged) - old)
        self.exposures_K = np.concatenate([self.exposures_K, grow]) + np.bincount(index_N, weight_N[known_N], len(merged))
        self.total_K = np.concatenate([self.total_K, grow]) + np.bincount(index_N, (label_N * weight_N)[known_N], len(merged))
        self.keys = merged

    def of(self, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        if self.keys is None:
            return np.zeros(len(ids)), np.zeros(len(ids))
        index_N = np.asarray(pc.fill_null(pc.index_in(ids, value_set=self.keys), -1), np.int64)
        seen_N = index_N >= 0
        return np.where(seen_N, self.exposures_K[index_N], 0.0), np.where(seen_N, self.total_K[index_N], 0.0)


class CountingBaseline:
    """Predicts ``base log-odds + sum over entities of (entity's smoothed log-odds - base log-odds)``.

    Actions that are not binary get the product of ratios to the base mean instead of added log-odds.

    Attributes:
        pseudo_counts: Entity (``user``, ``item`` or a categorical feature) -> pseudo-count toward the base rate.
        kinds: Action -> kind.
    """

    def __init__(self, pseudo_counts: dict[str, float], kinds: dict[str, str]) -> None:
        self.pseudo_counts = pseudo_counts
        self.kinds = kinds
        self._counts = {(action, entity): _Counts() for action in kinds for entity in pseudo_counts}
        self._base = {action: np.zeros(2) for action in kinds}

    def add(self, examples: pa.Table, labels: dict[str, np.ndarray]) -> None:
        """Counts the rows of an earlier day.

        Args:
            examples: Rows.
            labels: Action -> float64 [N], NaN where not ripe or unknown.
        """
        weight_N = examples["weight"].to_numpy().astype(np.float64)
        for action, label_N in labels.items():
            known_N = np.isfinite(label_N)
            self._base[action] += [(label_N * weight_N)[known_N].sum(), weight_N[known_N].sum()]
            for entity in self.pseudo_counts:
                self._counts[action, entity].add(_ids(examples, entity), label_N, weight_N)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Returns action -> float64 [N]."""
        return {action: self._predict(examples, action) for action in self.kinds}

    def _predict(self, examples: pa.Table, action: str) -> np.ndarray:
        total, exposures = self._base[action]
        binary = self.kinds[action] == "binary"
        base = (total + 0.5) / (exposures + 1.0)
        link = (lambda rate: np.log(rate) - np.log1p(-rate)) if binary else np.log
        score_N = np.full(len(examples), link(base))
        for entity, prior in self.pseudo_counts.items():
            exposures_N, total_N = self._counts[action, entity].of(_ids(examples, entity))
            score_N += link((total_N + prior * base) / (exposures_N + prior)) - link(base)
        return 1 / (1 + np.exp(-score_N)) if binary else np.exp(score_N)


def ripe_labels(examples: pa.Table, maturities_ms: dict[str, int], known_until_ms: int) -> dict[str, np.ndarray]:
    """Returns action -> float64 [N], NaN where the label is unknown or ripens after the cut-off."""
    event_N, known_N = examples["event_time"].to_numpy(), examples["known_at"].to_numpy()
    labels = {}
    for action, maturity in maturities_ms.items():
        value_N = np.asarray(pc.fill_null(examples[LABEL + action].cast(pa.float64()), np.nan))
        labels[action] = np.where(np.maximum(known_N, event_N + maturity) <= known_until_ms, value_N, np.nan)
    return labels


def _ids(examples: pa.Table, entity: str) -> pa.Array:
    return examples[entity if entity in ("user", "item") else FEATURE + entity].combine_chunks()
