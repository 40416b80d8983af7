"""Which source columns a log specification reads, and how much depends on each."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.schema.expression import columns_of
from trainer.schema.logs import LogSpec, TimeSpec

KEY = "key"  # without it a row is no event
TIME = "time"
LABEL = "label"
REQUIRED = "required"  # a feature that refuses the day
FEATURE = "feature"  # masked where damaged
EXTRA = "extra"  # carried columns, logged scores

CRITICAL = (KEY, TIME, LABEL)
_RANK = (KEY, TIME, LABEL, REQUIRED, FEATURE, EXTRA)


def source_columns(spec: LogSpec) -> dict[str, str]:
    """Returns every source column that the specification maps -> its role; the most critical role wins. Sorted by name."""
    roles: dict[str, str] = {}

    def add(role: str, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in roles or _RANK.index(role) < _RANK.index(roles[column]):
                roles[column] = role

    add(KEY, [spec.user, spec.item, *([spec.event_id] if spec.event_id else [])])
    for instant in (spec.event_time, spec.request_time, spec.known_at):
        add(TIME, time_columns(instant))
    for action in spec.actions.values():
        add(LABEL, columns_of(action.expression))
    for name, feature in spec.features.items():
        add(REQUIRED if feature.criticality == "required" else FEATURE, columns_of(feature.expression or name))
    optional = (spec.request, spec.position, spec.serving_version, spec.experiment_arm, spec.exposure_probability, spec.negative_rate)
    add(EXTRA, [column for column in optional if column])
    add(EXTRA, [*spec.carried.values()])
    for source in (*spec.logged_scores.values(), *spec.logged_features.values()):
        add(EXTRA, columns_of(source))
    return dict(sorted(roles.items()))


def time_columns(instant: TimeSpec | None) -> list[str]:
    """Returns the source columns of an instant."""
    if instant is None:
        return []
    if instant.expression:
        return sorted(columns_of(instant.expression))
    return [instant.column] if instant.column else []


def tick_units(spec: LogSpec) -> dict[str, str]:
    """Returns the columns that hold raw ticks -> declared unit."""
    instants = (spec.event_time, spec.request_time, spec.known_at)
    return {instant.column: instant.unit for instant in instants if instant is not None and instant.column}


def carried_columns(spec: LogSpec) -> dict[str, str]:
    """Returns the name after ``carried_`` -> source column: those declared, then position, version, arm and propensity."""
    fixed = {
        "position": spec.position,
        "serving_version": spec.serving_version,
        "experiment_arm": spec.experiment_arm,
        "exposure_probability": spec.exposure_probability,
    }
    return {**spec.carried, **{name: column for name, column in fixed.items() if column}}
