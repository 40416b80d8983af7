"""From what happened to the files that a company would find: delays, late rows, duplicates, Parquet, manifest.

Rows of a day lie in that day's folder even if they became known later; a reader cuts by `known_at_ms`. A duplicate is the same
row delivered again: everything is equal but `known_at_ms`. Some rows of a day's last two hours are delivered again with the
next day's file.

Shape suffixes: E events of a day, B rows delivered.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.schema.files import write_text
from trainer.schema.simulation import ACTIONS, BINARY_ACTIONS, EVENTS_SCHEMA, MANIFEST_FILE, PART_FILE, TRUTH_SCHEMA, SimulationSpec
from trainer.schema.time import HOUR_MS, SECOND_MS
from trainer.simulate.feed import LABELS, TRUTH, Feed
from trainer.simulate.world import Stream, generator

_LATE_HOURS, _LATEST_HOURS = 6.0, 48.0
_EVENING_MS = 2 * HOUR_MS
_ROW_GROUP = 1 << 17
# Columns worth a dictionary: trying one on every column takes half of the time of a simulation.
_FEW_VALUES = {
    "position", "tab", "country", "device", "serving_version", "is_random", "age_band", "channel", *BINARY_ACTIONS,
}  # fmt: skip


@dataclass(frozen=True)
class Delivery:
    """One day's file before anything goes wrong.

    Attributes:
        table: Rows of `EVENTS_SCHEMA`, sorted by event time.
        overnight: Duplicates that will come with the next day's file.
        duplicates: Duplicates in `table`, those of yesterday's events included.
        straddling: Duplicates in `table` of yesterday's events.
        late: Events of the day that become known after its end.
    """

    table: pa.Table
    overnight: pa.Table
    duplicates: int
    straddling: int
    late: int


def deliver(spec: SimulationSpec, feed: Feed, overnight: pa.Table, end_ms: int) -> Delivery:
    """Turns a day's events into the rows that are delivered.

    Args:
        spec: Shares of late and duplicate rows.
        feed: The day's events.
        overnight: Duplicates left over from the day before.
        end_ms: First instant of the next day.

    Returns:
        The day's delivery.
    """
    if not len(feed):
        return Delivery(overnight, EVENTS_SCHEMA.empty_table(), len(overnight), len(overnight), 0)
    rng = generator(spec.seed, Stream.DELIVERY, feed.day)
    known_E = _known_at(rng, feed.cells["known_at_ms"], spec.late_share)
    again_E = rng.random(len(feed)) < spec.duplicate_share
    evening_E = feed.cells["event_time_ms"] >= end_ms - _EVENING_MS
    tomorrow_E = evening_E & (rng.random(len(feed)) < spec.straddle_share)
    copy_C, later_C = np.flatnonzero(again_E), np.flatnonzero(tomorrow_E)
    row_B = np.concatenate([np.arange(len(feed)), copy_C])
    known_B = np.concatenate([known_E, _known_again(rng, known_E[copy_C])])
    order_B = np.argsort(row_B, kind="stable")  # events are in order of time: a copy comes right after its original
    today = _table(feed, row_B[order_B], known_B[order_B])
    known_tomorrow_C = np.maximum(_known_again(rng, known_E[later_C]), end_ms + SECOND_MS)
    return Delivery(
        table=pa.concat_tables([overnight, today]),
        overnight=_table(feed, later_C, known_tomorrow_C),
        duplicates=len(copy_C) + len(overnight),
        straddling=len(overnight),
        late=int(np.count_nonzero(known_E >= end_ms)),
    )


def truth_table(feed: Feed) -> pa.Table:
    """Returns the true probabilities of a day's events (`TRUTH_SCHEMA`), sorted by event time."""
    if not len(feed):
        return TRUTH_SCHEMA.empty_table()
    columns = [feed.cells[TRUTH + name if name in ACTIONS else name] for name in TRUTH_SCHEMA.names]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, TRUTH_SCHEMA, strict=True)], schema=TRUTH_SCHEMA)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a Parquet file with page checksums; same table, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # The Arrow schema is not stored: readers shall see plain strings, however they are encoded here.
    few_values = [field.name for field in table.schema if field.name in _FEW_VALUES and not pa.types.is_floating(field.type)]
    pq.write_table(
        table, partial, write_page_checksum=True, store_schema=False, row_group_size=_ROW_GROUP, compression="snappy",
        use_dictionary=few_values,
    )  # fmt: skip
    partial.replace(path)


def write_manifest(folder: Path, rows: int) -> None:
    """Writes ``_MANIFEST.json`` for the one file of a day: what the pipeline vouches for."""
    data = (folder / PART_FILE).read_bytes()
    record = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows, "bytes": len(data)}
    write_text(folder / MANIFEST_FILE, json_text({"files": {PART_FILE: record}}))


def json_text(value: object) -> str:
    """Returns the text of a JSON file."""
    return json.dumps(value, indent=2) + "\n"


def _known_at(rng: np.random.Generator, done_ms_E: np.ndarray, late_share: float) -> np.ndarray:
    """A row is known half a second to three seconds after the user was done with the item, or hours later."""
    usual_E = rng.integers(SECOND_MS // 2, 3 * SECOND_MS, len(done_ms_E))
    hours_E = np.minimum(1 + rng.exponential(_LATE_HOURS, len(done_ms_E)), _LATEST_HOURS)
    return done_ms_E + np.where(rng.random(len(done_ms_E)) < late_share, (hours_E * HOUR_MS).astype(np.int64), usual_E)


def _known_again(rng: np.random.Generator, known_C: np.ndarray) -> np.ndarray:
    """A copy is known up to an hour after the original."""
    return known_C + rng.integers(SECOND_MS, HOUR_MS, len(known_C))


def _table(feed: Feed, row_B: np.ndarray, known_B: np.ndarray) -> pa.Table:
    """Returns some events of the feed as rows of `EVENTS_SCHEMA`."""
    arrays = []
    for field in EVENTS_SCHEMA:
        if field.name == "known_at_ms":
            arrays.append(pa.array(known_B))
        elif field.name == "serving_version":
            arrays.append(pa.repeat(feed.version, len(row_B)))
        elif field.name in LABELS:
            arrays.append(pa.array(LABELS[field.name]).take(pa.array(feed.cells[field.name][row_B])))
        else:
            arrays.append(pa.array(feed.cells[field.name][row_B].astype(field.type.to_pandas_dtype(), copy=False)))
    return pa.table(arrays, schema=EVENTS_SCHEMA)
