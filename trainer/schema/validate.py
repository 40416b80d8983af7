"""Checks that declarations share: one message for the same mistake, wherever it is made."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.errors import ConfigError, nearest


def choice(where: str, value: str, allowed: Iterable[str]) -> None:
    """Checks that a word is one of the known ones.

    Raises:
        ConfigError: Naming the nearest known word.
    """
    if value not in allowed:
        raise ConfigError("unknown choice", where=where, got=value, remedy=nearest(value, allowed))


def positive(where: str, value: float) -> None:
    """Checks that a number is above zero (NaN is not).

    Raises:
        ConfigError: If it is not.
    """
    if not value > 0:
        raise ConfigError("must be positive", where=where, got=value)


def share(where: str, value: float) -> None:
    """Checks that a number is a share: 0 to 1, both included (NaN is not).

    Raises:
        ConfigError: If it is not.
    """
    if not 0 <= value <= 1:
        raise ConfigError("a share lies between 0 and 1", where=where, got=value)
