"""The judged rows of one night: labels, users, and what a ranker makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.ranker import Ranker
from trainer.backtest.truth import TRUE, with_truth
from trainer.config import RetrainConfig
from trainer.data import Encoder, Shard
from trainer.days import DayPlan
from trainer.errors import DataError
from trainer.evaluate.counting import ripe_labels
from trainer.evaluate.scorer import expected
from trainer.metrics import Estimate, Rows, arrange, normalised_loss
from trainer.schema.examples import ExamplesManifest, read_partition, read_tail
from trainer.schema.predictions import LABEL, WEIGHT
from trainer.schema.time import day_end_ms

KEYS = ("user", "item", "time")
SCORE = "score_"


@dataclass(frozen=True)
class Holdout:
    """The judged rows of one night.

    Attributes:
        partitions: (examples, tail) of each partition.
        kinds: Judged action -> kind.
        rows: One row an example: user, item, time, weight, label_<action> (null = not ripe), and true_<action> where it is known.
        known_until_ms: Knowledge cut-off.
    """

    partitions: list[tuple[pa.Table, pa.Table]]
    kinds: dict[str, str]
    rows: pa.Table
    known_until_ms: int

    @classmethod
    def read(cls, config: RetrainConfig, examples: ExamplesManifest, days: DayPlan, truth: str | None = None) -> Holdout:
        """Reads the judged rows from what rebuild wrote.

        Args:
            config: The run.
            examples: What rebuild wrote.
            days: Which days are judged.
            truth: Folder of the simulation that the log comes from, whose true probabilities are then known.

        Raises:
            DataError: If there are none.
        """
        root, spec = Path(config.rebuild.root), config.data
        known_until = day_end_ms(days.as_of, spec.timezone)
        keys = [(day, bucket) for day in days.holdout for bucket in range(examples.user_buckets)]
        pairs = [(read_partition(root, examples, *key), read_tail(root, examples, *key)) for key in keys]
        pairs = [(rows, tail) for rows, tail in pairs if len(rows)]
        if not pairs:
            raise DataError("the judged day has no rows", where=", ".join(days.holdout), remedy="judge other days: nights=, as_of=")
        maturities = {name: spec.actions[name].maturity_ms for name in spec.gated_actions}
        tables = []
        for rows, _ in pairs:
            labels = ripe_labels(rows, maturities, known_until)
            columns = {"user": rows["user"], "item": rows["item"], "time": rows["request_time"], WEIGHT: rows["weight"]}
            tables.append(pa.table({**columns, **{LABEL + n: pa.array(y, pa.float64(), from_pandas=True) for n, y in labels.items()}}))
        kinds = {name: spec.actions[name].kind for name in maturities}
        judged = pa.concat_tables(tables).combine_chunks()
        return cls(pairs, kinds, judged if truth is None else with_truth(judged, Path(truth), days.holdout, kinds), known_until)

    def encode(self, encoder: Encoder) -> list[Shard]:
        """Encodes the rows once, for any number of rankers with the same inputs."""
        return [encoder.encode(rows, tail, self.known_until_ms) for rows, tail in self.partitions]

    def score(self, ranker: Ranker, shards: list[Shard]) -> dict[str, np.ndarray]:
        """Scores the rows.

        Args:
            ranker: In evaluation mode.
            shards: What `encode` made of the rows for it.

        Returns:
            Action -> float64 [N], in the order of `rows`.
        """
        device = next(ranker.parameters()).device
        parts = [expected(ranker, shard, device) for shard in shards]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.kinds}

    def ne(self, scores: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the NE of every judged action (the normalised deviance of one that is not binary)."""
        table = self.with_scores(scores)
        return {name: float(ne_of(table, name, kind)[0].value_G[0]) for name, kind in self.kinds.items()}

    def with_scores(self, scores: dict[str, np.ndarray]) -> pa.Table:
        """Returns the rows with a column score_<action> for each judged action."""
        table = self.rows
        for name, score_N in scores.items():
            table = table.append_column(SCORE + name, pa.array(score_N))
        return table


def arranged(table: pa.Table, action: str, outcome: str = LABEL) -> tuple[np.ndarray, np.ndarray, Rows]:
    """Returns scores, labels (or the columns that begin with `outcome`) and clusters of the rows whose label is ripe."""
    ripe_N = ~np.isnan(np.asarray(table[LABEL + action].to_numpy(), np.float64))
    outcome_N = np.asarray(table[outcome + action].to_numpy(), np.float64)
    user_N = np.asarray(table["user"].combine_chunks().dictionary_encode().indices)
    rows = arrange(user_N[ripe_N], weight_N=table[WEIGHT].to_numpy()[ripe_N])
    return table[SCORE + action].to_numpy()[ripe_N], outcome_N[ripe_N], rows


def ne_of(table: pa.Table, action: str, kind: str) -> tuple[Estimate, Rows]:
    """Returns the NE of scored rows, with the influence of every row, and the rows it is over.

    Where the rows know their true probabilities it is the NE expected over outcomes.
    """
    score_N, label_N, rows = arranged(table, action, TRUE if TRUE + action in table.column_names else LABEL)
    return normalised_loss(kind, score_N, label_N, rows), rows
