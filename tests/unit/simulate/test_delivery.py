from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.config import load
from trainer.logs.roles import source_columns
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.simulation import EVENTS_SCHEMA, TRUTH_SCHEMA
from trainer.schema.time import HOUR_MS, add_days, day_start_ms
from trainer.simulate.policy import VALUE_WEIGHTS

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def log_spec() -> LogSpec:
    return load(LogSpec, yaml.safe_load((CONF / "data" / "simulated.yaml").read_text()) | {"root": "here"}, "data")


def test_files_have_the_declared_columns_and_never_the_truth(log):
    for day in log.spec.dates:
        assert log.read(day).schema.equals(EVENTS_SCHEMA)
        assert log.read(day, "truth").schema.equals(TRUTH_SCHEMA)


def test_every_event_has_its_truth(log):
    for day, yesterday in zip(log.spec.dates[1:], log.spec.dates, strict=False):
        events, truth = log.read(day), log.read(day, "truth")
        known = set(truth["event_id"].to_pylist()) | set(log.read(yesterday, "truth")["event_id"].to_pylist())
        assert set(events["event_id"].to_pylist()) <= known
        joined = truth.join(events.select(["event_id", "item_id", "request_id", "position"]), "event_id", right_suffix="_log")
        assert joined.num_rows >= len(truth)
        for name in ("item_id", "request_id", "position"):
            assert pc.all(pc.equal(joined[name], joined[f"{name}_log"])).as_py()


def test_the_manifest_vouches_for_the_files(log):
    for day in log.spec.dates:
        folder = log.folder / "events" / f"dt={day}"
        record = json.loads((folder / "_MANIFEST.json").read_text())["files"]
        data = (folder / "part-0.parquet").read_bytes()
        assert record == {"part-0.parquet": {"sha256": hashlib.sha256(data).hexdigest(), "rows": log.report.days[day], "bytes": len(data)}}


def test_pages_carry_checksums(log):
    path = log.folder / "events" / f"dt={log.spec.dates[0]}" / "part-0.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(EVENTS_SCHEMA.get_field_index("watch_time_s"))
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 4
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


def test_rows_are_in_order_of_event_time(log):
    for day in log.spec.dates:
        assert (np.diff(log.read(day)["event_time_ms"].to_numpy()) >= 0).all()


def test_duplicates_are_copies_and_counted(log):
    seen: set[int] = set()
    rows: dict[int, dict] = {}
    for day in log.spec.dates:
        start_ms = day_start_ms(day, log.spec.timezone)
        repeated = straddling = 0
        for row in log.read(day).to_pylist():
            identity = row["event_id"]
            known_at = row.pop("known_at_ms")
            if identity in seen:
                repeated += 1
                straddling += row["event_time_ms"] < start_ms
                assert row == rows[identity]["row"]
                assert known_at > rows[identity]["known_at"]
                assert known_at > start_ms
            else:
                assert row["event_time_ms"] >= start_ms
                rows[identity] = {"row": row, "known_at": known_at}
            seen.add(identity)
        assert repeated == log.report.duplicates[day]
        assert straddling == log.report.straddling[day]
    total, events = sum(log.report.duplicates.values()), sum(log.report.events.values())
    assert total == pytest.approx(log.spec.duplicate_share * events, rel=0.3)
    assert sum(log.report.straddling.values()) > 0
    assert log.report.straddling[log.spec.dates[0]] == 0


def test_late_rows_are_counted_and_still_lie_in_their_day(log):
    late_hours = 0
    for day in log.spec.dates:
        end_ms = day_start_ms(add_days(day, 1), log.spec.timezone)
        rows = {row["event_id"]: row for row in reversed(log.read(day).to_pylist())}  # the first delivery of each event stays
        own = [row for row in rows.values() if row["event_time_ms"] >= day_start_ms(day, log.spec.timezone)]
        assert sum(row["known_at_ms"] >= end_ms for row in own) == log.report.late[day]
        delays = np.array([row["known_at_ms"] - row["event_time_ms"] - 1000 * row["watch_time_s"] for row in own])
        assert delays.min() > 0
        assert delays.max() <= 49 * HOUR_MS
        late_hours += (delays > HOUR_MS).sum()
    events = sum(log.report.events.values())
    assert late_hours == pytest.approx(log.spec.late_share * events, rel=0.3)
    assert all(count > 0 for count in log.report.late.values())


def test_the_shipped_specification_maps_every_column(log_spec):
    assert set(source_columns(log_spec)) == set(EVENTS_SCHEMA.names)
    assert {name: action.weight for name, action in log_spec.actions.items()} == VALUE_WEIGHTS
    assert log_spec.layout.manifest == "_MANIFEST.json"


def test_the_shipped_features_count_what_the_log_has(log_spec):
    features = load(FeatureSpec, yaml.safe_load((CONF / "features" / "simulated.yaml").read_text()), "features")
    tables = [table.columns for table in log_spec.side_tables.values()]
    names = {"user", "item", *log_spec.features, *(name for columns in tables for name in columns)}
    assert len(features.counters) >= 20
    for counter in features.counters.values():
        assert {*counter.entity, *(counter.parent or []), *([counter.of] if counter.of else [])} <= names
        assert counter.action is None or counter.action in log_spec.actions


def test_side_tables_have_the_mapped_columns(log, log_spec):
    for table in log_spec.side_tables.values():
        stored = pq.read_table(log.folder / table.path)
        mapped = {spec.expression or name for name, spec in table.columns.items()} | {table.key}
        assert mapped | ({table.valid_from.column} if table.valid_from else set()) <= set(stored.schema.names)
        assert len(pc.unique(stored[table.key])) == len(stored)
