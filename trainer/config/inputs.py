"""Configuration of reading: scan and rebuild."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.errors import ConfigError
from trainer.schema.time import parse_day
from trainer.schema.validate import choice, positive, share

# Kinds whose answer is a decision: a released one is told and nothing is done. What does not decode cannot be released.
RELEASABLE = (
    "swapped_columns", "unit_change", "sentinel_spike", "zero_filled", "constant", "stale_copy", "shuffled_column", "future_leakage",
    "label_leak", "out_of_range_id", "resalted_ids", "id_collapse", "missing_hours", "out_of_order", "label_flip", "label_noise",
    "labels_all_zero", "unripe_labels", "mixed_version", "bot_user", "null_spike",
    "too_few_rows", "too_many_bad_rows", "too_many_masked_cells", "too_many_masked_features",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RepairRule:
    """A repair that somebody has looked into and declares; nothing is ever repaired without one.

    Attributes:
        feature: Source column.
        first_day: First day it covers.
        last_day: Last day it covers.
        multiply: Factor, say 0.001 where milliseconds were written for seconds.
    """

    feature: str
    first_day: str
    last_day: str
    multiply: float

    def __post_init__(self) -> None:
        if parse_day(self.first_day, "scan.repairs.*.first_day") > parse_day(self.last_day, "scan.repairs.*.last_day"):
            raise ConfigError("a repair ends before it begins", where="scan.repairs", got=f"{self.first_day} to {self.last_day}")
        positive("scan.repairs.*.multiply", abs(self.multiply))


@dataclass(frozen=True, kw_only=True)
class ReleaseRule:
    """What somebody has looked at and lets go: the fault is told and nothing is done about it.

    Attributes:
        day: Its day.
        kind: Its kind in the ledger.
        feature: Its column; null for any.
        file: Its file; null for any.
    """

    day: str
    kind: str
    feature: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        parse_day(self.day, "scan.releases.*.day")
        choice("scan.releases.*.kind", self.kind, RELEASABLE)


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Reading and judging the logs.

    Attributes:
        root: Folder of what is remembered of files, so that a night reads only new ones; null remembers nothing. Content-addressed:
            runs and logs may share it.
        read_deadline_s: A read that takes longer is killed.
        slow_read_s: A read that takes longer is told.
        memory_limit_gb: Address space of a reading worker.
        retries: Attempts after a transient error.
        workers: Processes.
        min_rows_share: A day with a smaller share of the usual rows is refused, rows that are missing for a known reason (lost hours, set
            aside) not held against it. Usual: the median of the same weekday in the last four weeks, where two such days are known;
            else the smallest of the last 14 days.
        max_bad_rows_share: A day that loses a larger share of its rows is refused. The rows that are left are sound, and refusing them
            costs more than their lack (`scripts/bench/garbage_days.py`); `max_run_bad_share` is for damage that goes on.
        max_masked_cells_share: A feature with a larger share of bad cells is masked for the day.
        max_masked_features_share: A day with a larger share of masked features is refused (one may always be masked).
        max_refused_days: More refused days in the last 14 stop the run.
        max_run_bad_share: A larger share of rows set aside on the days that are not refused stops the run.
        history_days: Healthy days that a day is compared with.
        min_history_days: Healthy days needed before a value can be called strange.
        false_alarms: False alarms allowed in a run that judges 30 days.
        bot_share: Share of a day's rows above which one user is a bot.
        unverified: Files with neither page checksums nor a hash in a manifest: ``allow``, ``warn`` or ``refuse``.
        actions: Kind -> action, where the default is not wanted: ``count``, ``mask``, ``refuse_day`` or ``stop``.
        repairs: Declared repairs.
        releases: Faults that are let go.
    """

    root: str | None = None
    read_deadline_s: float = 120.0
    slow_read_s: float = 30.0
    memory_limit_gb: float = 8.0
    retries: int = 2
    workers: int = 2
    min_rows_share: float = 0.7
    max_bad_rows_share: float = 0.5
    max_masked_cells_share: float = 0.2
    max_masked_features_share: float = 0.25
    max_refused_days: int = 2
    max_run_bad_share: float = 0.05
    history_days: int = 28
    min_history_days: int = 3
    false_alarms: float = 0.05
    bot_share: float = 0.02
    unverified: str = "allow"
    actions: dict[str, str] = field(default_factory=dict)
    repairs: list[RepairRule] = field(default_factory=list)
    releases: list[ReleaseRule] = field(default_factory=list)

    def __post_init__(self) -> None:
        choice("scan.unverified", self.unverified, ("allow", "warn", "refuse"))
        positive("scan.false_alarms", self.false_alarms)
        for kind, action in self.actions.items():
            choice("scan.actions", kind, RELEASABLE)
            choice(f"scan.actions.{kind}", action, ("count", "mask", "refuse_day", "stop"))


@dataclass(frozen=True, kw_only=True)
class RebuildConfig:
    """Point-in-time rebuild.

    Attributes:
        root: Folder of the examples; content-addressed, so runs may share it, one at a time.
        user_buckets: Partitions of a day by user.
        entity_buckets: Partitions of the entity pass.
        workers: Processes of the local pool.
        engine: ``local`` (a pool of processes), or ``ray``: the same tasks on the cluster that RAY_ADDRESS names, else on `workers`
            CPUs of this machine; same bytes.
        audit_rows: Random rows that the brute-force oracle recomputes after every rebuild; a difference stops the run.
        leak_alarm: Whether a single feature that ranks a label too well stops the run.
        coverage_floor: A counter is masked where damage leaves less than this share of its window to count; 0 never masks. A
            counter's own `coverage_floor` goes first. Time before the log begins is no damage.
        compression: Codec of the examples: ``lz4`` is read nearly twice as fast as ``zstd``, whose files are a fifth smaller.
    """

    root: str
    user_buckets: int = 4
    entity_buckets: int = 4
    workers: int = 2
    engine: str = "local"
    audit_rows: int = 32
    leak_alarm: bool = True
    coverage_floor: float = 0.5
    compression: str = "lz4"

    def __post_init__(self) -> None:
        choice("rebuild.engine", self.engine, ("local", "ray"))
        share("rebuild.coverage_floor", self.coverage_floor)
