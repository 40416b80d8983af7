"""Configuration of reading: scan and rebuild."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema.validate import choice


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Reading and judging the logs.

    Attributes:
        read_deadline_s: A read that takes longer is killed.
        memory_limit_gb: Address space of a reading worker.
        retries: Attempts after a transient error.
        min_rows_share: A day with a smaller share of the median of earlier days is refused.
        max_bad_rows_share: A day that loses a larger share of its rows is refused.
        max_refused_days: More refused days in the last 14 stop the run.
        workers: Processes.
    """

    read_deadline_s: float = 120.0
    memory_limit_gb: float = 8.0
    retries: int = 2
    min_rows_share: float = 0.0
    max_bad_rows_share: float = 0.3
    max_refused_days: int = 14
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class RebuildConfig:
    """Point-in-time rebuild.

    Attributes:
        root: Folder of the examples; content-addressed, so runs may share it, one at a time.
        user_buckets: Partitions of a day by user.
        entity_buckets: Partitions of the entity pass.
        workers: Processes of the local pool.
        engine: ``local``.
        audit_rows: Random rows that the brute-force oracle recomputes after every rebuild; a difference stops the run.
        leak_alarm: Whether a single feature that ranks a label too well stops the run.
        compression: Codec of the examples.
    """

    root: str
    user_buckets: int = 4
    entity_buckets: int = 2
    workers: int = 2
    engine: str = "local"
    audit_rows: int = 32
    leak_alarm: bool = True
    compression: str = "zstd"

    def __post_init__(self) -> None:
        choice("rebuild.engine", self.engine, ("local",))
