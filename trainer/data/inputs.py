"""Freezes what a ranker consumes: feature order, normalisation and vocabularies, inherited from production where it has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.encode import fit_numeric
from trainer.errors import CheckpointError, ConfigError
from trainer.schema.examples import FEATURE, LABEL, ExamplesManifest
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashed import AnyVocabulary, HashedVocabulary
from trainer.schema.inputs import Action, InputSpec
from trainer.schema.logs import LogSpec, whole_name, whole_names
from trainer.schema.vocabulary import Vocabulary


def freeze_inputs(
    spec: LogSpec,
    manifest: ExamplesManifest,
    weights: Mapping[str, float],
    train: Iterable[pa.Table],
    *,
    user_id: bool,
    parent: InputSpec | None,
) -> InputSpec:
    """Builds the input specification of a new ranker.

    Args:
        spec: The log.
        manifest: Features that the examples hold.
        weights: Action -> weight in the value function.
        train: Training partitions; new numeric features and base rates are fitted on them.
        user_id: Whether the user id is a context feature.
        parent: Production's inputs. Its normalisation is kept: old weights mean nothing under new statistics.

    Returns:
        The specification.

    Raises:
        ConfigError: If production normalised a feature with another transform, or knows a list or vector by another width.
    """
    tables = list(train)
    if parent is not None:
        _refuse_other_widths([*(entry.name for entry in parent.numeric), *parent.categorical], [*manifest.numeric, *manifest.categorical])
    inherited = {entry.name: entry for entry in parent.numeric} if parent else {}
    for name, kind in manifest.numeric.items():
        if name in inherited and inherited[name].transform != kind:
            raise ConfigError(
                "a feature's transform differs from production's",
                where=f"features: {name}",
                got=kind,
                expected=inherited[name].transform,
                remedy="a changed definition needs a new name",
            )
    numeric = [
        inherited.get(name) or fit_numeric(name, kind, [table[FEATURE + name] for table in tables])
        for name, kind in manifest.numeric.items()
    ]
    actions = [
        Action(
            name=name,
            kind=action.kind,
            base_rate=_base_rate(tables, name, action.kind),
            weight=weights.get(name, 0.0),
            maturity_ms=action.maturity_ms,
        )
        for name, action in spec.actions.items()
    ]
    return InputSpec(
        actions=actions,
        history_actions=spec.history_actions,
        numeric=numeric,
        categorical={**manifest.categorical, **({"user": "user"} if user_id else {})},
        item_features={name: manifest.categorical[name] for name in manifest.item_features},
        token_features={name: manifest.categorical[name] for name in manifest.token_features},
        max_history=manifest.max_history,
    )


def _refuse_other_widths(before: Sequence[str], now: Sequence[str]) -> None:
    """A list of which more values count is another function of the same rows: old weights would mean something else."""
    for name in sorted(set(whole_names(before)) & set(whole_names(now))):
        old, new = ([one for one in names if whole_name(one) == name] for names in (before, now))
        if old != new:
            raise ConfigError(
                "a list or vector is not what it was in production", where=f"features: {name}", got=f"{len(new)} columns, up to {new[-1]}",
                expected=f"{len(old)}, up to {old[-1]}", remedy="a changed definition needs a new name",
            )  # fmt: skip


def _base_rate(tables: list[pa.Table], action: str, kind: str) -> float:
    """Mean label (binary, count) or mean log1p seconds (duration) over the training rows."""
    total, rows = 0.0, 0
    for table in tables:
        value_N = np.asarray(pc.fill_null(table[LABEL + action].cast(pa.float64()), np.nan))
        value_N = value_N[np.isfinite(value_N)]
        total += float((np.log1p(np.maximum(value_N, 0)) if kind == "duration" else value_N).sum())
        rows += len(value_N)
    return total / rows if rows else 0.0


def hashed_vocabulary(parent: AnyVocabulary | None, fresh: Vocabulary, hashing: HashFunction) -> HashedVocabulary:
    """Adds the new days' traffic to production's, under the challenger's hash; rows are as many as ever, and none is retired.

    Args:
        parent: Production's vocabulary of this table, hashed or not.
        fresh: Ids of the new training days.
        hashing: The challenger's hash; `function` gives way to production's, so that a new default moves no id.

    Returns:
        The challenger's vocabulary. What production counted under another hash is kept as far as it is known
        (`HashedVocabulary.under`).
    """
    if isinstance(parent, HashedVocabulary):
        hashing = replace(hashing, function=parent.hash.function)
        return parent.under(hashing).plus(HashedVocabulary.of(hashing, fresh))
    new = HashedVocabulary.of(hashing, fresh)
    return new if parent is None else HashedVocabulary.of(hashing, parent).plus(new)


def merge_vocabulary(parent: Vocabulary | None, fresh: Vocabulary, retire_before: str | None = None) -> Vocabulary:
    """Joins production's ids and the new days' ids: production's keep their order, new ones follow.

    Args:
        parent: Production's vocabulary of this table.
        fresh: Ids of the new training days.
        retire_before: Ids last seen before this day lose their row; None keeps all.

    Returns:
        The challenger's vocabulary; counts add up, first and last days are merged.

    Raises:
        CheckpointError: If production's ids are of a type that the log's cannot be read as.
    """
    if parent is None or not len(parent.keys):
        return fresh
    old, new = parent.keys, fresh.keys
    if not len(new):
        new = new.cast(pa.string()).cast(old.type)  # an empty column has no type to speak of
    if new.type != old.type:
        old = _retyped(parent, new.type)
    keys = pc.unique(pa.concat_arrays([old, new]))
    in_parent, in_fresh = (pc.index_in(keys, value_set=known) for known in (old, new))
    count_V = _taken(parent.count_V, in_parent) + _taken(fresh.count_V, in_fresh)
    first = pc.min_element_wise(parent.first_seen.take(in_parent), fresh.first_seen.take(in_fresh))
    last = pc.max_element_wise(parent.last_seen.take(in_parent), fresh.last_seen.take(in_fresh))
    if retire_before is not None:
        stay = pc.greater_equal(last, retire_before)
        keys, count_V, first, last = keys.filter(stay), count_V[np.asarray(stay)], first.filter(stay), last.filter(stay)
    return Vocabulary(fresh.name, keys, count_V, first, last)


def _retyped(vocabulary: Vocabulary, kind: pa.DataType) -> pa.Array:
    """Returns a vocabulary's ids as another type: text ids of digits as numbers, numbers as text."""
    try:
        keys = vocabulary.keys.cast(kind)
        if keys.cast(pa.string()).equals(vocabulary.keys.cast(pa.string())):
            return keys
        problem = "an id is written otherwise than its number is"
    except pa.ArrowInvalid as error:
        problem = str(error)
    raise CheckpointError(
        "production's ids are not of the log's type", where=f"vocabulary {vocabulary.name}", got=f"{vocabulary.keys.type}: {problem}",
        expected=kind, remedy="give the log's ids the type that production knew them by; other ids are another column, with its own name",
    )  # fmt: skip


