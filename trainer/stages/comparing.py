"""`scripts/compare_embeddings.py`: the comparison of two tables of vectors, and the live model behind them replayed on both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.align import IDENTITY, Comparison, VectorFile, run
from trainer.config import CompareRunConfig
from trainer.errors import ConfigError, DataError, nearest
from trainer.schema.ids import plain_ids
from trainer.schema.predictions import LABEL, WEIGHT
from trainer.schema.verdict import Check

_ACTION = "label"
_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def compare_tables(config: CompareRunConfig) -> Comparison:
    """Compares two tables and, if a live model is named, replays it on old, new and repaired vectors.

    Raises:
        CheckpointError: If the live model cannot be used.
        ConfigError: If the live model takes other features than the rows and the vectors have.
        DataError: If a table cannot be read or the two have no entity in common.
    """
    if config.downstream is None or config.rows is None:
        return run(config)
    return run(config, partial(_replayed, Path(config.downstream), Path(config.rows), config.id_column or "id"))


def _replayed(model: Path, rows: Path, id_column: str, old: VectorFile, new: VectorFile, found: Comparison) -> list[Check]:
    from trainer.downstream import features_of, replay

    table, ids = _rows(rows, id_column)
    features = features_of(model)
    before_ND, after_ND = (side.lookup(ids) for side in (old, new))
    names = _coordinates(model, features, table.column_names, before_ND.shape[1])
    if after_ND.shape != before_ND.shape:
        return []  # the comparison has called it broken already
    sides = {"new": after_ND}
    if found.alignment.method != IDENTITY:
        sides["repaired"] = found.alignment.apply(after_ND)
    before = _joined(table, before_ND, names)
    checks = []
    for name, vectors_ND in sides.items():
        replayed = replay(model, _joined(table, vectors_ND, names), features, before=before, action=_ACTION)
        checks += [replace(check, slice=f"vectors={name}", severity="info") for check in replayed]
    return checks


def _rows(path: Path, id_column: str) -> tuple[pa.Table, pa.Array]:
    """Reads the rows of the live model: label and cluster under the names that a replay knows, and the ids."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError("cannot read the rows of the live model", where=path, got=str(error).splitlines()[0]) from error
    for name in (id_column, _ACTION):
        if name not in table.column_names:
            raise ConfigError("the rows of the live model lack a column", where=path, got=name, remedy=nearest(name, table.column_names))
    ids = plain_ids(table[id_column])
    kept = {name: table[name] for name in table.column_names if name != _ACTION}
    kept["user"] = table["user"] if "user" in kept else ids
    if WEIGHT not in kept:
        kept[WEIGHT] = pa.array(np.ones(len(ids)))
    return pa.table({**kept, LABEL + _ACTION: table[_ACTION].cast(pa.float64())}), ids


def _coordinates(model: Path, features: Sequence[str], columns: Sequence[str], dim: int) -> list[str]:
    """Returns the model's features that are the vectors' coordinates, in the order of their numbers."""
    lacking = [name for name in features if name not in columns]
    numbered = [match for match in map(_NUMBERED.match, lacking) if match]
    if len(numbered) != len(lacking) or len(lacking) != dim or len({match[1] for match in numbered}) != 1:
        raise ConfigError(
            "the live model takes other features than the rows and the vectors have", where=model,
            got=f"{len(lacking)} features that are not in the rows: {', '.join(lacking[:4]) or 'none'}",
            expected=f"{dim}, one a coordinate, numbered under one name (e000, e001, ...)",
        )  # fmt: skip
    return [match[0] for match in sorted(numbered, key=lambda match: int(match[2]))]


def _joined(table: pa.Table, vectors_ND: np.ndarray, names: Sequence[str]) -> pa.Table:
    """Returns the rows with one column a coordinate; NaN where an id has no vector."""
    for index, name in enumerate(names):
        table = table.append_column(name, pa.array(np.ascontiguousarray(vectors_ND[:, index])))
    return table
