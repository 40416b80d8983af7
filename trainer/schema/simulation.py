"""The simulated feed: what is asked for (`SimulationSpec`), what is written, and what is reported (`SimulationReport`).

Layout below the output folder::

    events/dt=2026-03-02/part-0.parquet    `EVENTS_SCHEMA`, sorted by event time; the log that a company would have
    events/dt=2026-03-02/_MANIFEST.json    {"files": {name: {"sha256", "rows", "bytes"}}}, taken before a file was damaged
    truth/dt=2026-03-02/part-0.parquet     `TRUTH_SCHEMA`, one row an event that happened; never part of the log
    users.parquet                          `USERS_SCHEMA`, facts that never change
    items.parquet                          `ITEMS_SCHEMA`, with the instant from which each item exists
    simulation.json                        `SimulationReport`
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from trainer.errors import ConfigError, nearest
from trainer.schema.time import add_days, days_between, parse_day, timezone

SIMULATION_VERSION = 1

BINARY_ACTIONS = ("click", "long_view", "like", "follow")
ACTIONS = (*BINARY_ACTIONS, "watch_time")
SCORE = "score_"

EVENTS_SCHEMA = pa.schema(
    [
        ("event_id", pa.int64()),  # request_id * 100 + position: one event, also when it is delivered twice
        ("request_id", pa.int64()),
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("event_time_ms", pa.int64()),
        ("request_time_ms", pa.int64()),
        ("known_at_ms", pa.int64()),
        ("position", pa.int32()),
        ("tab", pa.string()),
        ("country", pa.string()),
        ("device", pa.string()),
        ("duration_s", pa.float32()),
        ("click", pa.int8()),
        ("long_view", pa.int8()),
        ("like", pa.int8()),
        ("follow", pa.int8()),
        ("watch_time_s", pa.float32()),
        *((f"{SCORE}{action}", pa.float32()) for action in ACTIONS),
        ("is_random", pa.int8()),
        ("exposure_probability", pa.float32()),
        ("serving_version", pa.string()),
    ]
)

# True probability of each binary action and true expectation of the watch time (seconds), given all that happened before.
TRUTH_SCHEMA = pa.schema(
    [
        ("event_id", pa.int64()),
        ("request_id", pa.int64()),
        ("item_id", pa.int64()),
        ("position", pa.int32()),
        *((action, pa.float32()) for action in ACTIONS),
    ]
)

USERS_SCHEMA = pa.schema([("user_id", pa.int64()), ("age_band", pa.string()), ("channel", pa.string())])
ITEMS_SCHEMA = pa.schema(
    [("item_id", pa.int64()), ("valid_from_ms", pa.int64()), ("author_id", pa.int64()), ("topic", pa.int64()), ("duration_s", pa.float32())]
)

EVENTS_FOLDER, TRUTH_FOLDER = "events", "truth"
PART_FILE, MANIFEST_FILE, REPORT_FILE = "part-0.parquet", "_MANIFEST.json", "simulation.json"
USERS_FILE, ITEMS_FILE = "users.parquet", "items.parquet"
UNFINISHED_FILE = "_UNFINISHED"  # stands in the output folder while it is written
MAX_SLATE = 100  # event ids leave two digits for the position

# Columns without which a row is no event; incidents that damage values leave them alone.
KEY_COLUMNS = ("event_id", "request_id", "user_id", "item_id", "event_time_ms", "request_time_ms", "known_at_ms", "position")
VALUE_COLUMNS = tuple(name for name in EVENTS_SCHEMA.names if name not in KEY_COLUMNS)
NUMERIC_COLUMNS = tuple(name for name in VALUE_COLUMNS if not pa.types.is_string(EVENTS_SCHEMA.field(name).type))

# Kind -> (settings it needs, settings it may have, columns it may name).
_INCIDENTS: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "drop_rows": ({"share"}, set(), ()),
    "duplicate_rows": ({"share"}, set(), ()),
    "zero_feature": ({"feature"}, {"share"}, NUMERIC_COLUMNS),
    "scale_feature": ({"feature", "factor"}, {"share"}, NUMERIC_COLUMNS),
    "null_feature": ({"feature"}, {"share"}, VALUE_COLUMNS),
    "flip_labels": ({"feature"}, {"share"}, BINARY_ACTIONS),
    "missing_hour": ({"hour"}, set(), ()),
    "truncate_file": ({"share"}, set(), ()),
    "bit_flip": (set(), {"feature", "bits"}, tuple(EVENTS_SCHEMA.names)),
}
INCIDENT_KINDS = tuple(_INCIDENTS)
FILE_INCIDENTS = ("truncate_file", "bit_flip")


@dataclass(frozen=True, kw_only=True)
class IncidentSpec:
    """Something that goes wrong on one day, planted on purpose.

    Attributes:
        kind: One of `INCIDENT_KINDS`. Rows and values are damaged before the manifest is taken (the pipeline wrote garbage
            and vouched for it), files after it (storage lost what had been delivered).
        day: Business day whose file is damaged.
        feature: Column, for kinds that damage one.
        share: Share of rows hit (default: all of them), or share of bytes that `truncate_file` cuts off.
        factor: Multiplier of `scale_feature`.
        hour: Local hour that `missing_hour` loses.
        bits: Bits that `bit_flip` turns over (default 1), in the pages of `feature` or anywhere in the data.
    """

    kind: str
    day: str
    feature: str | None = None
    share: float | None = None
    factor: float | None = None
    hour: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        where = "simulation.incidents"
        if self.kind not in _INCIDENTS:
            raise ConfigError("unknown kind of incident", where=where, got=self.kind, remedy=nearest(self.kind, _INCIDENTS))
        parse_day(self.day, f"{where}.*.day")
        needed, optional, columns = _INCIDENTS[self.kind]
        given = {name for name in ("feature", "share", "factor", "hour", "bits") if getattr(self, name) is not None}
        if needed - given or given - needed - optional:
            expected = ", ".join([*sorted(needed), *(f"[{name}]" for name in sorted(optional))])
            raise ConfigError(
                f"wrong settings for {self.kind}", where=where, got=", ".join(sorted(given)) or "none", expected=expected or "none",
                remedy="give what the kind needs, and nothing that it would ignore",
            )  # fmt: skip
        if self.feature is not None and self.feature not in columns:
            remedy = nearest(self.feature, columns)
            raise ConfigError(f"{self.kind} cannot damage this column", where=where, got=self.feature, remedy=remedy)
        self._check_ranges(where)

    def _check_ranges(self, where: str) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError("a share lies in (0, 1]", where=f"{where}.*.share", got=self.share)
        if self.hour is not None and not 0 <= self.hour <= 23:
            raise ConfigError("an hour lies in 0..23", where=f"{where}.*.hour", got=self.hour)
        if self.bits is not None and self.bits < 1:
            raise ConfigError("must be positive", where=f"{where}.*.bits", got=self.bits)


@dataclass(frozen=True, kw_only=True)
class SimulationSpec:
    """A seeded short-video feed.

    Days do not depend on how many are asked for: a run of 10 days equals the first 10 days of a run of 28.

    Attributes:
        seed: Same specification, same bytes.
        days: Business days to simulate.
        first_day: First business day.
        timezone: Timezone of the business day.
        users: Users.
        items: Items that live on the first day.
        births_per_day: Mean number of items born each day.
        lifetime_days: Mean life of an item; with births of items / lifetime a day the catalogue keeps its size.
        authors: Authors.
        topics: Topics.
        events_per_user_day: Mean number of impressions of a user on a day.
        slate: Items a request shows.
        candidates: Items a request draws to rank; repeats among them are dropped.
        exploration: Share of requests whose slate is drawn uniformly from the candidates.
        duplicate_share: Share of rows delivered twice.
        straddle_share: Share of the rows of a day's last two hours delivered again with the next day's file.
        late_share: Share of rows that become known hours after the event.
        incidents: What goes wrong, and when.
    """

    seed: int = 0
    days: int = 28
    first_day: str = "2026-03-02"
    timezone: str = "Asia/Shanghai"
    users: int = 4_000
    items: int = 1_500
    births_per_day: float = 60.0
    lifetime_days: float = 25.0
    authors: int = 300
    topics: int = 16
    events_per_user_day: float = 2.5
    slate: int = 6
    candidates: int = 24
    exploration: float = 0.05
    duplicate_share: float = 0.01
    straddle_share: float = 0.005
    late_share: float = 0.005
    incidents: list[IncidentSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("days", "users", "items", "births_per_day", "lifetime_days", "authors", "events_per_user_day", "slate"):
            if getattr(self, name) <= 0:
                raise ConfigError("must be positive", where=f"simulation.{name}", got=getattr(self, name))
        for name in ("exploration", "duplicate_share", "straddle_share", "late_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError("a share lies in [0, 1)", where=f"simulation.{name}", got=getattr(self, name))
        if self.seed < 0:
            raise ConfigError("a seed is not negative", where="simulation.seed", got=self.seed)
        if self.topics < 3:
            raise ConfigError("tastes need at least 3 topics", where="simulation.topics", got=self.topics)
        if not self.slate <= self.candidates or self.slate > MAX_SLATE:
            raise ConfigError(
                "a slate is chosen from the candidates", where="simulation.slate", got=f"{self.slate} of {self.candidates} candidates",
                expected=f"slate <= candidates and slate <= {MAX_SLATE}",
            )  # fmt: skip
        timezone(self.timezone)
        parse_day(self.first_day, "simulation.first_day")
        for incident in self.incidents:
            if incident.day not in self.dates:
                raise ConfigError(
                    "an incident is planted on a day that is not simulated", where="simulation.incidents", got=incident.day,
                    expected=f"{self.first_day} to {self.dates[-1]}", remedy="move the incident, or simulate more days",
                )  # fmt: skip

    @property
    def dates(self) -> list[str]:
        """ISO dates of the simulated business days."""
        return days_between(self.first_day, add_days(self.first_day, self.days - 1))


@dataclass(frozen=True, kw_only=True)
class PlantedIncident:
    """An incident as it was carried out.

    Attributes:
        kind: Kind of incident.
        day: Business day.
        file: Path of the damaged file below the output folder.
        feature: Column, if one was damaged.
        rows: Rows (or cells) whose content changed, were added or lost; 0 for damage to bytes.
        bytes: Bytes cut off or altered; 0 for damage to rows.
        offsets: Positions of altered bytes in the file.
    """

    kind: str
    day: str
    file: str
    feature: str | None = None
    rows: int = 0
    bytes: int = 0
    offsets: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """What `simulate` wrote (`simulation.json`).

    Attributes:
        version: Version of this schema.
        spec: What was asked for.
        days: Day -> rows in the day's file, as delivered (duplicates and incidents included).
        events: Day -> events that happened (rows of truth).
        duplicates: Day -> re-delivered rows in the day's file, planted incidents apart.
        straddling: Day -> those of `duplicates` whose event belongs to the day before.
        late: Day -> events that became known only after the day had ended.
        items: Items that ever lived.
        incidents: What was planted.
        base_rates: Mean of each action over all events; seconds for the watch time.
    """

    version: int = SIMULATION_VERSION
    spec: SimulationSpec
    days: dict[str, int]
    events: dict[str, int]
    duplicates: dict[str, int]
    straddling: dict[str, int]
    late: dict[str, int]
    items: int
    incidents: list[PlantedIncident]
    base_rates: dict[str, float]

    @property
    def rows(self) -> int:
        """Rows delivered over all days."""
        return sum(self.days.values())
