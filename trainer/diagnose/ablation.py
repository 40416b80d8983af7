"""What each model loses without a feature: the one that the challenger leans on and production does not is a suspect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.metrics import row_loss
from trainer.schema.examples import LABEL, without_feature

Score = Callable[[pa.Table], Mapping[str, np.ndarray]]

_REPORTED = 10


def ablate(examples: pa.Table, models: Mapping[str, Score], actions: Mapping[str, str], features: Sequence[str]) -> list[dict[str, Any]]:
    """Scores rows with each feature made missing.

    Args:
        examples: Rows with ripe labels.
        models: ``production`` and ``challenger`` (or one of them): scores examples by action.
        actions: Action -> ``binary``, or another kind.
        features: Features to leave out, one at a time; a list or vector with all its parts.

    Returns:
        {feature, action, <model>: relative increase of the mean loss}, largest difference between the models first.
    """
    whole = {name: _losses(examples, score(examples), actions) for name, score in models.items()}
    found = []
    for feature in features:
        absent = without_feature(examples, feature)
        without = {name: _losses(examples, score(absent), actions) for name, score in models.items()}
        for action in actions:
            entry: dict[str, Any] = {"feature": feature, "action": action}
            for name in models:
                base = whole[name].get(action)
                entry[name] = None if not base else without[name][action] / base - 1
            found.append(entry)
    return sorted(found, key=lambda entry: -_gap(entry, list(models)))[:_REPORTED]


def _gap(entry: Mapping[str, Any], models: Sequence[str]) -> float:
    known = [entry[name] for name in models if entry[name] is not None]
    return max(known) - min(known) if len(known) > 1 else abs(known[0]) if known else 0.0


def _losses(examples: pa.Table, scores: Mapping[str, np.ndarray], actions: Mapping[str, str]) -> dict[str, float]:
    """Mean loss by action over rows whose label is known."""
    found = {}
    for action, kind in actions.items():
        if action not in scores:
            continue
        label_N = np.asarray(pc.fill_null(examples[LABEL + action].cast(pa.float64()), np.nan))
        known_N = np.isfinite(label_N)
        if known_N.any():
            found[action] = float(row_loss(kind, np.asarray(scores[action], np.float64)[known_N], label_N[known_N]).mean())
    return found
