"""Declared point-in-time features: counters over entities and windows.

A counter is evaluated at a request time t over the events of one entity (a column, or a cross of columns) with
``event_time < t``, ``event_time >= t - window`` and ``known_at <= t``; an outcome counts once it is ripe,
``max(known_at, event_time + maturity) <= t``. Side-table columns and log columns are declared in the log
specification; this file declares what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.errors import ConfigError, nearest
from trainer.schema.time import parse_duration
from trainer.schema.validate import share

COUNTER_KINDS = ("count", "sum", "rate", "mean", "recency", "distinct")


@dataclass(frozen=True, kw_only=True)
class CounterSpec:
    """One declared counter.

    Attributes:
        kind: ``count`` of events (or of events whose `action` is positive), ``sum`` of an action, ``rate`` (smoothed share of
            a binary action among ripe events), ``mean`` (smoothed mean of an action among ripe events), ``recency`` (hours since
            the entity's last such event), ``distinct`` (distinct values of `of`).
        entity: Names whose combination is the key: ``user``, ``item``, a categorical feature of the log or of a side table
            (``author``, ``tab``). Empty: everything.
        action: Action that is counted; null counts impressions.
        window: How far back, for example ``7d``. Always bounded.
        of: For ``distinct``: the name whose values are counted.
        prior: For ``rate`` and ``mean``: pseudo-count of the parent's rate.
        parent: For ``rate`` and ``mean``: entity whose rate is the prior mean (default: everything).
        transform: Numeric transform before standardising: ``log``, ``logit`` or ``none``; the default follows the kind.
        coverage_floor: Share of the window that must be countable, in place of ``rebuild.coverage_floor``; 0 never masks.
    """

    kind: str
    entity: list[str] = field(default_factory=list)
    action: str | None = None
    window: str = "7d"
    of: str | None = None
    prior: float = 20.0
    parent: list[str] | None = None
    transform: str | None = None
    coverage_floor: float | None = None

    def __post_init__(self) -> None:
        where = "features.counters"
        if self.kind not in COUNTER_KINDS:
            raise ConfigError("unknown counter kind", where=where, got=self.kind, remedy=nearest(self.kind, COUNTER_KINDS))
        if parse_duration(self.window, f"{where}.*.window") == 0:
            raise ConfigError("a window must be positive", where=f"{where}.*.window", got=self.window)
        if (self.kind == "distinct") != (self.of is not None):
            raise ConfigError("`of` belongs to distinct counters and only to them", where=where, got=f"kind={self.kind}, of={self.of}")
        if self.coverage_floor is not None:
            share(f"{where}.*.coverage_floor", self.coverage_floor)
        if self.kind in ("sum", "rate", "mean") and self.action is None:
            raise ConfigError(f"a {self.kind} needs an action", where=where)

    @property
    def window_ms(self) -> int:
        return parse_duration(self.window)

    @property
    def numeric_transform(self) -> str:
        """Transform applied before standardising."""
        return self.transform or {"rate": "logit", "mean": "log"}.get(self.kind, "log")


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The declared features of one model.

    Attributes:
        counters: Feature name -> counter. The name is the feature's identity: change the definition, change the name.
        auto: Derive rates and counts by user, item and each categorical log feature for every gated binary action,
            on top of `counters` (for a log of one's own without declared features).
        calendar: Whether hour of day and day of week (in the log's timezone) are categorical features.
        coverage: Whether each distinct window emits the share of it that could be counted (see `trainer.rebuild.coverage`).
    """

    counters: dict[str, CounterSpec] = field(default_factory=dict)
    auto: bool = False
    calendar: bool = True
    coverage: bool = True
