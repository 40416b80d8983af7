"""The one border: plain values in, checked dataclasses out; unknown keys are refused wherever they come from."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainer.errors import ConfigError, nearest

T = TypeVar("T")


def load(kind: type[T], values: Any, where: str = "") -> T:
    """Builds the dataclass `kind` from a mapping, strictly.

    Args:
        kind: A dataclass.
        values: Mapping with plain values (nested mappings and lists).
        where: Dotted path for messages.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: On an unknown key, a missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping", where=where or kind.__name__, got=repr(values))
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in known:
            raise ConfigError("unknown key", where=_join(where, str(key)), got=key, remedy=nearest(str(key), known))
    arguments = {}
    for name, spec in known.items():
        if name in values and values[name] != "???":
            arguments[name] = _convert(hints[name], values[name], _join(where, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError("missing key", where=_join(where, name), remedy=f"give {_join(where, name)}=...")
    return kind(**arguments)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return _convert(rest[0], value, where) if len(rest) == 1 else value
    if dataclasses.is_dataclass(hint):
        return load(typing.cast(Any, hint), value, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError("expected a list", where=where, got=repr(value))
        return origin(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError("expected a mapping", where=where, got=repr(value))
        return {str(key): _convert(arguments[1], item, _join(where, str(key))) for key, item in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # an unquoted expression or id, say `delay: 0`
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise ConfigError("wrong type", where=where, got=repr(value), expected=hint.__name__)
    return value


def resolve_log_spec(values: dict[str, Any], overrides: dict[str, str] | None = None) -> dict[str, Any]:
    """Replaces the groups that describe a log by the user's own specification, if ``data.spec`` names one.

    Args:
        values: The composed configuration as plain mappings.
        overrides: Dotted overrides of the command line; those below `data`, `features` and `evaluation` are applied again.

    Returns:
        A new mapping. The file holds the fields of `LogSpec`; its optional blocks `counters` (point-in-time counters; without
        it they are derived, `features.auto`) and `evaluation` replace the groups of a shipped log. A relative `root` is
        taken from the file's folder; `data.root` on the command line wins.

    Raises:
        ConfigError: If the file is absent or is no YAML mapping.
    """
    data = values.get("data") or {}
    if not data.get("spec"):
        return values
    path = Path(data["spec"])
    own = _read_mapping(path)
    blocks = {"data": own, "evaluation": own.pop("evaluation", {})}
    counters = own.pop("counters", None)
    blocks["features"] = {"auto": True} if counters is None else {"counters": counters}
    own["root"] = str(path.parent / own.get("root", "."))
    own["spec"] = str(path)
    for dotted, text in (overrides or {}).items():
        group, *keys = dotted.split(".")
        if group in blocks and dotted != "data.spec":
            _assign(blocks[group], keys, yaml.safe_load(text))
    return {key: blocks.get(key, value) for key, value in values.items()}


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        own = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        got = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError("cannot read the log specification (data.spec)", where=path, got=got, expected="a YAML file") from error
    if not isinstance(own, dict):
        remedy = "begin with name:, root:, user:, item:, event_time: and actions:"
        raise ConfigError("the log specification is not a mapping", where=path, got=type(own).__name__, expected="keys", remedy=remedy)
    return own


def _assign(target: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = value
