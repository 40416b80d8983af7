"""The final model that is released with the embeddings: saved as it was judged, and scored as it was saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.downstream.booster import Model
from trainer.downstream.features import CATEGORICAL, KINDS, Encoder
from trainer.downstream.replay import scores_by
from trainer.errors import CheckpointError, ConfigError, nearest
from trainer.schema.downstream import FINAL_FILE, FINAL_VERSION, MODEL_FILES, Categories, FinalModel
from trainer.schema.files import sync, write_text
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import as_plain, from_plain

_TYPES = {"int64": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class Fitted:
    """A final model in memory.

    Attributes:
        model: The trees.
        encoder: How rows become features.
        features: Name of each feature.
        days: Days it was trained on; empty where the rows do not tell.
    """

    model: Model
    encoder: Encoder
    features: list[str]
    days: list[str]


def write_final(folder: Path, fitted: Fitted, *, library: str, objective: str, action: str, feature_space: str) -> FinalModel:
    """Saves a final model: the library's own file, then `model.json`. No pickle: neither file can run code where it is read.

    Args:
        folder: Made if absent.
        fitted: The model.
        library: ``lightgbm`` or ``catboost``.
        objective: ``binary`` or ``ranking``.
        action: Action that it predicts.
        feature_space: Space of the vectors it was trained on.

    Returns:
        What was written into `model.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINAL_FILE).unlink(missing_ok=True)
    path = folder / MODEL_FILES[library]
    fitted.model.save(path)
    sync(path)
    categories = {name: Categories(type=str(values.type), values=values.to_pylist()) for name, values in fitted.encoder.categories.items()}
    about = FinalModel(
        library=library, objective=objective, action=action, columns=fitted.encoder.kinds, features=fitted.features,
        categories=categories, feature_space=feature_space, sha256=sha256_file(path), days=fitted.days,
    )  # fmt: skip
    write_text(folder / FINAL_FILE, json.dumps(as_plain(about), indent=1) + "\n")
    return about


def read_final(folder: Path) -> FinalModel:
    """Reads what a saved final model says about itself, and checks that its file is the one that was saved.

    Raises:
        CheckpointError: If a file is absent, damaged, or of another version.
    """
    path = folder / FINAL_FILE
    try:
        about = from_plain(FinalModel, json.loads(path.read_text(encoding="utf-8")))
        if about.version != FINAL_VERSION:
            raise ValueError(f"version {about.version}, not {FINAL_VERSION}")
        encoder = _encoder(about)
        if set(encoder.kinds.values()) - set(KINDS) or {n for n, kind in encoder.kinds.items() if kind == CATEGORICAL} != set(
            about.categories
        ):
            raise ValueError("columns and categories do not fit each other")
        if (got := sha256_file(folder / MODEL_FILES[about.library])) != about.sha256:
            raise ValueError(f"{MODEL_FILES[about.library]} is another file: sha256 {got[:12]}, not {about.sha256[:12]}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "restore the release, or roll back to one that is whole"
        raise CheckpointError("not a whole final model", where=path, got=error, remedy=remedy) from error
    return about


def final_scores(folder: Path, tables: Sequence[pa.Table]) -> list[np.ndarray]:
    """Scores rows by a saved final model, exactly as the model that was saved.

    Args:
        folder: What `write_final` wrote.
        tables: Rows with the model's columns.

    Returns:
        Scores of each table, float64 [N].

    Raises:
        CheckpointError: If a file is absent or damaged.
        ConfigError: If a column is absent, or a vector has another width.
        DataError: If a column has another type.
    """
    about = read_final(folder)
    return scores_by(folder / MODEL_FILES[about.library], [_matrix(folder, about, table) for table in tables])


def _encoder(about: FinalModel) -> Encoder:
    return Encoder(about.columns, {name: pa.array(coded.values, _TYPES[coded.type]) for name, coded in about.categories.items()})


def _matrix(folder: Path, about: FinalModel, table: pa.Table) -> np.ndarray:
    """Returns the rows as the model's file takes them: CatBoost lists numbers first, then categories."""
    remedy = "declare it again, or name the model that is live: downstream.live"
    for name in about.columns:
        if name not in table.column_names:
            near = nearest(name, table.column_names)
            raise ConfigError("the live final model takes a column that the rows lack", where=folder, got=name, remedy=near or remedy)
    features = _encoder(about).encode(table)
    if features.names != about.features:
        got = next(iter(sorted(set(features.names) ^ set(about.features))), "another order")
        raise ConfigError("the live final model takes vectors of another width", where=folder, got=got, remedy=remedy)
    if about.library == "lightgbm":
        return features.values_NF
    plain = [index for index in range(len(features.names)) if index not in set(features.categorical)]
    return np.ascontiguousarray(features.values_NF[:, [*plain, *features.categorical]])
