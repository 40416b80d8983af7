"""Inline SVG: a panel with axes, and the few marks that the charts need.

Colours come from the page's style sheet through classes, so that one drawing serves light, dark and print. Every text that comes from
data is escaped here; what a `Panel` returns is safe markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from trainer.report.numbers import fixed

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42
TICKS = 5


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        low: Value at the lower end, in the (transformed) unit that is drawn.
        high: Value at the upper end.
        ticks: (position, label) of each tick.
        title: What is on the axis, with its unit.
    """

    low: float
    high: float
    ticks: list[tuple[float, str]]
    title: str

    def place(self, value_N: np.ndarray, start: float, end: float) -> np.ndarray:
        """Maps values to coordinates between `start` (at `low`) and `end` (at `high`)."""
        return start + (np.asarray(value_N, np.float64) - self.low) / ((self.high - self.low) or 1.0) * (end - start)


def linear_axis(low: float, high: float, title: str, tight: bool = False) -> Axis:
    """Returns a linear axis with round ticks.

    Args:
        low: Smallest value.
        high: Largest value.
        title: Title.
        tight: Whether the axis ends where the data do; else at the next tick.
    """
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = round_step((high - low) / TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(index * step, 12) for index in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(value, fixed(value, digits)) for value in values if not tight or low <= value <= high]
    return Axis(low, high, ticks, title) if tight else Axis(values[0], values[-1], ticks, title)


def round_step(raw: float) -> float:
    """Returns the smallest of 1, 2, 5 times a power of ten that is at least `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


@dataclass
class Panel:
    """A plot area with two axes, on which marks are drawn in data coordinates.

    Attributes:
        key: Unique on the page: it ties the title to the drawing for screen readers.
        title: What the chart shows.
        description: What a reader who cannot see it should know.
        x: Horizontal axis.
        y: Vertical axis.
    """

    key: str
    title: str
    description: str
    x: Axis
    y: Axis
    marks: list[str] = field(default_factory=list)

    def line(self, x_N: Sequence[float] | np.ndarray, y_N: Sequence[float] | np.ndarray, style: str) -> None:
        """Draws a polyline; a point that is not finite breaks it."""
        self.marks.append(f'<path class="line {style}" d="{self._path(np.asarray(x_N, float), np.asarray(y_N, float))}"/>')

    def band(self, x_N: np.ndarray, low_N: np.ndarray, high_N: np.ndarray, style: str) -> None:
        """Fills the area between two curves."""
        good_N = np.isfinite(low_N) & np.isfinite(high_N)
        if good_N.sum() > 1:
            x_N, low_N, high_N = x_N[good_N], low_N[good_N], high_N[good_N]
            outline = self._path(np.concatenate([x_N, x_N[::-1]]), np.concatenate([high_N, low_N[::-1]]))
            self.marks.append(f'<path class="band {style}" d="{outline}Z"/>')

    def dots(self, x_N: np.ndarray, y_N: np.ndarray, style: str, radius: float = 2.6) -> None:
        """Draws a dot a point."""
        for x, y in self._points(x_N, y_N):
            self.marks.append(f'<circle class="dot {style}" cx="{x}" cy="{y}" r="{radius}"/>')

    def rug(self, x_N: np.ndarray, style: str) -> None:
        """Marks positions by short strokes on the lower axis."""
        bottom = HEIGHT - BOTTOM
        strokes = "".join(f"M{x} {bottom}v-9" for x in _round(self.x.place(x_N, LEFT, WIDTH - RIGHT)))
        if strokes:
            self.marks.append(f'<path class="line {style}" d="{strokes}"/>')

    def marker(self, x: float, name: str, place: int) -> None:
        """Marks a position on the horizontal axis by a dashed line with a name; `place` counts them, so that names do not overlap."""
        if not self.x.low <= x <= self.x.high:
            return
        at = _round(self.x.place(np.array([x]), LEFT, WIDTH - RIGHT))[0]
        height = TOP + 10 + 14 * (place % 6)
        right = at < LEFT + 90  # no room for the name on the left
        self.marks.append(f'<path class="line live" d="M{at} {TOP}V{HEIGHT - BOTTOM}"/>')
        anchor, shift = ("start", 4) if right else ("end", -4)
        self.marks.append(f'<text class="live" x="{at + shift}" y="{height}" text-anchor="{anchor}">{escape(name)}</text>')

    def svg(self) -> Markup:
        """Returns the drawing."""
        key = escape(self.key)
        size = f'width="{WIDTH - LEFT - RIGHT + 4}" height="{HEIGHT - TOP - BOTTOM + 8}"'
        return Markup(
            f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{key}-t {key}-d">'
            f'<title id="{key}-t">{escape(self.title)}</title><desc id="{key}-d">{escape(self.description)}</desc>'
            f'<clipPath id="{key}-c"><rect x="{LEFT}" y="{TOP - 4}" {size}/></clipPath>'
            f'{"".join(self._axes())}<g clip-path="url(#{key}-c)">{"".join(self.marks)}</g></svg>'
        )

    def _axes(self) -> Iterable[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for at, (_, label) in zip(_round(self.y.place(_positions(self.y), bottom, TOP)), self.y.ticks, strict=True):
            yield f'<path class="grid" d="M{LEFT} {at}H{right}"/>'
            yield f'<text x="{LEFT - 7}" y="{at}" dy=".32em" text-anchor="end">{escape(label)}</text>'
        for at, (_, label) in zip(_round(self.x.place(_positions(self.x), LEFT, right)), self.x.ticks, strict=True):
            yield f'<path class="axis" d="M{at} {bottom}v4"/>'
            yield f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>'
        yield f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'
        yield f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 7}" text-anchor="middle">{escape(self.x.title)}</text>'
        middle = (TOP + bottom) / 2
        yield f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(self.y.title)}</text>'

    def _points(self, x_N: np.ndarray, y_N: np.ndarray) -> list[tuple[float, float]]:
        good_N = np.isfinite(x_N) & np.isfinite(y_N)
        across = _round(self.x.place(x_N[good_N], LEFT, WIDTH - RIGHT))
        return list(zip(across, _round(self.y.place(y_N[good_N], HEIGHT - BOTTOM, TOP)), strict=True))

    def _path(self, x_N: np.ndarray, y_N: np.ndarray) -> str:
        good_N = np.isfinite(x_N) & np.isfinite(y_N)
        starts = {0, *(np.flatnonzero(np.diff(np.flatnonzero(good_N)) > 1) + 1).tolist()}
        return "".join(f"{'M' if index in starts else 'L'}{x} {y}" for index, (x, y) in enumerate(self._points(x_N, y_N)))


def _positions(axis: Axis) -> np.ndarray:
    return np.array([position for position, _ in axis.ticks], float)


def _round(value_N: np.ndarray) -> list[float]:
    """Coordinates with one decimal: what a screen can show, and a small page."""
    return np.round(np.clip(value_N, -2000, 4000), 1).tolist()
