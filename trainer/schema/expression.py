"""The small expression language of log specifications.

Python's arithmetic, comparison and boolean operators over column names and literals, plus the functions in `FUNCTIONS`.
It is parsed with `ast` and interpreted over numpy arrays; nothing is ever executed as code. Nulls propagate: a row whose
inputs are null yields null.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from trainer.errors import ConfigError, nearest
from trainer.schema.time import DAY_MS, day_start_ms

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


_NAMES = "columns whose names are no identifiers (blanks, dots, dashes) need another name to stand in an expression"


@dataclass(frozen=True)
class Column:
    """Values with validity; `valid_N` is None when every value is valid."""

    values_N: np.ndarray
    valid_N: np.ndarray | None = None


def _day_start(zone: str, yyyymmdd_N: np.ndarray) -> np.ndarray:
    days, inverse_N = np.unique(yyyymmdd_N.astype(np.int64), return_inverse=True)
    texts = [f"{day // 10000:04d}-{day // 100 % 100:02d}-{day % 100:02d}" for day in days.tolist()]
    return np.array([day_start_ms(text, zone) for text in texts], np.int64)[inverse_N]


def _hour(zone: str, time_ms_N: np.ndarray) -> np.ndarray:
    """Hour of the local day, 0 to 23; offsets are looked up once a local hour, so daylight saving is honoured."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    hours, inverse_N = np.unique(time_ms_N // 3_600_000, return_inverse=True)
    info = ZoneInfo(zone)
    return np.array([datetime.fromtimestamp(hour * 3600, info).hour for hour in hours.tolist()], np.int64)[inverse_N]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda zone, x: np.abs(x),
    "ceil": lambda zone, x: np.ceil(x),
    "day_start": _day_start,  # yyyymmdd -> epoch ms of local midnight
    "floor": lambda zone, x: np.floor(x),
    "floor_day": lambda zone, x: x // DAY_MS * DAY_MS,
    "hour": _hour,  # epoch ms -> local hour
    "log": lambda zone, x: np.log(x),
    "log1p": lambda zone, x: np.log1p(x),
    "max": lambda zone, x, y: np.maximum(x, y),
    "min": lambda zone, x, y: np.minimum(x, y),
    "where": lambda zone, condition, x, y: np.where(condition, x, y),
}


@lru_cache(maxsize=1024)
def parse(text: str) -> ast.expr:
    """Parses `text` and checks that it uses nothing but the language.

    Raises:
        ConfigError: If the text is no expression or uses something outside the language.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError("not an expression", got=text, expected="for example: play_time_ms / 1000 >= 7", remedy=_NAMES) from error
    _check(tree, text)
    return tree


def _check(node: ast.AST, text: str) -> None:
    match node:
        case ast.Name() | ast.Constant(value=bool() | int() | float() | str()):
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            children: list[ast.AST] = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            children = [operand]
        case ast.BoolOp(values=values):
            children = list(values)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARE for op in ops):
            children = [left, *comparators]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise ConfigError("unknown function", where=text, got=name, remedy=nearest(name, FUNCTIONS))
            children = list(args)
        case _:
            got = ast.unparse(node) if isinstance(node, ast.expr) else node
            raise ConfigError("not allowed in an expression", where=text, got=got, remedy=_NAMES)
    for child in children:
        _check(child, text)


def columns_of(text: str) -> set[str]:
    """Returns the column names that an expression reads."""
    return set(_columns_of(text))


@lru_cache(maxsize=4096)
def _columns_of(text: str) -> frozenset[str]:
    """Every file that is read asks for them, and parsing takes as long as decoding a small file."""
    tree = parse(text)
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) - _called(tree)


def _called(tree: ast.expr) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def evaluate(text: str, columns: Mapping[str, Column], zone: str) -> Column:
    """Evaluates an expression over columns of equal length.

    Args:
        text: The expression.
        columns: Column name -> values and validity.
        zone: Timezone for calendar functions.

    Returns:
        Values and validity; a row is valid where every column it reads is valid.

    Raises:
        ConfigError: If a column is missing or the operation does not fit the column's type.
    """
    tree = parse(text)
    names = sorted(columns_of(text))
    for name in names:
        if name not in columns:
            raise ConfigError("missing column", where=f"expression {text!r}", got=name, remedy=nearest(name, columns))
    try:
        with np.errstate(all="ignore"):
            values = _interpret(tree, columns, zone)
    except (TypeError, ValueError) as error:
        raise ConfigError("the expression does not fit its columns", where=text, got=str(error)) from error
    length = len(columns[names[0]].values_N) if names else None
    values_N = np.asarray(values) if length is None else np.broadcast_to(np.asarray(values), (length,))
    masks = [mask for name in names if (mask := columns[name].valid_N) is not None]
    return Column(values_N, np.logical_and.reduce(masks) if masks else None)


def _interpret(node: ast.expr, columns: Mapping[str, Column], zone: str) -> Any:
    def go(child: ast.expr) -> Any:
        return _interpret(child, columns, zone)

    match node:
        case ast.Name(id=name):
            return columns[name].values_N
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_number(go(left)), _number(go(right)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(go(operand))
        case ast.UnaryOp(operand=operand):
            return -_number(go(operand))
        case ast.BoolOp(op=ast.And(), values=values):
            return np.logical_and.reduce([np.asarray(go(value), bool) for value in values])
        case ast.BoolOp(values=values):
            return np.logical_or.reduce([np.asarray(go(value), bool) for value in values])
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [go(left), *(go(comparator) for comparator in comparators)]
            pairs = zip(ops, pairwise(operands), strict=True)
            return np.logical_and.reduce([_COMPARE[type(op)](a, b) for op, (a, b) in pairs])
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](zone, *(go(argument) for argument in args))
    raise AssertionError(f"unchecked node {node!r}")


def _number(value: Any) -> Any:
    """Widens narrow integers and booleans, so that int16 hours times 3,600,000 do not overflow."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        return value.astype(np.int64)
    return value
