"""The predictions as the gate sees them: typed columns, codes of users and slates, slice columns, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.errors import DataError, nearest
from trainer.schema import predictions as names
from trainer.schema.policy import CROSS, GatePolicy
from trainer.schema.time import DAY_MS
from trainer.schema.verdict import Check

BINARY = "binary"
COUNT = "count"
_OWN = (*names.KEYS, names.VALUE_PRODUCTION, names.VALUE_CHALLENGER, names.WEIGHT)
_PREFIXES = (names.LABEL, *names.SCORES)


@dataclass(frozen=True)
class SliceColumn:
    """One slice column: the group of each row and the groups' names."""

    name: str
    group_N: np.ndarray
    values: list[str]


@dataclass(frozen=True)
class ActionColumns:
    """One judged action.

    Attributes:
        name: Action.
        kind: ``binary`` if labels are 0/1 and production's scores lie in [0, 1], else ``count`` (any expectation).
        label_N: Outcomes, NaN where not ripe.
        scores: Prefix (`production_`, ...) -> scores; only columns that exist and are finite.
    """

    name: str
    kind: str
    label_N: np.ndarray
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Everything the checks read.

    Attributes:
        rows: N.
        user_N: User codes.
        slate_N: Slate codes: requests, else user-days.
        item_N: Item codes, if there are items.
        weight_N: Row weights.
        actions: Judged actions.
        value: ``production_``, ``challenger_`` -> value function of the scores, where both columns exist.
        slices: Slice columns, numbers binned.
        numbers: Numeric slice columns as they are, for slate composition.
        slates: ``request`` or ``user-day``.
        findings: What was wrong or missing, as checks.
    """

    rows: int
    user_N: np.ndarray
    slate_N: np.ndarray
    item_N: np.ndarray | None
    weight_N: np.ndarray
    actions: list[ActionColumns]
    value: dict[str, np.ndarray]
    slices: list[SliceColumn]
    numbers: dict[str, np.ndarray]
    slates: str
    findings: list[Check] = field(default_factory=list)


def read_table(source: pa.Table | Path | str) -> pa.Table:
    """Reads a predictions file, verifying page checksums where there are any.

    Raises:
        DataError: If the file is absent or not readable as Parquet.
    """
    if isinstance(source, pa.Table):
        return source
    try:
        return pq.read_table(source, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "cannot read the predictions", where=str(source), got=str(error).splitlines()[0], expected="a Parquet file",
            remedy="point predictions= at predictions.parquet of a run, or at your own table with its columns",
        ) from error  # fmt: skip


def prepare(table: pa.Table, policy: GatePolicy) -> Predictions:
    """Turns a table into what the checks read.

    Raises:
        DataError: If there is no user column, no judged action, or a column has a type that cannot be judged.
    """
    findings: list[Check] = []
    if "user" not in table.column_names:
        raise DataError("a column is missing", where="predictions", got="no column user", remedy=nearest("user", table.column_names))
    user_N, _ = _codes(table["user"], "user")
    slate_N, slates = _slates(table, user_N)
    weight_N = _weights(table, findings)
    actions = [_action(table, name, findings) for name in _action_names(table, policy, findings)]
    if not actions:
        raise DataError(
            "nothing can be judged", where="predictions", got=f"columns {', '.join(table.column_names)}",
            expected="label_<action> and challenger_<action> for at least one action",
        )  # fmt: skip
    return Predictions(
        rows=table.num_rows, user_N=user_N, slate_N=slate_N, weight_N=weight_N,
        item_N=_codes(table["item"], "item")[0] if "item" in table.column_names else None,
        actions=actions, value=_value(table, findings), slices=_slice_columns(table, policy, findings),
        numbers=_numbers(table), slates=slates, findings=findings,
    )  # fmt: skip


def failed(name: str, sentence: str, *, action: str = "all", slice_: str = "all", n: int = 0, family: str = "data") -> Check:
    """A blocking check that failed because something is missing or unsound: the gate fails closed."""
    return Check(name=name, family=family, action=action, slice=slice_, n=n, outcome="fail", severity="block", sentence=sentence)


def not_applicable(name: str, family: str, sentence: str, action: str = "all") -> Check:
    """A check that was not made, and why."""
    return Check(name=name, family=family, action=action, outcome="not_applicable", severity="info", sentence=sentence)


def _action_names(table: pa.Table, policy: GatePolicy, findings: list[Check]) -> list[str]:
    """Actions with a label and a challenger column; one that the policy names, or production has, may not be missing."""
    columns = set(table.column_names)
    labelled = [name.removeprefix(names.LABEL) for name in table.column_names if name.startswith(names.LABEL)]
    judged = []
    for name in labelled if policy.actions is None else policy.actions:
        wanted = policy.actions is not None or names.PRODUCTION + name in columns
        missing = [column for column in (names.LABEL + name, names.CHALLENGER + name) if column not in columns]
        if not missing:
            judged.append(name)
        elif wanted:
            findings.append(failed("columns", f"{' and '.join(missing)} missing although {name} is to be judged", action=name))
    return judged


def _action(table: pa.Table, name: str, findings: list[Check]) -> ActionColumns:
    label_N = _floats(table, names.LABEL + name)
    known_N = label_N[~np.isnan(label_N)]
    columns = {prefix: _floats(table, prefix + name) for prefix in names.SCORES if prefix + name in table.column_names}
    reference_N = columns.get(names.PRODUCTION, np.zeros(0))
    kind = BINARY if np.isin(known_N, (0.0, 1.0)).all() and not (reference_N > 1).any() else COUNT
    if len(known_N) and not (np.isfinite(known_N).all() and known_N.min() >= 0):
        findings.append(failed("labels", f"label_{name} holds a negative or infinite value", action=name, n=len(known_N)))
        return ActionColumns(name, kind, np.full(len(label_N), np.nan), {})
    sound = {}
    for prefix, score_N in columns.items():
        fault = _fault(score_N, kind)
        column = prefix + name
        if np.isfinite(score_N).all():
            sound[prefix] = score_N  # out of range is a failure, but what else it breaks can still be measured
        if fault is None:
            continue
        if prefix in (names.PRODUCTION, names.CHALLENGER):
            findings.append(failed("scores", f"{column} {fault}", action=name, n=len(score_N)))
        else:
            findings.append(not_applicable("scores", "data", f"{column} {fault}", action=name))
    return ActionColumns(name, kind, label_N, sound)


def _fault(score_N: np.ndarray, kind: str) -> str | None:
    bad = int((~np.isfinite(score_N)).sum())
    if bad:
        return f"is null, NaN or infinite in {bad:,} of {len(score_N):,} rows"
    lowest, highest = float(score_N.min(initial=0.0)), float(score_N.max(initial=0.0))
    if kind == BINARY and (lowest < 0 or highest > 1):
        return f"lies in [{lowest:.4g}, {highest:.4g}], but a probability was expected"
    if lowest < 0:
        return f"goes down to {lowest:.4g}, but an expectation of a label that is never negative was expected"
    return None


def _value(table: pa.Table, findings: list[Check]) -> dict[str, np.ndarray]:
    pairs = {names.PRODUCTION: names.VALUE_PRODUCTION, names.CHALLENGER: names.VALUE_CHALLENGER}
    found = {prefix: _floats(table, column) for prefix, column in pairs.items() if column in table.column_names}
    for prefix, value_N in found.items():
        bad = int((~np.isfinite(value_N)).sum())
        if bad:
            findings.append(failed("scores", f"{pairs[prefix]} is null, NaN or infinite in {bad:,} rows", action="value", n=len(value_N)))
            return {}
    return found if len(found) == len(pairs) else {}


def _weights(table: pa.Table, findings: list[Check]) -> np.ndarray:
    if names.WEIGHT not in table.column_names:
        return np.ones(table.num_rows)
    weight_N = _floats(table, names.WEIGHT)
    if np.isfinite(weight_N).all() and (weight_N >= 0).all():
        return weight_N
    findings.append(failed("weights", "weight is null, negative or not finite in some rows", n=table.num_rows))
    return np.ones(table.num_rows)


def _slates(table: pa.Table, user_N: np.ndarray) -> tuple[np.ndarray, str]:
    """Slate codes; without a request id a slate is what one user was shown on one day (UTC)."""
    if "request" in table.column_names and table["request"].null_count == 0:
        return _codes(table["request"], "request")[0], "request"
    if "time" not in table.column_names:
        return user_N, "user"
    time = table["time"]
    if pa.types.is_timestamp(time.type):
        time = time.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())  # finer ticks are floored
    day_N = np.nan_to_num(_to_floats(time, "time") // DAY_MS).astype(np.int64)
    days, day_N = np.unique(day_N, return_inverse=True)
    return np.unique(user_N * max(len(days), 1) + day_N, return_inverse=True)[1], "user-day"


def _slice_columns(table: pa.Table, policy: GatePolicy, findings: list[Check]) -> list[SliceColumn]:
    declared = policy.slices is not None
    wanted = _slice_candidates(table) if policy.slices is None else policy.slices
    found = []
    for name in wanted:
        parts = name.split(CROSS)
        missing = [part for part in parts if part not in table.column_names]
        if missing:
            hint = nearest(missing[0], table.column_names)
            findings.append(failed("slice_column", f"declared slice column {missing[0]} is missing ({hint})", slice_=f"{name}=*"))
            continue
        column = _cross(name, [_slice_column(table[part], part, policy) for part in parts], policy)
        if len(column.values) > 1 or declared:
            found.append(column)
    return found


def _slice_candidates(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in _OWN and not name.startswith(_PREFIXES)]


def _slice_column(column: pa.ChunkedArray, name: str, policy: GatePolicy) -> SliceColumn:
    code_N, values = _codes(column, name)
    number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)
    if number and len(values) > (policy.max_slice_values if pa.types.is_integer(column.type) else policy.numeric_bins * 2):
        return _binned(_to_floats(column, name), name, policy.numeric_bins)
    return SliceColumn(name, code_N, [_text(value) for value in values])


def _binned(x_N: np.ndarray, name: str, bins: int) -> SliceColumn:
    known_N = x_N[np.isfinite(x_N)]
    edges = np.unique(np.quantile(known_N, np.linspace(0, 1, bins + 1)[1:-1])) if len(known_N) else np.zeros(0)
    group_N = np.where(np.isfinite(x_N), np.searchsorted(edges, x_N, side="right"), len(edges) + 1)
    bounds = ["-inf", *(f"{edge:.6g}" for edge in edges), "inf"]
    labels = [f"[{low},{high})" for low, high in pairwise(bounds)]
    return SliceColumn(name, group_N, [*labels, "null"])


def _cross(name: str, parts: Sequence[SliceColumn], policy: GatePolicy) -> SliceColumn:
    """Crosses columns and keeps the largest values; what is beyond `max_slice_values` becomes one slice ``(rest)``."""
    code_N, values = parts[0].group_N, parts[0].values
    for part in parts[1:]:
        code_N = code_N * len(part.values) + part.group_N
        values = [f"{left}{CROSS}{right}" for left in values for right in part.values]
    count_V = np.bincount(code_N, minlength=len(values))
    kept = np.argsort(-count_V, kind="stable")[: policy.max_slice_values]
    kept = np.sort(kept[count_V[kept] > 0])
    new_V = np.full(len(values), len(kept), np.int64)
    new_V[kept] = np.arange(len(kept))
    rest = ["(rest)"] if count_V.sum() > count_V[kept].sum() else []
    return SliceColumn(name, new_V[code_N], [values[index] for index in kept.tolist()] + rest)


def _numbers(table: pa.Table) -> dict[str, np.ndarray]:
    """Slice columns whose mean over the top of the slates means something: numbers and flags."""
    found = {}
    for name in _slice_candidates(table):
        kind = table[name].type
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and _is_flag(table[name])):
            found[name] = _to_floats(table[name], name)
    return found


def _is_flag(column: pa.ChunkedArray) -> bool:
    extremes = pc.min_max(column)
    return bool(extremes["min"].as_py() == 0 and extremes["max"].as_py() == 1)


def _codes(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, list[object]]:
    """Dense codes in sorted order of the values, so that nothing depends on the order of the rows; null is a value of its own."""
    try:
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    except (pa.ArrowException, AttributeError) as error:
        raise DataError("a column cannot be grouped", where=name, got=str(column.type), expected="numbers, strings or flags") from error
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda i: (values[i] is None, values[i] if values[i] is not None else 0))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], [values[i] for i in order]


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return _to_floats(table[name], name)


def _to_floats(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Values as float64, null as NaN."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    except pa.ArrowException as error:
        raise DataError("a column is not numeric", where=f"predictions, {name}", got=str(column.type), expected="numbers") from error
