"""Axes and marks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from trainer.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Panel, linear_axis


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.512, 0.873), (-3.0, 1e-3), (1e6, 1.2e6), (1e-9, 4e-9), (5.0, 5.0), (0.0, 0.0)])
def test_axis_covers_the_data_with_round_ticks_that_differ(low: float, high: float) -> None:
    axis = linear_axis(low, high, "x")
    assert axis.low <= low and axis.high >= high and axis.high > axis.low
    labels = [label for _, label in axis.ticks]
    assert 2 <= len(labels) <= 12 and len(set(labels)) == len(labels)


def test_tight_axis_ends_where_the_data_do() -> None:
    axis = linear_axis(0, 1_199, "step", tight=True)
    assert (axis.low, axis.high) == (0, 1_199) and max(at for at, _ in axis.ticks) <= 1_199


def panel() -> Panel:
    return Panel("k", "a < b", "words & more", linear_axis(0, 10, "x"), linear_axis(0, 1, "<y>"))


def test_points_land_on_the_plot_area() -> None:
    drawing = panel()
    drawing.dots(np.array([0.0, 10.0]), np.array([0.0, 1.0]), "challenger")
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawing.svg())
    assert [(float(x), float(y)) for x, y in found] == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_a_gap_breaks_the_line() -> None:
    drawing = panel()
    drawing.line([0, 1, 2, 3, 4], [0.1, 0.2, np.nan, 0.3, 0.4], "challenger")
    [path] = re.findall(r'class="line challenger" d="([^"]+)"', drawing.svg())
    assert path.count("M") == 2 and path.count("L") == 2


def test_words_are_escaped() -> None:
    svg = panel().svg()
    assert "a &lt; b" in svg and "words &amp; more" in svg and "&lt;y&gt;" in svg and "<y>" not in svg
