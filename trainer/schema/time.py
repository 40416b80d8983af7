"""Time as rewarm keeps it: int64 milliseconds since the epoch (UTC); business days as ISO dates in a declared timezone.

Finer units are floored to milliseconds. That errs on the safe side: two events that fall into one millisecond tie, and a
tie is not available (`event_time < t` is strict).
"""

from __future__ import annotations

import datetime as dt
import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from trainer.errors import ConfigError

SECOND_MS = 1_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

_UNIT_MS = {"ms": 1, "s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")

# Ticks of a raw integer time column in one millisecond; below one means a coarser unit.
TICKS_PER_MS = {"s": 0.001, "ms": 1, "us": 1_000, "ns": 1_000_000}


def parse_duration(text: str | int, where: str = "duration") -> int:
    """Parses ``"7d"``, ``"36h"``, ``"1h30m"``, ``"500ms"`` or ``"0"`` to milliseconds.

    Raises:
        ConfigError: If the text is not a duration, or is negative: a window never reaches into the future.
    """
    if text in (0, "0"):
        return 0
    matches = _DURATION.findall(str(text))
    if not matches or "".join(value + unit for value, unit in matches) != str(text):
        raise ConfigError(
            "not a duration",
            where=where,
            got=text,
            expected="digits and a unit, not negative",
            remedy="write for example 7d, 36h, 30m, 45s, 500ms",
        )
    return int(sum(float(value) * _UNIT_MS[unit] for value, unit in matches))


def timezone(name: str) -> ZoneInfo:
    """Returns the timezone `name`.

    Raises:
        ConfigError: If the timezone database has no such name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError("unknown timezone", where="data.timezone", got=name, expected="an IANA name, say Asia/Shanghai") from error


def parse_day(text: str, where: str = "as_of") -> dt.date:
    """Parses an ISO date.

    Raises:
        ConfigError: If `text` is not ``YYYY-MM-DD``.
    """
    try:
        return dt.date.fromisoformat(str(text))
    except ValueError as error:
        raise ConfigError("not a day", where=where, got=text, expected="YYYY-MM-DD") from error


def day_start_ms(day: str, zone: str) -> int:
    """Returns the instant (ms) at which business day `day` begins in `zone`."""
    midnight = dt.datetime.combine(parse_day(day), dt.time(), tzinfo=timezone(zone))
    return int(midnight.timestamp()) * SECOND_MS


def day_end_ms(day: str, zone: str) -> int:
    """Returns the instant at which business day `day` ends: known at or before it is known as of that day."""
    return day_start_ms(add_days(day, 1), zone)


def add_days(day: str, count: int) -> str:
    """Returns the ISO date `count` days after `day`."""
    return (parse_day(day) + dt.timedelta(days=count)).isoformat()


def days_between(first: str, last: str) -> list[str]:
    """Returns the ISO dates from `first` to `last`, both included."""
    span = (parse_day(last) - parse_day(first)).days
    return [add_days(first, offset) for offset in range(span + 1)]
