"""Fits the curves of a repair: monotone maps onto production's scale, and calibrators onto the labels'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from trainer.metrics import row_loss
from trainer.schema.repair import CALIBRATORS, ISOTONIC, LOGIT, MAP, TEMPERATURE, Curve, from_scale, to_scale

_STEP = 1.25  # tail shares of neighbouring knots: close enough that what happens between them does not depend on the interpolation
_TAIL_ROWS = 50  # rows beyond the outermost of these knots: farther out quantiles are noise, and only the extremes are tied
_MIN_SLOPE = 1e-3  # where production gives one score to many rows: what it did not tell apart stays in the challenger's order
_BINS = 200
_NEWTON_STEPS = 50


class Unfit(Exception):
    """A curve that these rows do not determine; the text says why."""


def fit_map(
    ours_N: np.ndarray, theirs_N: np.ndarray, weight_N: np.ndarray, scale: str, thresholds: Sequence[tuple[float, float | None]] = ()
) -> Curve:
    """Maps the challenger's distribution of scores onto production's: equal shares of traffic above every threshold.

    PCHIP (Fritsch and Butland, 1984) through the quantiles of both, on the logarithmic scale of the scores, so that the tails, where
    thresholds live, have knots of their own. An isotonic fit would have flat steps, and those are ties that change slates.

    Args:
        ours_N: The challenger's scores.
        theirs_N: Production's scores of the same rows.
        weight_N: Row weights.
        scale: Scale of the curve.
        thresholds: (share, threshold) that must be met exactly; None for a threshold that is production's own quantile.

    Raises:
        Unfit: If the challenger tells too few rows apart.
    """
    tails = 0.5 * _STEP ** -np.arange(np.ceil(np.log(max(0.5 * len(ours_N) / _TAIL_ROWS, 1)) / np.log(_STEP)))
    shares = np.concatenate([tails, 1 - tails, [share for share, _ in thresholds], [0.0, 1.0]])  # 0: the highest score, 1: the lowest
    x_K = to_scale(_upper_quantiles(ours_N, weight_N, shares), scale)
    y_K = to_scale(_upper_quantiles(theirs_N, weight_N, shares), scale)
    for place, (_, threshold) in enumerate(thresholds, start=2 * len(tails)):
        if threshold is not None:
            y_K[place] = to_scale(np.array([threshold]), scale)[0]
    return _through(MAP, scale, x_K, y_K)


def fit_calibrator(method: str, score_N: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, scale: str) -> Curve:
    """Calibrates scores to labels.

    Args:
        method: ``platt`` (slope and shift on the curve's scale: mends scale and spread with two numbers), ``temperature`` (slope
            alone) or ``isotonic`` (any increasing shape; needs most rows).
        score_N: The challenger's scores.
        label_N: Outcomes, all ripe.
        weight_N: Row weights.
        scale: ``logit`` for probabilities, ``log`` for expectations.

    Raises:
        Unfit: If labels do not rise with the scores.
    """
    z_N = to_scale(score_N, scale)
    if method == ISOTONIC:
        return _isotonic(z_N, label_N, weight_N, scale)
    design_NP = np.stack([z_N] if method == TEMPERATURE else [np.ones_like(z_N), z_N], axis=1)
    *shift, slope = _canonical_fit(design_NP, label_N, weight_N, scale)
    if not slope > 0:
        raise Unfit(f"labels fall with the scores (slope {slope:.3g}), and no increasing curve mends that")
    shift = shift or [0.0]
    return Curve(method=method, scale=scale, x=[0.0], y=[float(shift[0])], slope=[slope], below=slope, above=slope)


def best_calibrator(
    score_N: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, half_N: np.ndarray, scale: str
) -> tuple[Curve, dict[str, float]]:
    """Fits the calibrator that predicts best what it was not fitted on: each half of the users is predicted from the other.

    Args:
        score_N: The challenger's scores.
        label_N: Outcomes, all ripe.
        weight_N: Row weights.
        half_N: Half of each row's user, 0 or 1.
        scale: As `fit_calibrator`.

    Returns:
        The curve, fitted on all rows, and the held-out mean loss of every method that could be fitted.

    Raises:
        Unfit: If no method fits.
    """
    kind = "binary" if scale == LOGIT else "count"
    losses: dict[str, float] = {}
    fault = Unfit("no calibrator fits")
    for method in CALIBRATORS:  # simple ones first: a tie is theirs
        try:
            held_N = np.empty(len(score_N))
            for half in (0, 1):
                fitted_N = half_N != half
                curve = fit_calibrator(method, score_N[fitted_N], label_N[fitted_N], weight_N[fitted_N], scale)
                held_N[~fitted_N] = curve(score_N[~fitted_N])
            losses[method] = float(np.average(row_loss(kind, held_N, label_N), weights=weight_N))
        except Unfit as error:
            fault = error
    if not losses:
        raise fault
    return fit_calibrator(min(losses, key=lambda method: losses[method]), score_N, label_N, weight_N, scale), losses


def _upper_quantiles(score_N: np.ndarray, weight_N: np.ndarray, share_K: np.ndarray) -> np.ndarray:
    """The score that a share of the traffic reaches or exceeds, for each share."""
    order_N = np.argsort(-score_N, kind="stable")
    above_N = np.cumsum(weight_N[order_N])
    place_K = np.searchsorted(above_N, share_K * above_N[-1] * (1 - 1e-12))
    return score_N[order_N][np.minimum(place_K, len(score_N) - 1)]


def _through(method: str, scale: str, x_K: np.ndarray, y_K: np.ndarray) -> Curve:
    """PCHIP through knots in any order; equal knots are merged, and values that stand still are made to rise a little."""
    grain = 1e-9 * max(1.0, float(np.abs(x_K).max()))  # closer knots would leave no room for a rise in float64
    distinct_K, place_K = np.unique(np.round(x_K / grain) * grain, return_inverse=True)
    if len(distinct_K) < 2:
        raise Unfit("the challenger gives (nearly) one score to all rows")
    mean_K = np.bincount(place_K, weights=y_K) / np.bincount(place_K)
    least_K = mean_K - _MIN_SLOPE * distinct_K
    rising_K = np.maximum.accumulate(least_K) + _MIN_SLOPE * distinct_K
    slope_K = np.maximum(PchipInterpolator(distinct_K, rising_K).derivative()(distinct_K), 0.0)
    secant_K = np.diff(rising_K) / np.diff(distinct_K)
    limit_K = 3 * np.minimum(np.append(secant_K, np.inf), np.append(np.inf, secant_K))
    return Curve(method=method, scale=scale, x=distinct_K.tolist(), y=rising_K.tolist(), slope=np.minimum(slope_K, limit_K).tolist())


def _canonical_fit(design_NP: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, scale: str) -> list[float]:
    """Newton's method for a generalised linear model with its canonical link: logistic, or Poisson for expectations.

    The Poisson likelihood needs no Poisson labels: its score equation only says that means agree (Gourieroux et al., 1984).
    """
    beta_P = np.zeros(design_NP.shape[1])
    beta_P[-1] = 1.0
    size = np.inf
    for _ in range(_NEWTON_STEPS):
        eta_N = design_NP @ beta_P
        mean_N = from_scale(np.clip(eta_N, -35, 35), scale)
        variance_N = mean_N * (1 - mean_N) if scale == LOGIT else mean_N
        gradient_P = design_NP.T @ (weight_N * (mean_N - label_N))
        hessian_PP = (design_NP * (weight_N * variance_N)[:, None]).T @ design_NP
        step_P = np.linalg.lstsq(hessian_PP, gradient_P, rcond=1e-12)[0]
        step_P *= min(1.0, 2.0 / max(float(np.abs(step_P).max()), 1e-300))  # no leap out of the region where the means make sense
        beta_P = beta_P - step_P
        previous, size = size, float(np.abs(step_P).max())
        if size < 1e-10 or (size >= previous and size < 1e-7):
            break
    else:
        raise Unfit(f"the fit does not settle (last step {size:.2g})")
    return [float(value) for value in beta_P]


def _isotonic(z_N: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, scale: str) -> Curve:
    """Isotonic regression on equal-mass bins, joined through the middles of its steps: the steps' shape without their ties."""
    order_N = np.argsort(z_N, kind="stable")
    z_N, label_N, weight_N = z_N[order_N], label_N[order_N], weight_N[order_N]
    bin_N = ((np.cumsum(weight_N) - weight_N) / max(float(weight_N.sum()), 1e-300) * _BINS).astype(int)
    starts_B = np.flatnonzero(np.diff(bin_N, prepend=-1))
    middle_B = z_N[(starts_B + np.append(starts_B[1:], len(z_N))) // 2]
    mass_B, label_B = np.add.reduceat(weight_N, starts_B), np.add.reduceat(weight_N * label_N, starts_B)
    starts_S = isotonic_regression(label_B / np.maximum(mass_B, 1e-300), weights=np.maximum(mass_B, 1e-300)).blocks[:-1]
    if len(starts_S) < 2:
        raise Unfit("labels do not rise with the scores")
    mass_S, x_S, label_S = (np.add.reduceat(x_B, starts_S) for x_B in (mass_B, mass_B * middle_B, label_B))
    unit = float(weight_N.mean())  # half a row at the base rate, so that a step without positives has a logit
    rate = float(label_B.sum() / mass_B.sum())
    y_S = to_scale((label_S + 0.5 * unit * rate) / (mass_S + 0.5 * unit), scale)
    # Beyond the middles of the outermost steps it stands still, as isotonic regression does: scores at 0 or 1 are far out there.
    return _through(ISOTONIC, scale, np.concatenate([z_N[:1], x_S / mass_S, z_N[-1:]]), np.concatenate([y_S[:1], y_S, y_S[-1:]]))
