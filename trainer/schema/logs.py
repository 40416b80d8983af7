"""The log specification: which column of the user's logs plays which role.

A specification is a YAML mapping (`conf/data/*.yaml`, or the user's own file through ``data.spec=``). The typed loader in
`trainer.config` turns it into a `LogSpec` and refuses unknown keys. Expressions are the small language of
`trainer.schema.expression`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from trainer.errors import ConfigError, nearest
from trainer.schema.expression import columns_of
from trainer.schema.time import parse_duration, timezone
from trainer.schema.validate import choice

LOG_SPEC_VERSION = 1

ACTION_KINDS = ("binary", "count", "duration")
FEATURE_KINDS = ("categorical", "numeric", "list", "vector")
TRANSFORMS = ("none", "log", "logit")
CRITICALITIES = ("required", "important", "optional")
LIST_WIDTH = 8  # distinct values of a list that count, unless its specification says otherwise
_COLUMN_ROLES = (
    "user",
    "item",
    "event_id",
    "request",
    "position",
    "serving_version",
    "experiment_arm",
    "exposure_probability",
    "negative_rate",
)
_PART = re.compile(r"(.+)\[(\d+)\]")


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """Where the partitions lie below `root`: ``<path>/<partition>=YYYY-MM-DD/[hour=HH/]*.<format>``; links are followed.

    Attributes:
        path: Folder below the root that holds the day folders.
        partition: Key of the day folders (``dt`` for ``dt=2022-05-01``).
        format: ``parquet`` or ``csv``.
        success_marker: Whether a day counts as delivered only once it holds a file ``_SUCCESS``.
        manifest: Optional file in a day folder that lists its files: JSON ``{"files": {name: {"sha256", "rows", "bytes"}}}``.
    """

    path: str = "."
    partition: str = "dt"
    format: str = "parquet"
    success_marker: bool = False
    manifest: str | None = None

    def __post_init__(self) -> None:
        choice("data.layout.format", self.format, ("parquet", "csv"))


@dataclass(frozen=True, kw_only=True)
class TimeSpec:
    """An instant: a column with a unit, or an expression that yields epoch milliseconds.

    Attributes:
        column: Column with integer ticks or an Arrow timestamp.
        unit: Unit of integer ticks (s, ms, us, ns); an Arrow timestamp brings its own.
        expression: Instead of a column: epoch milliseconds as an expression.
        delay: Added to it (``known_at`` as a fixed delay after the event: give only `delay`).
    """

    column: str | None = None
    unit: str = "ms"
    expression: str | None = None
    delay: str = "0"

    def __post_init__(self) -> None:
        choice("data.*.unit", self.unit, ("s", "ms", "us", "ns"))
        parse_duration(self.delay, "data.*.delay")
        if self.column and self.expression:
            raise ConfigError("an instant has a column or an expression, not both", got=f"{self.column}, {self.expression}")

    @property
    def delay_ms(self) -> int:
        return parse_duration(self.delay)


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """A label: what the user did with the item.

    Attributes:
        expression: Value of the action; nulls stay null (unknown).
        kind: ``binary`` (0/1), ``count`` (Poisson) or ``duration`` (seconds, log-normal).
        maturity: Time after the event until the value is final ("ripe").
        weight: Weight in the value function (`conf/value`), unless that names its own.
        gated: Whether the gate judges it, and whether the holdout waits for it to be ripe.
        history: Whether history tokens carry it. A token becomes available when all its history actions are ripe.
    """

    expression: str
    kind: str = "binary"
    maturity: str = "0"
    weight: float = 0.0
    gated: bool = True
    history: bool = True

    def __post_init__(self) -> None:
        choice("data.actions.*.kind", self.kind, ACTION_KINDS)
        parse_duration(self.maturity, "data.actions.*.maturity")

    @property
    def maturity_ms(self) -> int:
        return parse_duration(self.maturity)


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """A feature column that is known at request time.

    Attributes:
        expression: Value; defaults to the column of the same name.
        kind: ``categorical``, ``numeric``, ``list`` (any number of categories: the tags of a video) or ``vector`` (a fixed number of
            numbers: the embedding of a text). The column of a list or vector holds Arrow lists, or text: a JSON array such as [1, 2].
        transform: For numbers: ``log`` (signed log1p), ``logit`` (of a rate) or ``none``; then standardised.
        minimum: Values below are masked (null), counted; a vector with one such number is masked as a whole.
        maximum: Values above likewise.
        criticality: ``required`` (a damaged feature refuses the day), ``important`` or ``optional`` (masked).
        token: Whether history tokens carry it too (categories and lists), say the surface on which an item was shown.
        width: Of a vector: how many numbers each has (must be given). Of a list: how many of its distinct values count, the first ones
            of longer lists (8).
    """

    expression: str | None = None
    kind: str = "categorical"
    transform: str = "none"
    minimum: float | None = None
    maximum: float | None = None
    criticality: str = "optional"
    token: bool = False
    width: int | None = None

    def __post_init__(self) -> None:
        choice("data.features.*.kind", self.kind, FEATURE_KINDS)
        choice("data.features.*.transform", self.transform, TRANSFORMS)
        choice("data.features.*.criticality", self.criticality, CRITICALITIES)
        if self.token and self.kind not in ("categorical", "list"):
            raise ConfigError("only a categorical feature or a list can be carried by history tokens", where="data.features.*.token")
        self._check_width()

    def _check_width(self) -> None:
        if self.is_listed and self.expression is not None and not self.expression.isidentifier():
            raise ConfigError("a list or vector is a column as it stands", where="data.features.*.expression", got=self.expression)
        if self.kind == "list" and (self.transform, self.minimum, self.maximum) != ("none", None, None):
            raise ConfigError("a list of categories has no transform and no range", where="data.features.*", got=f"kind {self.kind}")
        if self.kind == "vector" and self.width is None:
            raise ConfigError("a vector needs a width", where="data.features.*.width", remedy="say how many numbers every vector has")
        if self.width is None:
            return
        if self.kind not in ("list", "vector"):
            raise ConfigError("only a list or a vector has a width", where="data.features.*.width", got=f"kind {self.kind}")
        if self.width < 1:
            raise ConfigError("a width must be at least 1", where="data.features.*.width", got=self.width)

    @property
    def is_listed(self) -> bool:
        """Whether a cell of the source column holds several values."""
        return self.kind in ("list", "vector")

    def parts(self, name: str) -> dict[str, ColumnSpec]:
        """Returns the features that the feature called `name` is in examples: itself, or one for each number or value.

        A vector is `width` numeric features, a list `width` categorical ones that share a vocabulary and a table; what knows numbers
        and categories (statistics, encoding, warm start, serving) therefore knows vectors and lists.
        """
        if not self.is_listed:
            return {name: self}
        kind = "numeric" if self.kind == "vector" else "categorical"
        one = replace(self, kind=kind, width=None)
        return {part_name(name, index): one for index in range(self.width or LIST_WIDTH)}


def part_name(name: str, index: int) -> str:
    """Returns the name of one number of a vector, or of one value of a list."""
    return f"{name}[{index}]"


def whole_name(name: str) -> str:
    """Returns the vector or list that a feature is a part of; any other feature's own name."""
    found = _PART.fullmatch(name)
    return found[1] if found else name


