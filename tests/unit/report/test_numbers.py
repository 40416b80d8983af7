"""Numbers as a person reads them."""

from __future__ import annotations

import math

import pytest

from trainer.report import numbers
from trainer.report.numbers import SPACE


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (numbers.fixed(0.71234), "0.7123"),
        (numbers.fixed(-0.00001), "0.0000"),
        (numbers.fixed(-0.5, 1, signed=True), "−0.5"),
        (numbers.fixed(0.5, 1, signed=True), "+0.5"),
        (numbers.fixed(0.00001, 2, signed=True), "0.00"),
        (numbers.fixed(math.nan), "–"),
        (numbers.fixed(None), "–"),
        (numbers.fixed(True), "–"),
        (numbers.percent(0.1234), f"12.3{SPACE}%"),
        (numbers.small_percent(0.000123), f"0.012{SPACE}%"),
        (numbers.small_percent(0.5), f"50{SPACE}%"),
        (numbers.small_percent(1.0), f"100{SPACE}%"),
        (numbers.significant(0.00002134), "2.13 × 10⁻⁵"),
        (numbers.significant(1234.5), "1,234"),
        (numbers.significant(0.5), "0.5"),
        (numbers.significant(0), "0"),
        (numbers.significant(120), "120"),
        (numbers.significant(-3.2e9), "−3.20 × 10⁹"),
        (numbers.count(1234567), "1,234,567"),
        (numbers.counted(1, "day"), f"1{SPACE}day"),
        (numbers.counted(2, "day"), f"2{SPACE}days"),
        (numbers.compact(1_813_616), f"1.81{SPACE}M"),
        (numbers.seconds(3.21), f"3.2{SPACE}s"),
        (numbers.seconds(185), "3 min 05 s"),
        (numbers.seconds(7_860), "2 h 11 min"),
        (numbers.interval([0.1, 0.2], numbers.fixed), "[0.1000, 0.2000]"),
        (numbers.interval([0.1, None], numbers.fixed), ""),
        (numbers.interval(None, numbers.fixed), ""),
        (numbers.leaf({"a": 1, "b": [True, None]}), "a 1, b yes, –"),
        (numbers.leaf([]), "none"),
    ],
)
def test_forms(shown: str, wanted: str) -> None:
    assert shown == wanted
