"""Reads the ids of a table in the order of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    except (OSError, ValueError, KeyError, OverflowError, pa.ArrowException) as error:
        raise CheckpointError(
            "cannot read a vocabulary", where=file, got=str(error),
            expected="Parquet with a column id, a JSON list of ids, or text with an id a line; numbers fit in 64 bits",
        ) from error  # fmt: skip
    if not len(keys):
        raise CheckpointError("a vocabulary is empty", where=file, expected="the ids that the checkpoint has rows for, in row order")
    _check_ids(keys, file)
    if (count_V < 0).any():
        raise CheckpointError("an id's traffic is negative or unknown", where=f"{file}: count", got=keys[int(count_V.argmin())].as_py())
    days = pa.array([as_of] * len(keys), pa.string())
    return Vocabulary(name, keys, count_V, days, days)


def _check_ids(keys: pa.Array, file: Path) -> None:
    """Every row has one id, and every id one row: which of two rows owns an id cannot be guessed."""
    texts = keys.cast(pa.string())
    empty = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)))
    if len(empty):
        raise CheckpointError("a row of a vocabulary has no id", where=f"{file}, row {int(empty[0])}", expected="one id a row")
    first = pc.index_in(keys, value_set=keys).to_numpy()
    again = np.flatnonzero(first != np.arange(len(keys)))
    if len(again):
        raise CheckpointError(
            "two rows of a vocabulary have one id", where=f"{file}, rows {int(first[again[0]])} and {int(again[0])}",
            got=keys[int(again[0])].as_py(), expected="one row an id",
            remedy="write the vocabulary that the checkpoint was trained with; which of two rows owns an id cannot be guessed",
        )  # fmt: skip


def _read(file: Path) -> tuple[pa.Array, np.ndarray]:
    if file.suffix == ".parquet":
        table = pq.read_table(file, page_checksum_verification=True)
        count = pc.fill_null(table["count"].cast(pa.int64()), -1) if "count" in table.column_names else np.ones(len(table))
        return _plain(table["id"].combine_chunks()), np.asarray(count, np.int64)
    text = file.read_text(encoding="utf-8-sig")
    values = json.loads(text) if file.suffix == ".json" else text.splitlines()
    if not isinstance(values, list) or any(isinstance(value, bool | float) for value in values):
        raise ValueError("it is no list of ids")
    return _plain(pa.array(values, None if values else pa.string())), np.ones(len(values), np.int64)


def _plain(ids: pa.Array) -> pa.Array:
    """Returns ids as int64 or string, whatever width, dictionary or text type their writer chose."""
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ValueError(f"ids are integers or text, not {kind}")
    return ids.cast(kind).cast(pa.int64() if pa.types.is_integer(kind) else pa.string())
