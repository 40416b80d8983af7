"""What is different about the judged days: features that moved, and labels compared at equal age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.schema.examples import FEATURE, LABEL
from trainer.schema.logs import whole_name
from trainer.schema.time import day_end_ms

_BINS = 20
_REPORTED = 8
_CALENDAR = ("hour", "weekday")  # a day has one weekday: that it is another than the week's is no drift


def drift(before: pa.Table, after: pa.Table) -> list[dict[str, Any]]:
    """Compares each feature of the training days with the judged ones.

    Args:
        before: Examples of training days.
        after: Examples of the judged days.

    Returns:
        {feature, nulls_before, nulls_after, shift}, most moved first. ``shift`` is the distance of the distributions of known values
        (total variation over equal-mass bins or categories, 0 to 1), of which what rows alone explain is taken off. Calendar
        features are left out; a list or vector is as moved as that of its parts that moved most.
    """
    features = [name for name in after.column_names if name.startswith(FEATURE) and name.removeprefix(FEATURE) not in _CALENDAR]
    shared = [name for name in features if name in before.column_names]
    found = [
        {
            "feature": name.removeprefix(FEATURE), "nulls_before": before[name].null_count / max(len(before), 1),
            "nulls_after": after[name].null_count / max(len(after), 1), "shift": _shift(before[name], after[name]),
        }
        for name in shared
    ]  # fmt: skip
    found.sort(key=lambda entry: -max(abs(entry["nulls_after"] - entry["nulls_before"]), entry["shift"]))
    most: dict[str, dict[str, Any]] = {}
    for entry in found:
        most.setdefault(whole_name(entry["feature"]), entry)
    return list(most.values())[:_REPORTED]


def _shift(before: pa.ChunkedArray, after: pa.ChunkedArray) -> float:
    before, after = before.drop_null(), after.drop_null()
    if not len(before) or not len(after):
        return 0.0
    if pa.types.is_floating(before.type):
        edges = np.unique(np.quantile(before.to_numpy(), np.linspace(0, 1, _BINS + 1)[1:-1]))
        codes = [np.searchsorted(edges, side.to_numpy(), side="right") for side in (before, after)]
    else:
        top = pc.value_counts(before).sort(order="descending", by="counts").field("values")[: _BINS * 5]
        codes = [np.asarray(pc.fill_null(pc.index_in(side, value_set=top), len(top))) for side in (before, after)]
    cells = 1 + max(int(code_N.max()) for code_N in codes)
    share_2B = [np.bincount(code_N, minlength=cells) / len(code_N) for code_N in codes]
    distance = 0.5 * float(np.abs(share_2B[0] - share_2B[1]).sum())
    pooled_B = (share_2B[0] + share_2B[1]) / 2
    noise = float(np.sqrt(pooled_B * (1 - pooled_B) * (1 / len(before) + 1 / len(after)) / (2 * np.pi)).sum())  # half of E|difference|
    return max(0.0, distance - noise)


def cohorts(days: Mapping[str, pa.Table], actions: Sequence[str], known_until_ms: int, zone: str) -> dict[str, dict[str, Any]]:
    """Positive rates of several days, every day's labels taken at the same age.

    A label that is late counts only if it was known as long after its own day's end as the last day's labels can be by now: what a
    young day lacks is left out of the old ones too, so that a difference is not one of waiting.

    Args:
        days: Business day -> its examples, the judged ones last.
        actions: Actions whose labels are 0 or 1.
        known_until_ms: Knowledge cut-off.
        zone: Timezone of the business day.

    Returns:
        Day -> action -> {rate, n}.
    """
    age_ms = known_until_ms - day_end_ms(max(days), zone)
    found: dict[str, dict[str, Any]] = {}
    for day in sorted(days):
        table = days[day]
        known_N = table["known_at"].to_numpy() <= day_end_ms(day, zone) + age_ms
        found[day] = {}
        for action in actions:
            label_N = np.asarray(pc.fill_null(table[LABEL + action].cast(pa.float64()), np.nan))[known_N]
            label_N = label_N[np.isfinite(label_N)]
            found[day][action] = {"rate": float(label_N.mean()) if len(label_N) else None, "n": len(label_N)}
    return found


def odd_cohorts(found: Mapping[str, Mapping[str, Any]], judged: Sequence[str], z: float = 4.0) -> list[str]:
    """Says which judged day's positive rate lies outside what the earlier days show, in units of their spread and of counting noise."""
    told = []
    for day in judged:
        for action, entry in found.get(day, {}).items():
            earlier = [found[other][action]["rate"] for other in found if other not in judged and found[other][action]["rate"] is not None]
            if entry["rate"] is None or len(earlier) < 3:
                continue
            middle = float(np.median(earlier))
            spread = 1.4826 * float(np.median(np.abs(np.array(earlier) - middle)))
            noise = float(np.sqrt(max(middle * (1 - middle), 1e-12) / max(entry["n"], 1)))
            if abs(entry["rate"] - middle) > z * float(np.hypot(max(spread, 0.02 * middle), noise)):
                told.append(f"positives of {action} on {day}: {entry['rate']:.2%} at equal label age, {middle:.2%} on the days before")
    return told
