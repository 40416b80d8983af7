"""The predictions as the gate sees them: typed columns, codes of users and slates, slice columns, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

from trainer.errors import DataError, nearest
from trainer.gate.column import codes, floats
from trainer.gate.contents import Content, content_columns, contents
from trainer.gate.slices import SliceColumn, fault_check, slice_columns
from trainer.schema import predictions as names
from trainer.schema.policy import GatePolicy
from trainer.schema.time import DAY_MS
from trainer.schema.verdict import Check

BINARY = "binary"
COUNT = "count"
REQUEST = "request"
PAIR = (names.PRODUCTION, names.CHALLENGER)
ID_CONTENTS = ("author", "topic")  # ids of many values, judged as composition and not as slices unless slices say so


@dataclass(frozen=True)
class ActionColumns:
    """One judged action.

    Attributes:
        name: Action.
        kind: ``binary`` if labels are 0/1 and production's scores lie in [0, 1], else ``count`` (any expectation).
        label_N: Outcomes, NaN where not ripe.
        scores: Prefix (`production_`, ...) -> scores; only columns that exist and are finite.
        means: The same on the label's scale, for loss and calibration; empty where scores are uncalibrated.
    """

    name: str
    kind: str
    label_N: np.ndarray
    scores: dict[str, np.ndarray]
    means: dict[str, np.ndarray]


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
        contents: What slates are made of.
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
    contents: list[Content]
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


def prepare(table: pa.Table, policy: GatePolicy, slices: Sequence[SliceColumn] | None = None) -> Predictions:
    """Turns a table into what the checks read.

    Args:
        table: The predictions.
        policy: What is judged, and into which slices the rows fall.
        slices: Slice columns of these rows, where they were made on a larger table (see `sliced`); default: made of this one.

    Raises:
        DataError: If there is no user column, no judged action, or a column has a type that cannot be judged.
    """
    findings: list[Check] = []
    if "user" not in table.column_names:
        raise DataError("a column is missing", where="predictions", got="no column user", remedy=nearest("user", table.column_names))
    user_N, _ = codes(table["user"], "user")
    slate_N, slates = _slates(table, user_N)
    weight_N = _weights(table, findings)
    actions = [_action(table, name, policy.score_kind, findings) for name in _action_names(table, policy, findings)]
    if not actions:
        raise DataError(
            "nothing can be judged", where="predictions", got=f"columns {', '.join(table.column_names)}",
            expected="label_<action> and challenger_<action> for at least one action",
        )  # fmt: skip
    item_N = codes(table["item"], "item")[0] if "item" in table.column_names else None
    columns, missing = content_columns(table, policy)
    if slices is None:
        slices, faults = slice_columns(table, policy, ids=[columns[content] for content in ID_CONTENTS if content in columns])
        findings += [fault_check(fault) for fault in faults]
    findings += [failed("composition", sentence, family="slate") for sentence in missing]
    return Predictions(
        rows=table.num_rows, user_N=user_N, slate_N=slate_N, weight_N=weight_N, item_N=item_N, actions=actions,
        value=_value(table, actions, findings), slices=list(slices), contents=contents(table, columns, item_N), slates=slates,
        findings=findings,
    )  # fmt: skip


def compared_rows(table: pa.Table, policy: GatePolicy) -> tuple[pa.Table, list[Check]]:
    """Leaves out the rows that production has no score for, if they are few enough, and says so in a check.

    Nulls are what an incumbent's log has where something else answered the request. Beyond `policy.unscored_share` nothing is left
    out, and the nulls fail as unsound scores do.
    """
    unscored_N = names.unscored(table)
    left, share = int(unscored_N.sum()), float(unscored_N.mean()) if len(table) else 0.0
    if not left or share > policy.unscored_share:
        return table, []
    sentence = f"production has no score in {left:,} of {len(table):,} rows: they are left out of every comparison"
    check = Check(
        name="unscored", family="data", estimate=share, margin=policy.unscored_share, n=len(table), outcome="pass", severity="info",
        sentence=sentence,
    )  # fmt: skip
    return table.filter(pa.array(~unscored_N)), [check]


def sliced(table: pa.Table, policy: GatePolicy) -> list[SliceColumn]:
    """Returns the slice columns of a table alone.

    A part of the table needs them to have the same slices: bins of equal mass, and the largest values of a column, are its own otherwise.

    Raises:
        ConfigError: If a declared slice cannot be read as one.
    """
    columns, _ = content_columns(table, policy)
    return slice_columns(table, policy, ids=[columns[content] for content in ID_CONTENTS if content in columns])[0]


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
    for column in sorted(columns):
        name = column.removeprefix(names.CHALLENGER)
        if name != column and policy.actions is None and names.LABEL + name not in columns:
            findings.append(
                not_applicable("columns", "data", f"{column} has no {names.LABEL}{name} beside it and is not judged", action=name)
            )
    return judged


def _action(table: pa.Table, name: str, score_kind: str, findings: list[Check]) -> ActionColumns:
    label_N = floats(table[names.LABEL + name], names.LABEL + name)
    known_N = label_N[~np.isnan(label_N)]
    columns = {prefix: floats(table[prefix + name], prefix + name) for prefix in names.SCORES if prefix + name in table.column_names}
    above_one = (columns.get(names.PRODUCTION, np.zeros(0)) > 1).any()
    kind = BINARY if np.isin(known_N, (0.0, 1.0)).all() and not (above_one and score_kind == "probability") else COUNT
    if len(known_N) and not (np.isfinite(known_N).all() and known_N.min() >= 0):
        findings.append(failed("labels", f"label_{name} holds a negative or infinite value", action=name, n=len(known_N)))
        return ActionColumns(name, kind, np.full(len(label_N), np.nan), {}, {})
    free = kind == BINARY and score_kind != "probability"
    sound = {}
    for prefix, score_N in columns.items():
        fault = _fault(score_N, kind, free)
        column = prefix + name
        if np.isfinite(score_N).all():
            sound[prefix] = score_N  # out of range is a failure, but what else it breaks can still be measured
        if fault is None:
            continue
        if prefix in (names.PRODUCTION, names.CHALLENGER, names.REFERENCE):
            some = prefix == names.PRODUCTION and 0 < table[column].null_count < len(table)
            remedy = "; gate.unscored_share=SHARE leaves out rows that production did not score (null)" if some else ""
            findings.append(failed("scores", f"{column} {fault}{remedy}", action=name, n=len(score_N)))
        else:
            findings.append(not_applicable("scores", "data", f"{column} {fault}", action=name))
    return ActionColumns(name, kind, label_N, sound, _means(sound, score_kind) if free else sound)


def _means(scores: dict[str, np.ndarray], score_kind: str) -> dict[str, np.ndarray]:
    if score_kind == "uncalibrated":
        return {}
    return {prefix: expit(score_N) for prefix, score_N in scores.items()}


def _fault(score_N: np.ndarray, kind: str, free: bool) -> str | None:
    bad = int((~np.isfinite(score_N)).sum())
    if bad:
        return f"is null, NaN or infinite in {bad:,} of {len(score_N):,} rows"
    lowest, highest = float(score_N.min(initial=0.0)), float(score_N.max(initial=0.0))
    if free:
        return None
    if kind == BINARY and (lowest < 0 or highest > 1):
        return f"lies in [{lowest:.4g}, {highest:.4g}], but a probability was expected (see gate.score_kind)"
    if lowest < 0:
        return f"goes down to {lowest:.4g}, but an expectation of a label that is never negative was expected"
    return None


def _value(table: pa.Table, actions: Sequence[ActionColumns], findings: list[Check]) -> dict[str, np.ndarray]:
    """Value function of the scores, by prefix; without value columns the scores of an only action are its value."""
    pairs = {
        names.PRODUCTION: names.VALUE_PRODUCTION, names.CHALLENGER: names.VALUE_CHALLENGER, names.REFERENCE: names.VALUE_REFERENCE,
    }  # fmt: skip
    found = {prefix: floats(table[column], column) for prefix, column in pairs.items() if column in table.column_names}
    if not found and len(actions) == 1:
        return {prefix: score_N for prefix, score_N in actions[0].scores.items() if prefix in pairs} if _compared(actions[0].scores) else {}
    for prefix, value_N in found.items():
        bad = int((~np.isfinite(value_N)).sum())
        if bad:
            findings.append(failed("scores", f"{pairs[prefix]} is null, NaN or infinite in {bad:,} rows", action="value", n=len(value_N)))
            return {}
    return found if _compared(found) else {}


def _compared(scores: dict[str, np.ndarray]) -> bool:
    return names.PRODUCTION in scores and names.CHALLENGER in scores


def _weights(table: pa.Table, findings: list[Check]) -> np.ndarray:
    if names.WEIGHT not in table.column_names:
        return np.ones(table.num_rows)
    weight_N = floats(table[names.WEIGHT], names.WEIGHT)
    if np.isfinite(weight_N).all() and (weight_N >= 0).all():
        return weight_N
    findings.append(failed("weights", "weight is null, negative or not finite in some rows", n=table.num_rows))
    return np.ones(table.num_rows)


def _slates(table: pa.Table, user_N: np.ndarray) -> tuple[np.ndarray, str]:
    """Slate codes; without a request id a slate is what one user was shown on one day (UTC)."""
    if "request" in table.column_names and table["request"].null_count == 0:
        return codes(table["request"], "request")[0], REQUEST
    if "time" not in table.column_names:
        return user_N, "user"
    time = table["time"]
    if pa.types.is_timestamp(time.type):
        time = time.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())  # finer ticks are floored
    day_N = np.nan_to_num(floats(time, "time") // DAY_MS).astype(np.int64)
    days, day_N = np.unique(day_N, return_inverse=True)
    return np.unique(user_N * max(len(days), 1) + day_N, return_inverse=True)[1], "user-day"
