"""Vocabularies: ids of the training days, with their traffic and the days on which they were seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.rebuild.store import read_columns
from trainer.schema.examples import FEATURE, examples_path
from trainer.schema.logs import whole_name
from trainer.schema.vocabulary import Vocabulary


def vocabulary_columns(categorical: Sequence[str]) -> dict[str, list[str]]:
    """Returns vocabulary name -> examples columns: the ids, and every categorical feature under its own name, a list's values together."""
    columns = {"user": ["user"], "item": ["item"]}
    for name in categorical:
        columns.setdefault(whole_name(name), []).append(FEATURE + name)
    return columns


def count_ids(root: Path, day: str, buckets: int, categorical: Sequence[str]) -> dict[str, pa.Table]:
    """Counts the ids of a day's events (sampled negatives do not count).

    Returns:
        Vocabulary -> table of key, count.
    """
    columns = vocabulary_columns(categorical)
    tables = [read_columns(examples_path(root, day, bucket), ["is_event", *chain(*columns.values())]) for bucket in range(buckets)]
    events = pa.concat_tables([table.filter(table["is_event"]) for table in tables]).combine_chunks()
    return {name: _counts([events[column] for column in parts]) for name, parts in columns.items()}


def build(name: str, days: Sequence[str], counts: Sequence[pa.Table]) -> Vocabulary:
    """Merges daily counts into a vocabulary, keys ascending.

    Args:
        name: Name of the vocabulary.
        days: ISO days, ascending.
        counts: Table of key and count of each day.
    """
    keys = pc.unique(pa.concat_arrays([table["key"].combine_chunks() for table in counts]))
    keys = keys.take(pc.sort_indices(keys))
    count_V = np.zeros(len(keys), np.int64)
    first_V, last_V = np.full(len(keys), -1), np.zeros(len(keys), np.int64)
    for position, table in enumerate(counts):
        row_M = np.asarray(pc.index_in(table["key"], value_set=keys), np.int64)
        count_V[row_M] += table["count"].to_numpy()
        first_V[row_M] = np.where(first_V[row_M] < 0, position, first_V[row_M])
        last_V[row_M] = position
    names = pa.array(list(days), pa.string())
    return Vocabulary(name, keys, count_V, names.take(pa.array(first_V)), names.take(pa.array(last_V)))


def _counts(columns: Sequence[pa.ChunkedArray]) -> pa.Table:
    counted = pc.value_counts(pa.concat_arrays([column.combine_chunks().drop_null() for column in columns]))
    return pa.table({"key": counted.field("values"), "count": counted.field("counts")})
