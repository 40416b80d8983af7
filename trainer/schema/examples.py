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
    served_<name>            a feature as production logged it; compared with the rebuilt one, never a feature itself
    carried_<name>           as logged; for slices and analysis, never a feature

A tail holds, for every user with a row on its day, the last L tokens that were available when the business day began, and all
tokens of earlier partitions that became available later. The tail of the day after the last source day (`final_tail_day`)
holds every user: export reads it, and the next rebuild goes on from it. Its columns are user, item, event_time, available,
label_<action> of the history actions, and feature_<name> of item and token features, in the order of `SORT_ORDER`. Tokens of a
clockless prior history have null `event_time` and `available`, stand first and keep their own order.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import DataError
from trainer.schema.files import write_text
from trainer.schema.logs import whole_name
from trainer.schema.plain import as_plain, from_plain

EXAMPLES_VERSION = 1

LABEL = "label_"
FEATURE = "feature_"
LOGGED = "logged_"
SERVED = "served_"
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
class FeatureMatch:
    """How well a rebuilt feature repeats what production logged, on the events of one day.

    Attributes:
        logged: Events with a logged value.
        compared: Those of them whose rebuilt value is known too.
        matched: Those of them that agree: exactly for counts and categories, within 1e-4 for other numbers.
    """

    logged: int
    compared: int
    matched: int

    def __add__(self, other: FeatureMatch) -> FeatureMatch:
        return FeatureMatch(
            logged=self.logged + other.logged, compared=self.compared + other.compared, matched=self.matched + other.matched
        )


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
        source_days: Day -> hash of the day's contents after quarantine (what `trained` lists hold); carry-in days included.
        partitions: One record a partition.
        duplicates: Day -> duplicate deliveries removed.
        other_labels: Day -> those of them whose labels were not those of the delivery that is kept, the first one.
        late: Day -> rows known only after their business day had ended.
        negatives: Day -> sampled negatives added.
        matches: Logged feature -> day -> how well the rebuilt one repeats it.
        final_tail_day: Day whose tail holds every user: the day after the last source day.
        final_tails: Hash of each user bucket's final tail.
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
    other_labels: dict[str, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, int] = field(default_factory=dict)
    matches: dict[str, dict[str, FeatureMatch]] = field(default_factory=dict)
    final_tail_day: str = ""
    final_tails: list[str] = field(default_factory=list)


def without_feature(examples: pa.Table, feature: str) -> pa.Table:
    """Returns examples in which a feature is missing; of a list or vector, all its parts."""
    for place, column in enumerate(examples.column_names):
        if column.startswith(FEATURE) and whole_name(column.removeprefix(FEATURE)) == feature:
            examples = examples.set_column(place, column, pa.nulls(len(examples), examples[column].type))
    return examples


def examples_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of an examples partition."""
    return root / "examples" / f"day={day}" / f"bucket={bucket:02d}.parquet"


def tail_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of the tail that precedes a day."""
    return root / "tails" / f"day={day}" / f"bucket={bucket:02d}.parquet"


def vocabulary_path(root: Path, name: str) -> Path:
    """Returns the path of a vocabulary."""
    return root / "vocabularies" / f"{name}.parquet"


def manifest_path(root: Path) -> Path:
    """Returns the path of the manifest; it is written last, so its presence means that the examples are complete."""
    return root / "manifest.json"


def write_manifest(root: Path, manifest: ExamplesManifest) -> None:
    """Writes the manifest; same manifest, same bytes."""
    root.mkdir(parents=True, exist_ok=True)
    write_text(manifest_path(root), json.dumps(as_plain(manifest), indent=1, sort_keys=True) + "\n")


def read_manifest(root: Path) -> ExamplesManifest:
    """Reads the manifest of a rebuild.

    Raises:
        DataError: If it is absent, damaged or of another version.
    """
    path = manifest_path(root)
    try:
        manifest = from_plain(ExamplesManifest, json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError("cannot read the manifest of the examples", where=path, got=str(error), remedy="run rebuild again") from error
    if manifest.version != EXAMPLES_VERSION:
        raise DataError("examples of another version", where=path, got=manifest.version, expected=EXAMPLES_VERSION)
    return manifest


def read_partition(root: Path, manifest: ExamplesManifest, day: str, bucket: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the examples of a (day, user bucket) and verifies their hash.

    Args:
        root: Folder of the rebuild.
        manifest: Its manifest.
        day: Business day.
        bucket: User bucket.
        columns: Columns to decode; default all.

    Returns:
        The rows, sorted by `SORT_ORDER`.

    Raises:
        DataError: If the partition is not in the manifest, absent, or not the bytes that were written.
    """
    return _read_verified(examples_path(root, day, bucket), _record(manifest, day, bucket).examples_sha256, columns)


def read_tail(root: Path, manifest: ExamplesManifest, day: str, bucket: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the tail that precedes a (day, user bucket), or the final one, and verifies its hash; see `read_partition`."""
    if day == manifest.final_tail_day:
        return _read_verified(final_tail_path(root, day, bucket), manifest.final_tails[bucket], columns)
    return _read_verified(tail_path(root, day, bucket), _record(manifest, day, bucket).tail_sha256, columns)


def final_tail_path(root: Path, day: str, bucket: int) -> Path:
    """Returns the path of the tail of every user at the start of `day`, the day after the last source day."""
    return root / "tails" / f"day={day}" / f"all-bucket={bucket:02d}.parquet"


def _record(manifest: ExamplesManifest, day: str, bucket: int) -> PartitionRecord:
    for record in manifest.partitions:
        if record.day == day and record.bucket == bucket:
            return record
    days = sorted({record.day for record in manifest.partitions})
    raise DataError(
        "this day was not rebuilt",
        where=f"day {day}, bucket {bucket}",
        expected=f"one of {', '.join(days) or 'no day'}",
        remedy="run rebuild with this day, or see in the scan why it was refused",
    )


def _read_verified(path: Path, sha256: str, columns: Sequence[str] | None) -> pa.Table:
    """Hashes and decodes the same bytes, so that a file replaced in between cannot slip through."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("cannot read examples", where=path, got=str(error), remedy="run rebuild again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError("examples are not what was written", where=path, got=found, expected=sha256, remedy="run rebuild again")
    table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read(columns=None if columns is None else list(columns))
    return table if columns is None else table.select(list(columns))
