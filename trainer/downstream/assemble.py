"""Puts features and exported columns of the same rows side by side: what the downstream model trains on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.schema.embeddings import PAIR_DOT, PAIR_SCORE
from trainer.schema.examples import FEATURE
from trainer.schema.predictions import LABEL, WEIGHT


def assemble(
    examples: pa.Table, predictions: pa.Table, pairs: pa.Table, user_ND: np.ndarray | None, item_ND: np.ndarray | None, action: str
) -> tuple[pa.Table, list[str], list[str]]:
    """Builds the table of the downstream model.

    User vectors must be those at each row's request time: vectors exported at the end of the run's last day have seen the rows
    that are predicted here, and joining them would leak.

    Args:
        examples: Holdout rows with their point-in-time features.
        predictions: The same rows in the same order: user, time, label_<action>, weight.
        pairs: The same rows: dot, score_<action> as delivered.
        user_ND: float32 [N, D], user vector of each row at its request time; None where users are not exported.
        item_ND: float32 [N, D], item vector of each row, NaN where an item has none; None where items are not exported.
        action: Action that is predicted.

    Returns:
        The table, the names of its point-in-time features, and the names of the exported columns.
    """
    features = [name for name in examples.column_names if name.startswith(FEATURE)]
    scalars = [name for name in pairs.column_names if name == PAIR_DOT or name.startswith(PAIR_SCORE)]
    vectors = _vector_columns(user_ND, item_ND)
    keys = [name for name in ("user", "item", "request") if name in predictions.column_names]
    columns = {
        **{name: predictions[name] for name in keys},
        "time": predictions["time"],
        LABEL + action: predictions[LABEL + action],
        WEIGHT: predictions[WEIGHT],
        **{name: examples[name] for name in features},
        **{name: pairs[name] for name in scalars},
        **vectors,
    }
    return pa.table(columns), features, [*scalars, *vectors]


def with_exported(
    table: pa.Table, scores: dict[str, np.ndarray], dot_N: np.ndarray, user_ND: np.ndarray | None, item_ND: np.ndarray | None
) -> pa.Table:
    """Returns the same rows with another ranker's exported columns in place of the ones they have.

    Args:
        table: What `assemble` built.
        scores: Action -> the other ranker's delivered scores [N]; an action that it does not predict keeps no column.
        dot_N: Its products.
        user_ND: Its user vectors as features; None where it exports none.
        item_ND: Its item vectors as features; None where it exports none.
    """
    dropped = [name for name in table.column_names if name == PAIR_DOT or name.startswith(PAIR_SCORE) or name.endswith("_vector")]
    table = table.drop_columns(dropped).append_column(PAIR_DOT, pa.array(dot_N))
    for action, score_N in scores.items():
        table = table.append_column(PAIR_SCORE + action, pa.array(score_N.astype(np.float32)))
    for name, column in _vector_columns(user_ND, item_ND).items():
        table = table.append_column(name, column)
    return table


def _vector_columns(user_ND: np.ndarray | None, item_ND: np.ndarray | None) -> dict[str, pa.Array]:
    """Returns a column for each entity whose vectors are exported."""
    pairs = (("user_vector", user_ND), ("item_vector", item_ND))
    return {name: _vectors(vectors_ND) for name, vectors_ND in pairs if vectors_ND is not None}


def _vectors(vectors_ND: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors_ND, np.float32).ravel()), vectors_ND.shape[1])
