"""Reads the ids of a table in the order of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import CheckpointError
from trainer.schema.vocabulary import Vocabulary


def read_ids(file: Path, name: str, as_of: str) -> Vocabulary:
    """Reads a vocabulary of other code.

    Args:
        file: Parquet with a column ``id`` (and ``count``, if traffic is known), a JSON list, or text with an id a line.
        name: Name of the vocabulary.
        as_of: ISO day; every id counts as seen on it.

    Raises:
        CheckpointError: If the file cannot be read, is empty, or has nulls or duplicates.
    """
    try:
        keys, count_V = _read(file)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, pa.ArrowException) as error:
        raise CheckpointError(
            "cannot read a vocabulary", where=file, got=str(error),
            expected="Parquet with a column id, a JSON list of ids, or text with an id a line",
        ) from error  # fmt: skip
    if not len(keys) or not (pa.types.is_integer(keys.type) or pa.types.is_string(keys.type)):
        raise CheckpointError("a vocabulary holds integer or text ids", where=file, got=f"{len(keys)} of {keys.type}")
    days = pa.array([as_of] * len(keys), pa.string())
    keys = keys.cast(pa.int64()) if pa.types.is_integer(keys.type) else keys
    return Vocabulary(name, keys, count_V, days, days)


def _read(file: Path) -> tuple[pa.Array, np.ndarray]:
    if file.suffix == ".parquet":
        table = pq.read_table(file, page_checksum_verification=True)
        keys = table["id"].combine_chunks()
        count = table["count"].to_numpy().astype(np.int64) if "count" in table.column_names else np.ones(len(keys), np.int64)
        return keys, count
    text = file.read_text()
    values = json.loads(text) if file.suffix == ".json" else text.splitlines()
    if not isinstance(values, list) or any(isinstance(value, bool | float) for value in values):
        raise ValueError("it is no list of ids")
    return pa.array(values), np.ones(len(values), np.int64)
