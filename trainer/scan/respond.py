"""What is done about suspicions: which cells, columns, rows and days go, by policy and by how much depends on a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trainer.config import ScanConfig
from trainer.logs.roles import KEY, LABEL, REQUIRED
from trainer.scan.suspicion import Suspicion
from trainer.schema.health import CellRule, Fault, Notice

COUNT, MASK, ROW, REFUSE, STOP = "count", "mask", "quarantine_row", "refuse_day", "stop"

_DEFAULTS = {
    "null_spike": COUNT, "missing_hours": MASK, "out_of_order": COUNT, "label_leak": STOP, "future_leakage": STOP, "bot_user": ROW,
    "out_of_range_id": ROW, "label_flip": REFUSE, "label_noise": REFUSE, "labels_all_zero": REFUSE,
}  # fmt: skip
_SOFT = ("unit_change", "shuffled_column", "resalted_ids", "sentinel_spike")  # what a world that moved can look like


@dataclass(frozen=True)
class Response:
    """What is done about a day.

    Attributes:
        masked: Columns that are null for the day.
        rules: Cells and rows.
        faults: Rows of the ledger that no rule will write.
        accused: Columns that must not enter the history.
        notices: What is only told.
    """

    masked: list[str] = field(default_factory=list)
    rules: list[CellRule] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    accused: frozenset[str] = frozenset()
    notices: list[Notice] = field(default_factory=list)


def respond(
    day: str, suspicions: Sequence[Suspicion], roles: Mapping[str, str], vital: set[str], ranks: bool, config: ScanConfig
) -> Response:
    """Decides what is done.

    Args:
        day: Business day.
        suspicions: What detectors say.
        roles: Monitored source column -> role.
        vital: Label columns that are trained or judged on.
        ranks: Whether production, or the counting model, still ranks the day's labels.
        config: Policy.
    """
    notices = [Notice(kind=one.kind, day=day, what=one.evidence, evidence=one.unsure) for one in suspicions if one.unsure]
    sure = [one for one in suspicions if not one.unsure]
    response = Response(accused=frozenset(one.feature for one in sure if one.feature), notices=notices)
    features = [name for name, role in roles.items() if role not in (KEY, LABEL)]
    together = _moved_together(sure, len(features), ranks, config)
    for one in sure:
        if one in together:
            fault = _fault(day, replace(one, kind="moved_together", evidence=f"{one.kind}: {one.evidence}; production still ranks"), COUNT)
            response = replace(response, faults=[*response.faults, fault])
        else:
            response = _answered(response, day, one, roles, vital, config)
    return response


def action_of(one: Suspicion, roles: Mapping[str, str], vital: set[str], config: ScanConfig) -> str:
    """Returns what policy and the column's role ask for: a key or a trained label cannot be null, so its day is refused.

    Users or items under new names are strangers, not lies: their rows teach the rest, and refusing the day costs more than keeping it
    (`scripts/bench/garbage_days.py`). Users under one name are made strangers (`trainer.logs.treat`) for the same reason.
    """
    if one.kind == "resalted_ids" and roles.get(one.feature or "") == KEY and one.kind not in config.actions:
        return COUNT
    action = config.actions.get(one.kind, _DEFAULTS.get(one.kind, MASK))
    if one.feature is None or action in (COUNT, STOP, REFUSE):
        needed = roles.get(one.feature or "") == REQUIRED and one.kind == "null_spike"
        spared = action == REFUSE and one.kind not in config.actions and roles.get(one.feature or "") == LABEL and one.feature not in vital
        return REFUSE if needed else MASK if spared else action
    role = roles.get(one.feature)
    if one.names_cells:
        return ROW if action == ROW and role == KEY else MASK
    return REFUSE if role in (KEY, REQUIRED) or one.feature in vital else MASK


def released(fault: Fault, config: ScanConfig) -> bool:
    """Tells whether somebody has looked at this fault and lets its rows go."""
    return any(
        release.day == fault.day and release.kind == fault.kind
        and release.feature in (None, fault.feature) and release.file in (None, fault.file)
        for release in config.releases
    )  # fmt: skip


def repairs_of(day: str, config: ScanConfig) -> list[CellRule]:
    """Returns the declared repairs that cover a day."""
    return [
        CellRule(
            kind="repaired", feature=rule.feature, multiply=rule.multiply,
            evidence=f"multiplied by {rule.multiply:g}, declared for {rule.first_day} to {rule.last_day}",
        )
        for rule in config.repairs
        if rule.first_day <= day <= rule.last_day
    ]  # fmt: skip


def _answered(response: Response, day: str, one: Suspicion, roles: Mapping[str, str], vital: set[str], config: ScanConfig) -> Response:
    action = action_of(one, roles, vital, config)
    fault = _fault(day, one, action)
    if released(fault, config):
        evidence = f"released: {one.evidence}"
        return replace(response, faults=[*response.faults, replace(fault, action=COUNT, evidence=evidence)])
    if one.names_cells and action in (ROW, MASK):
        return replace(response, rules=[*response.rules, _rule(one, drop=action == ROW)])
    masked = [*response.masked, one.feature] if action == MASK and one.feature else response.masked
    return replace(response, masked=masked, faults=[*response.faults, fault])


def _rule(one: Suspicion, drop: bool) -> CellRule:
    low, high = one.bounds or (None, None)
    return CellRule(
        kind=one.kind, feature=one.feature or "", evidence=one.evidence, file=one.file, drop=drop, minimum=low, maximum=high,
        values=one.values, from_ms=one.from_ms,
    )  # fmt: skip


def _fault(day: str, one: Suspicion, action: str) -> Fault:
    return Fault(kind=one.kind, day=day, file=one.file, feature=one.feature, rows=one.rows, action=action, evidence=one.evidence)


def _moved_together(suspicions: Sequence[Suspicion], features: int, ranks: bool, config: ScanConfig) -> list[Suspicion]:
    """Returns the suspicions that are the world's doing: so many columns moved at once, and production still ranks.

    A broken join does not move features, it empties them; and nobody ranks labels that were written wrong.
    """
    soft = [one for one in suspicions if one.kind in _SOFT]
    many = len(soft) >= 2 and len(soft) > config.max_masked_features_share * features
    return soft if many and ranks and len(soft) == len([one for one in suspicions if one.feature]) else []
