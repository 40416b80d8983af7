"""Logged features against rebuilt ones: the match rate by feature and day, and the best detector of what both sides cannot see."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import ConfigError, nearest
from trainer.rebuild.context import Context
from trainer.schema.examples import FEATURE, SERVED, FeatureMatch
from trainer.schema.plain import as_plain, from_plain

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # features are float32, and production may add in another order
_EXACT = ("count", "distinct")


def check_names(context: Context, features: Mapping[str, object]) -> None:
    """Checks that every logged feature is one that the rebuild makes.

    Args:
        context: The rebuild.
        features: What it makes, by name.

    Raises:
        ConfigError: Naming the nearest feature.
    """
    for name in context.spec.logged_features:
        if name not in features:
            raise ConfigError(
                "a logged feature is not one of the rebuilt ones", where="data.logged_features", got=name, remedy=nearest(name, features)
            )


def matches(context: Context, table: pa.Table) -> dict[str, dict[str, int]]:
    """Compares the logged features of a table of examples with the rebuilt ones; its negatives have none.

    Returns:
        Feature -> `FeatureMatch` as plain values, for the record of a task.
    """
    events = table.filter(table["is_event"]) if context.spec.logged_features else table
    return {
        name: as_plain(_match(events[SERVED + name], events[FEATURE + name], exact=_is_exact(context, name)))
        for name in context.spec.logged_features
    }


def total(records: list[dict[str, dict[str, int]]]) -> dict[str, FeatureMatch]:
    """Adds up what `matches` returned for the buckets of a day."""
    names = records[0] if records else {}
    none = FeatureMatch(logged=0, compared=0, matched=0)
    return {name: sum((from_plain(FeatureMatch, record[name]) for record in records), none) for name in names}


def _match(logged: pa.ChunkedArray, rebuilt: pa.ChunkedArray, exact: bool) -> FeatureMatch:
    both = pc.and_(logged.is_valid(), rebuilt.is_valid())
    served, made = logged.filter(both), rebuilt.filter(both)
    if pa.types.is_string(served.type) or pa.types.is_string(made.type):
        same_N = np.asarray(pc.equal(served.cast(pa.string()), made.cast(pa.string())))
    else:
        kind = pa.float32() if exact else pa.float64()
        served_N, made_N = np.asarray(served.cast(kind, safe=False)), np.asarray(made.cast(kind, safe=False))
        same_N = served_N == made_N if exact else np.isclose(made_N, served_N, rtol=RELATIVE, atol=ABSOLUTE)
    return FeatureMatch(logged=len(logged) - logged.null_count, compared=len(served), matched=int(same_N.sum()))


def _is_exact(context: Context, name: str) -> bool:
    """Counts and categories agree or they do not; means, rates and measured numbers are rounded somewhere."""
    counter = context.counters.get(name)
    if counter is not None:
        return counter.kind in _EXACT
    numeric = {known for known, column in context.spec.all_parts.items() if column.kind == "numeric"}
    return name not in numeric and not name.startswith("coverage_")