def _taken(values_V: np.ndarray, index: pa.Array) -> np.ndarray:
    index_V = np.asarray(pc.fill_null(index, -1), np.int64)
    if not len(values_V):
        return np.zeros(len(index_V), np.int64)
    return np.where(index_V >= 0, values_V[index_V], 0)


def item_table(vocabulary: Vocabulary, features: Iterable[str], tables: Iterable[pa.Table], parent: pa.Table | None) -> pa.Table:
    """Lists every item of the vocabulary with its features, as last seen in the examples, else as production knew them.

    Args:
        vocabulary: Item vocabulary.
        features: Names of the item features.
        tables: Training partitions.
        parent: Production's item table.

    Returns:
        Columns item and feature_<name>, in vocabulary order; a feature that nobody knows is null.
    """
    columns = ["item", *(FEATURE + name for name in features)]
    sources = [*([_with_columns(parent, columns)] if parent is not None else []), *(table.select(columns) for table in tables)]
    seen = pa.concat_tables(sources, promote_options="permissive").combine_chunks()
    position = pc.index_in(seen["item"].combine_chunks(), value_set=vocabulary.keys.cast(seen["item"].type))
    known = np.flatnonzero(np.asarray(position.is_valid()))
    last_V = np.full(len(vocabulary.keys), -1, np.int64)
    last_V[np.asarray(position.drop_null(), np.int64)] = known  # numpy keeps the last of repeated assignments
    rows = pa.array(np.maximum(last_V, 0), mask=last_V < 0)
    return seen.take(rows).set_column(0, "item", vocabulary.keys)


def _with_columns(table: pa.Table, columns: list[str]) -> pa.Table:
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table)))
    return table.select(columns)
