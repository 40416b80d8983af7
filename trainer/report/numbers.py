"""How numbers look on the page: few digits, units, a real minus sign, a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NONE = "–"
MOST_ITEMS = 12  # of a list that is written out
SPACE = "\u00a0"  # a number and its unit stay on one line
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def finite(value: Any) -> float | None:
    """Returns a number as float; None for null, NaN, infinities, flags and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def fixed(value: Any, digits: int = 4, signed: bool = False) -> str:
    """Returns ``0.7123``, or ``+0.0042`` if `signed`."""
    number = finite(value)
    if number is None:
        return NONE
    number = round(number, digits) + 0.0  # no minus in front of a zero
    return f"{number:{'+' if signed and number else ''},.{digits}f}".replace("-", "−")


def percent(value: Any, digits: int = 1, signed: bool = False) -> str:
    """Returns a share as ``12.3 %``."""
    number = finite(value)
    return NONE if number is None else f"{fixed(100 * number, digits, signed)}{SPACE}%"


def small_percent(value: Any) -> str:
    """Returns a share with as many digits as it takes to tell it from 0: ``25 %``, ``2.5 %``, ``0.025 %``."""
    number = finite(value)
    if number is None or abs(number) >= 0.995:
        return percent(number, 0)
    return f"{significant(100 * number, 2)}{SPACE}%"


def significant(value: Any, digits: int = 3) -> str:
    """Returns a number of any size with `digits` significant digits."""
    number = finite(value)
    if number is None:
        return NONE
    if number and not 1e-4 <= abs(number) < 10**6:
        mantissa, power = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa.replace('-', '−')} × 10{str(int(power)).translate(_SUPERSCRIPT)}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(number))) if number else 0))
    text = fixed(number, places)
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: Any) -> str:
    """Returns ``12,345``."""
    return fixed(value, 0)


def counted(value: Any, one: str, many: str | None = None) -> str:
    """Returns ``1 day``, ``12 days``."""
    return f"{count(value)}{SPACE}{one if value == 1 else many or one + 's'}"


def compact(value: Any) -> str:
    """Returns ``1.24 M`` for large numbers."""
    number = finite(value)
    if number is None:
        return NONE
    for scale, unit in _SCALES:
        if abs(number) >= scale:
            return f"{number / scale:.3g}{SPACE}{unit}"
    return significant(number)


def seconds(value: Any) -> str:
    """Returns a time as ``0.4 s``, ``3 min 05 s``, ``2 h 10 min``."""
    number = finite(value)
    if number is None:
        return NONE
    if number < 60:
        return f"{number:.1f}{SPACE}s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: Any) -> str:
    """Returns a number of bytes as ``1.24 MB``."""
    number = finite(value)
    return NONE if number is None else f"{compact(number)}B" if number >= 1e3 else f"{number:.0f} B"


def interval(bounds: Sequence[Any] | None, form: Callable[[Any], str]) -> str:
    """Returns ``[low, high]``, or nothing where a bound is missing."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or any(finite(bound) is None for bound in bounds):
        return ""
    return f"[{form(bounds[0])}, {form(bounds[1])}]"


def leaf(value: Any) -> str:
    """Returns any plain value as text: what is left when there is no better form."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {leaf(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        more = [f"and {count(len(value) - MOST_ITEMS)} more"] if len(value) > MOST_ITEMS else []
        return ", ".join([*(leaf(item) for item in value[:MOST_ITEMS]), *more]) or "none"
    return str(value)
