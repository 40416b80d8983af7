"""Examples: what rebuild writes, what train, evaluate and export read.

Layout below the rebuild root::

    examples/day=2022-05-01/bucket=03.parquet    events and sampled negatives of the user bucket on that day
    tails/day=2022-05-01/bucket=03.parquet       last L events of each user from before that day, as history tokens
    vocabularies/item.parquet                    ids seen in the training days (see `trainer.schema.vocabulary`)
    manifest.json                                `ExamplesManifest`

A row of `examples` is a target with its point-in-time features; rows with ``is_event`` are history tokens of later targets
as well. Rows are sorted by (user, available, event_time, item). Instants are int64 milliseconds (UTC).

Columns (types of `user`, `item` and categorical features are the log's: int64 or string):

    user, item               ids as logged
    request                  id of the slate, if the log has one
    event_time               when it happened
    request_time             scoring time t: features and history use only what was available then
    known_at                 when the row became visible to pipelines (>= event_time)
    available                when the event may stand in a history under the declared serving mode
    is_event                 false for a sampled negative
    weight                   float32, 1 / sampling rate
    label_<action>           float32, null = unknown; ripe once max(known_at, event_time + maturity) <= as_of
    feature_<name>           float32 (numeric) or int64 | string (categorical); null = missing or masked
    logged_<action>          float64, production's score as logged
    carried_<name>           as logged; for slices and analysis, never a feature
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES_VERSION = 1

LABEL = "label_"
FEATURE = "feature_"
LOGGED = "logged_"
CARRIED = "carried_"

TIMES = ("event_time", "request_time", "known_at", "available")
SORT_ORDER = ("user", "available", "event_time", "item")


@dataclass(frozen=True, kw_only=True)
class PartitionRecord:
    """One verified (day, user bucket) partition.

    Attributes:
        day: Business day of the source partition.
        bucket: User bucket.
        key: Content-addressed task key: hash of code version, declarations and all input hashes, carry-in included.
        rows: Rows in the examples file.
        events: Rows that are events (the others are sampled negatives).
        examples_sha256: Hash of the examples file.
        tail_sha256: Hash of the tail file.
    """

    day: str
    bucket: int
    key: str
    rows: int
    events: int
    examples_sha256: str
    tail_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExamplesManifest:
    """What a rebuild produced.

    Attributes:
        version: Version of this schema.
        declarations_sha256: Hash of log specification and features.
        user_buckets: Number of user buckets.
        max_history: L, the number of events kept in tails.
        numeric: Numeric feature -> transform (`none`, `log`, `logit`).
        categorical: Categorical feature -> vocabulary name (the feature's own name unless it is an id column).
        item_features: Those categorical features that are functions of the item (static item side tables).
        token_features: Those categorical features that history tokens carry besides item features.
        source_days: Day -> hash of the day's contents after quarantine (what `trained` lists hold).
        partitions: One record a partition.
        duplicates: Day -> duplicate deliveries removed.
        late: Day -> rows known only after their business day had ended.
        negatives: Day -> sampled negatives added.
    """

    version: int = EXAMPLES_VERSION
    declarations_sha256: str
    user_buckets: int
    max_history: int
    numeric: dict[str, str]
    categorical: dict[str, str]
    item_features: list[str]
    token_features: list[str]
    source_days: dict[str, str]
    partitions: list[PartitionRecord]
    duplicates: dict[str, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, int] = field(default_factory=dict)


def examples_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of an examples partition."""
    return root / "examples" / f"day={day}" / f"bucket={bucket:02d}.parquet"


def tail_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of the tail that precedes a day."""
    return root / "tails" / f"day={day}" / f"bucket={bucket:02d}.parquet"


def vocabulary_path(root: Path, name: str) -> Path:
    """Returns the path of a vocabulary."""
    return root / "vocabularies" / f"{name}.parquet"