def is_further_part(name: str) -> bool:
    """Tells whether a feature is a part behind the first: of a list, one that shorter lists do not have."""
    found = _PART.fullmatch(name)
    return bool(found) and int(found[2]) > 0  # type: ignore[index]


def whole_names(names: Iterable[str]) -> list[str]:
    """Returns the features that some features are or are parts of, without repeats, in order."""
    return list(dict.fromkeys(map(whole_name, names)))


def parts_of(columns: Mapping[str, ColumnSpec]) -> dict[str, ColumnSpec]:
    """Returns the features that declared ones are in examples (`ColumnSpec.parts`)."""
    return {part: spec for name, column in columns.items() for part, spec in column.parts(name).items()}


def _check_feature_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if whole_name(name) != name:
            raise ConfigError(
                "a feature is called like a part of a list or vector", where=where, got=name,
                remedy=f"give it another name and the column as its expression; or declare {whole_name(name)} as a list or vector",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SideTableSpec:
    """A table joined by user or item.

    Every side table says when a row became valid; one that does not is refused, because a table rebuilt later carries the
    future (for example whole-month aggregates).

    Attributes:
        path: Parquet file below the data root.
        entity: ``user`` or ``item``.
        key: Column that holds the entity's id.
        columns: Feature name -> column.
        valid_from: Instant from which a row may be seen; several rows an entity make a history, joined as-of.
        static: Promise that the table holds only facts that never change and were known before the first event.
    """

    path: str
    entity: str
    key: str
    columns: dict[str, ColumnSpec]
    valid_from: TimeSpec | None = None
    static: bool = False

    def __post_init__(self) -> None:
        choice("data.side_tables.*.entity", self.entity, ("user", "item"))
        if self.valid_from is None and not self.static:
            raise ConfigError(
                "a side table without validity time could carry the future into the past",
                where=f"data.side_tables ({self.path})",
                expected="valid_from (an instant per row), or static: true for facts that never change",
                remedy="point valid_from at the column that says since when the row was known; never declare aggregates static",
            )
        _check_feature_names(f"data.side_tables ({self.path}).columns", self.columns)
        if self.valid_from is not None and self.static:
            raise ConfigError("a side table is static or has valid_from, not both", where=f"data.side_tables ({self.path})")


@dataclass(frozen=True, kw_only=True)
class PriorHistorySpec:
    """A clockless history from before the log starts: ordered item ids per user, no times.

    Attributes:
        path: Parquet file below the data root.
        key: User column.
        sequence: List column with item ids in time order (oldest first).
        actions: Action -> list column with the ids that had it; membership sets the token's action bit (unknown elsewhere).
    """

    path: str
    key: str
    sequence: str
    actions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """How fresh histories are in production.

    Attributes:
        mode: ``realtime`` (an event is seen `delay` after it became available) or ``snapshot`` (at the first snapshot after).
        delay: Pipeline delay.
        period: Distance of snapshots, counted from midnight in the data's timezone.
    """

    mode: str = "realtime"
    delay: str = "0"
    period: str = "1d"

    def __post_init__(self) -> None:
        choice("data.serving.mode", self.mode, ("realtime", "snapshot"))
        if self.mode == "snapshot" and parse_duration(self.period, "data.serving.period") == 0:
            raise ConfigError("snapshots need a period", where="data.serving.period", got=self.period)


@dataclass(frozen=True, kw_only=True)
class NegativesSpec:
    """Negatives for click-only logs, drawn by a declared sampler, with the event's user, time and context.

    Attributes:
        per_positive: Negatives drawn for each event.
        sampler: ``recent_popularity`` (share of events in the trailing window) or ``uniform`` (items seen in the window).
        window: How far back items count as candidates; only events known before the positive count.
        rate: Sampling rate that turns the sampled odds into served odds; null when scores stay on the sampled scale.
    """

    per_positive: int = 4
    sampler: str = "recent_popularity"
    window: str = "1d"
    rate: float | None = None

    def __post_init__(self) -> None:
        choice("data.negatives.sampler", self.sampler, ("recent_popularity", "uniform"))
        if self.per_positive < 1:
            raise ConfigError("negatives per positive must be at least 1", where="data.negatives.per_positive", got=self.per_positive)


@dataclass(frozen=True, kw_only=True)
class LogSpec:
    """All roles of one log.

    Attributes:
        name: Name of the log, for reports.
        root: Folder that holds everything.
        spec: Path of the user's own specification, if it came from ``data.spec=``.
        layout: Partitions and format.
        timezone: IANA timezone of the business day.
        user: Column with the user id.
        item: Column with the item id.
        event_time: When it happened.
        request_time: When the slate was asked for; default: the event time.
        known_at: When the row became visible to pipelines; default: the event time. Never before the event.
        event_id: Column that identifies a delivery; default key of duplicates: (user, item, event time).
        request: Optional column that groups a slate.
        actions: Labels by name.
        features: Columns known at request time, by feature name.
        side_tables: Tables joined by user or item.
        prior_history: Ordered ids from before the log.
        serving: Freshness of histories in production.
        negatives: Sampler for click-only logs.
        logged_scores: Action -> column (or expression) with production's score as logged: of a binary action, a probability.
        logged_features: Rebuilt feature -> column (or expression) with the value that production used; compared, never trained on.
        carried: Output name -> column that is carried to examples for slices and analysis only, never a feature.
        position: Optional column with the position in the slate (carried; a feature only if declared one).
        serving_version: Optional column with the version that served the row (carried).
        experiment_arm: Optional column with the arm of an experiment (carried).
        exposure_probability: Optional column with the logging policy's propensity (carried).
        negative_rate: Optional column with the rate at which this row survived down-sampling: weight 1/rate.
    """

    name: str
    root: str
    spec: str | None = None
    version: int = LOG_SPEC_VERSION
    layout: LayoutSpec = field(default_factory=LayoutSpec)
    timezone: str = "UTC"
    user: str
    item: str
    event_time: TimeSpec
    request_time: TimeSpec | None = None
    known_at: TimeSpec | None = None
    event_id: str | None = None
    request: str | None = None
    actions: dict[str, ActionSpec]
    features: dict[str, ColumnSpec] = field(default_factory=dict)
    side_tables: dict[str, SideTableSpec] = field(default_factory=dict)
    prior_history: PriorHistorySpec | None = None
    serving: ServingSpec = field(default_factory=ServingSpec)
    negatives: NegativesSpec | None = None
    logged_scores: dict[str, str] = field(default_factory=dict)
    logged_features: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)
    position: str | None = None
    serving_version: str | None = None
    experiment_arm: str | None = None
    exposure_probability: str | None = None
    negative_rate: str | None = None

    def __post_init__(self) -> None:
        timezone(self.timezone)
        if not self.actions:
            raise ConfigError("a log needs at least one action", where="data.actions")
        _check_feature_names("data.features", self.features)
        self._check_lists()
        for action in self.logged_scores:
            if action not in self.actions:
                raise ConfigError(
                    "logged score for an unknown action", where="data.logged_scores", got=action, remedy=nearest(action, self.actions)
                )

    def _check_lists(self) -> None:
        """Refuses a column of lists that is read as something else too: it has one type over the whole log."""
        listed = {feature.expression or name: name for name, feature in self.features.items() if feature.is_listed}
        others = {name: feature.expression or name for name, feature in self.features.items() if name not in listed.values()}
        others |= {name: action.expression for name, action in self.actions.items()} | self.logged_scores | self.logged_features
        others |= self.carried | {role: column for role in _COLUMN_ROLES if (column := getattr(self, role))}
        twice = {name: column for name, feature in self.features.items() if listed.get(column := feature.expression or name, name) != name}
        read = {name: columns_of(source) & set(listed) for name, source in others.items()} | {name: {one} for name, one in twice.items()}
        for name, columns in read.items():
            if columns:
                raise ConfigError(
                    "a column of lists has another role too", where=f"data: {name}", got=min(columns),
                    expected=f"only the feature {listed[min(columns)]}", remedy="write what else is needed into a column of its own",
                )  # fmt: skip

    @property
    def parts(self) -> dict[str, ColumnSpec]:
        """The log's own features as examples hold them: a vector's numbers and a list's values one by one."""
        return parts_of(self.features)

    @property
    def all_parts(self) -> dict[str, ColumnSpec]:
        """The features of the log, then those of side tables, as examples hold them."""
        return {**self.parts, **{part: one for table in self.side_tables.values() for part, one in parts_of(table.columns).items()}}

    @property
    def gated_actions(self) -> list[str]:
        return [name for name, action in self.actions.items() if action.gated]

    @property
    def history_actions(self) -> list[str]:
        return [name for name, action in self.actions.items() if action.history]

    @property
    def history_maturity_ms(self) -> int:
        """Time after an event until its history token is complete."""
        return max((self.actions[name].maturity_ms for name in self.history_actions), default=0)
