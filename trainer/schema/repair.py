"""`repair.json`: strictly increasing curves that bring a challenger's scores onto production's scale, or onto the labels'.

Plain numbers, so that any consumer can apply them: a curve is a set of knots on the score's own scale, joined by cubic Hermite pieces and
continued by straight lines. Strictly increasing means that no order within a request changes and no tie appears; a curve that is not is
refused, when it is fitted and whenever it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from trainer.errors import CheckpointError
from trainer.schema.files import write_text
from trainer.schema.hashing import sha256_json
from trainer.schema.plain import as_plain, from_plain

REPAIR_VERSION = 1

FILE = "repair.json"

CALIBRATE = "calibrate"
MAP = "map"
REPAIRS = (CALIBRATE, MAP)

PLATT = "platt"
TEMPERATURE = "temperature"
ISOTONIC = "isotonic"
AUTO = "auto"  # whichever predicts held-out users best
CALIBRATORS = (PLATT, TEMPERATURE, ISOTONIC)

LOGIT = "logit"  # probabilities
LOG = "log"  # expectations of counts and durations
LINEAR = "linear"  # a value function, which may be negative
SCALES = (LOGIT, LOG, LINEAR)

_SMALLEST = 1e-15  # scores at 0 or 1 have no logit; closer than this they are the same score


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A strictly increasing function of one score.

    Attributes:
        method: How it was fitted: ``map`` or one of `CALIBRATORS`.
        scale: Where it is evaluated, one of `SCALES`.
        x: Knots of the score on that scale, strictly increasing.
        y: Values there, strictly increasing.
        slope: Derivatives at the knots: with ``x`` and ``y`` they fix the cubic pieces, whoever evaluates them.
        below: Slope left of the first knot.
        above: Slope right of the last knot.

    Raises:
        CheckpointError: If this is no strictly increasing function.
    """

    method: str
    scale: str
    x: list[float]
    y: list[float]
    slope: list[float]
    below: float = 1.0
    above: float = 1.0

    def __post_init__(self) -> None:
        fault = _fault(self)
        if fault is not None:
            raise CheckpointError(
                "a score curve is not strictly increasing", where=FILE, got=fault, expected="increasing finite knots and gentle slopes",
                remedy="never apply it: judge the challenger again",
            )  # fmt: skip

    def __call__(self, score_N: np.ndarray) -> np.ndarray:
        """Returns the repaired scores, float64 [N]; NaN stays NaN."""
        z_N = to_scale(score_N, self.scale)
        x_K, y_K, slope_K = (np.asarray(values, np.float64) for values in (self.x, self.y, self.slope))
        y_N = np.where(z_N < x_K[0], y_K[0] + self.below * (z_N - x_K[0]), y_K[-1] + self.above * (z_N - x_K[-1]))
        if len(x_K) > 1:
            inside_N = (z_N >= x_K[0]) & (z_N <= x_K[-1])
            y_N[inside_N] = _hermite(z_N[inside_N], x_K, y_K, slope_K)
        return from_scale(y_N, self.scale)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """All curves of one release.

    Attributes:
        version: Version of this schema.
        curves: Action -> curve; an action without one keeps its scores.
        value: Curve of the value function; only where its weights are not known, otherwise the value follows from the actions.
        weights: Weights with which the value of the repaired actions was computed again.
        rows: Rows that the curves were fitted on; none of them decided.
    """

    version: int = REPAIR_VERSION
    curves: dict[str, Curve] = field(default_factory=dict)
    value: Curve | None = None
    weights: dict[str, float] | None = None
    rows: int = 0

    @property
    def sha256(self) -> str:
        """Identity of the repair."""
        return sha256_json(as_plain(self))

    def scores(self, score_N: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Repairs the scores of a model: action -> float64 [N]."""
        return {name: self.curves[name](values_N) if name in self.curves else values_N for name, values_N in score_N.items()}


def write_repair(repair: Repair, folder: Path) -> Path:
    """Writes `repair.json` into a folder, as a whole, and returns its path."""
    path = folder / FILE
    write_text(path, json.dumps(as_plain(repair), indent=1, allow_nan=False) + "\n")
    return path


def read_repair(folder: Path) -> Repair | None:
    """Reads `repair.json` of a folder; None where a release has none.

    Raises:
        CheckpointError: If the file cannot be understood, or a curve in it is not strictly increasing.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        repair = from_plain(Repair, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "the repair of a release cannot be read", where=path, got=str(error).splitlines()[0], remedy="restore the release, or roll back"
        ) from error
    if repair.version != REPAIR_VERSION:
        raise CheckpointError("a repair of another version", where=path, got=repair.version, expected=REPAIR_VERSION)
    return repair


def to_scale(score_N: np.ndarray, scale: str) -> np.ndarray:
    """Returns scores on the scale on which a curve works, float64 [N]."""
    score_N = np.asarray(score_N, np.float64)
    if scale == LINEAR:
        return score_N
    if scale == LOG:
        return np.log(np.maximum(score_N, _SMALLEST))
    score_N = np.clip(score_N, _SMALLEST, 1 - _SMALLEST)
    return np.log(score_N) - np.log1p(-score_N)


def from_scale(z_N: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `to_scale`."""
    if scale == LINEAR:
        return z_N
    if scale == LOG:
        return np.exp(z_N)
    small_N = np.exp(-np.abs(z_N))
    return np.where(z_N >= 0, 1.0, small_N) / (1 + small_N)


def _fault(curve: Curve) -> str | None:
    """Says why a curve is not strictly increasing, or null."""
    numbers = [*curve.x, *curve.y, *curve.slope, curve.below, curve.above]
    if curve.scale not in SCALES or curve.method not in (MAP, *CALIBRATORS):
        return f"method {curve.method!r} on scale {curve.scale!r}"
    if not len(curve.x) == len(curve.y) == len(curve.slope) >= 1:
        return f"{len(curve.x)} knots, {len(curve.y)} values, {len(curve.slope)} slopes"
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return "a value that is no finite number"
    if min(curve.below, curve.above) <= 0 or min(curve.slope) < 0:
        return "a slope that is not positive"
    pieces = pairwise(zip(curve.x, curve.y, curve.slope, strict=True))
    for (x, y, slope), (next_x, next_y, next_slope) in pieces:
        if next_x <= x or next_y <= y:
            return f"({x:g}, {y:g}) before ({next_x:g}, {next_y:g})"
        # Fritsch and Carlson (1980): a cubic piece is monotone if neither end is steeper than three times its secant.
        if max(slope, next_slope) > 3 * (next_y - y) / (next_x - x) * (1 + 1e-9):
            return f"a cubic piece that overshoots at {x:g}"
    return None


def _hermite(z_N: np.ndarray, x_K: np.ndarray, y_K: np.ndarray, slope_K: np.ndarray) -> np.ndarray:
    """Cubic Hermite pieces through the knots, for values between the first and the last knot."""
    k_N = np.clip(np.searchsorted(x_K, z_N, side="right") - 1, 0, len(x_K) - 2)
    width_N, rise_N = (x_K[k_N + 1] - x_K[k_N]), (y_K[k_N + 1] - y_K[k_N])
    t_N = (z_N - x_K[k_N]) / width_N
    left_N, right_N = slope_K[k_N] * width_N, slope_K[k_N + 1] * width_N
    # y + t * (...) rather than the four basis functions: no cancellation between large knots of nearly the same value.
    return y_K[k_N] + t_N * (left_N + t_N * (3 * rise_N - 2 * left_N - right_N + t_N * (left_N + right_N - 2 * rise_N)))
