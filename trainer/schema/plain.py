"""Dataclasses to plain values and back, for JSON artefacts."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


def as_plain(value: Any) -> Any:
    """Returns dataclasses as mappings and tuples as lists; keys keep their declared order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """Rebuilds a dataclass that `as_plain` wrote.

    Raises:
        TypeError: If a key is unknown or missing: the file was written by another version, or altered.
    """
    hints = _hints(typing.cast(Any, kind))
    unknown = set(value) - set(hints)
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    return kind(**{name: _revive(hints[name], item) for name, item in value.items()})


@lru_cache(maxsize=256)
def _hints(kind: Any) -> dict[str, Any]:
    """Resolving annotations takes longer than anything else here."""
    return typing.get_type_hints(kind)


def _revive(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (types.UnionType, typing.Union):
        return _revive(next(argument for argument in arguments if argument is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(Any, hint), value)
    if origin is list:
        return [_revive(arguments[0], item) for item in value]
    if origin is tuple:
        inner = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
        return tuple(_revive(argument, item) for argument, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _revive(arguments[1], item) for key, item in value.items()}
    return value
