"""Compares two copies of a model on the same rows: may the one be served where the other was judged?

NE cannot answer it where one copy has learned the rows' labels. What must not have moved is the scale that the rules behind the
model know: mean and quantiles of the logits, calibration, and the traffic that passes production's thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainer.config import ReleaseConfig
from trainer.schema.absorb import CopyCheck

THRESHOLDS = (0.5, 0.9, 0.99)  # quantiles of production's scores at which traffic is compared
PERCENTILES = np.arange(1, 100) / 100
_ROWS = 10  # a threshold that fewer rows of the judged copy pass, or fail, says nothing about its scale


def compare_copies(
    judged: Mapping[str, np.ndarray],
    absorbed: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    production: Mapping[str, np.ndarray],
    weight_N: np.ndarray,
    kinds: Mapping[str, str],
    bounds: ReleaseConfig,
) -> list[CopyCheck]:
    """Runs every check on every action.

    Args:
        judged: Action -> scores [N] of the judged copy.
        absorbed: The same of the copy that has learned these rows.
        labels: Action -> float [N], NaN where not ripe.
        production: Action -> production's scores [N], NaN where absent; actions may be missing.
        weight_N: Example weights.
        kinds: Action -> kind.
        bounds: Largest changes allowed (``release.absorb_*``).

    Returns:
        Checks, five an action; one that cannot be computed fails.
    """
    checks = []
    for action, before_N in judged.items():
        after_N = absorbed[action]
        finite = bool(np.isfinite(after_N).all() and np.isfinite(before_N).all())
        checks.append(CopyCheck(name="finite", action=action, got=float(np.isfinite(after_N).mean()), bound=1.0, passed=finite))
        old_N, new_N = _scale(before_N, kinds[action]), _scale(after_N, kinds[action])
        observed, expected = _ratio(after_N, labels[action], weight_N), _ratio(before_N, labels[action], weight_N)
        found = {
            "mean": (abs(float(np.average(new_N - old_N, weights=weight_N))), bounds.absorb_mean),
            "quantiles": (float(np.abs(np.quantile(new_N, PERCENTILES) - np.quantile(old_N, PERCENTILES)).max()), bounds.absorb_quantile),
            "ratio": (abs(observed - 1), max(bounds.absorb_ratio, abs(expected - 1))),
            "traffic": (_traffic(before_N, after_N, production.get(action), weight_N), bounds.absorb_traffic),
        }
        for name, (got, bound) in found.items():
            known = bool(np.isfinite(got) and np.isfinite(bound))
            checks.append(CopyCheck(name=name, action=action, got=got if known else None, bound=bound, passed=known and got <= bound))
    return checks


def _scale(score_N: np.ndarray, kind: str) -> np.ndarray:
    """Logit of a probability, logarithm of an expectation; NaN where the score is not finite, which clipping would hide."""
    score_N = np.where(np.isfinite(score_N), score_N, np.nan)
    if kind == "binary":
        clipped_N = np.clip(score_N, 1e-9, 1 - 1e-9)
        return np.log(clipped_N) - np.log1p(-clipped_N)
    return np.log(np.maximum(score_N, 1e-9))


def _ratio(score_N: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray) -> float:
    """Predicted / observed over the rows whose label is known; 1 where nothing was observed."""
    known_N = np.isfinite(label_N)
    observed = float((weight_N * np.where(known_N, label_N, 0.0)).sum())
    return float((weight_N * np.where(known_N, score_N, 0.0)).sum()) / observed if observed > 0 else 1.0


def _traffic(before_N: np.ndarray, after_N: np.ndarray, production_N: np.ndarray | None, weight_N: np.ndarray) -> float:
    """Largest relative change of the weighted share of rows above a threshold."""
    known_N = production_N[np.isfinite(production_N)] if production_N is not None else before_N[:0]
    worst = 0.0
    for quantile in THRESHOLDS:
        threshold = float(np.quantile(known_N, quantile)) if len(known_N) else np.nan
        passing = int((before_N > threshold).sum())
        if not _ROWS <= passing <= len(before_N) - _ROWS:  # another scale: the judged copy's own quantile stands in
            threshold = float(np.quantile(before_N, quantile))
        before, after = (float((weight_N * (score_N > threshold)).sum()) for score_N in (before_N, after_N))
        worst = max(worst, abs(after - before) / before if before > 0 else 0.0)
    return worst
