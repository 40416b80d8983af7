"""Puts features and exported columns of the same rows side by side: what the downstream model trains on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.schema.embeddings import PAIR_DOT, PAIR_SCORE
from trainer.schema.examples import FEATURE
from trainer.schema.predictions import LABEL, WEIGHT


def assemble(
    examples: pa.Table, predictions: pa.Table, pairs: pa.Table, user_ND: np.ndarray, item_ND: np.ndarray, action: str
) -> tuple[pa.Table, list[str], list[str]]:
    """Builds the table of the downstream model.

    User vectors must be those at each row's request time: vectors exported at the end of the run's last day have seen the rows
    that are predicted here, and joining them would leak.

    Args:
        examples: Holdout rows with their point-in-time features.
        predictions: The same rows in the same order: user, time, label_<action>, weight.
        pairs: The same rows: dot, score_<action>.
        user_ND: float32 [N, D], user vector of each row at its request time.
        item_ND: float32 [N, D], item vector of each row, NaN where an item has none.
        action: Action that is predicted.

    Returns:
        The table, the names of its point-in-time features, and the names of the exported columns.
    """
    features = [name for name in examples.column_names if name.startswith(FEATURE)]
    scalars = [name for name in pairs.column_names if name == PAIR_DOT or name.startswith(PAIR_SCORE)]
    columns = {
        "user": predictions["user"],
        "time": predictions["time"],
        LABEL + action: predictions[LABEL + action],
        WEIGHT: predictions[WEIGHT],
        **{name: examples[name] for name in features},
        **{name: pairs[name] for name in scalars},
        "user_vector": _vectors(user_ND),
        "item_vector": _vectors(item_ND),
    }
    return pa.table(columns), features, [*scalars, "user_vector", "item_vector"]


def _vectors(vectors_ND: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
