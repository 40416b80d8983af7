from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from trainer.schema.simulation import EVENTS_SCHEMA, IncidentSpec
from trainer.schema.time import HOUR_MS, day_start_ms


@pytest.fixture(scope="session")
def plant(log, write):
    """Plants incidents on the third day; returns the log, the day, its rows before and (if readable) after."""

    def run(*incidents: dict):
        day = log.spec.dates[2]
        spec = dataclasses.replace(log.spec, days=3, incidents=[IncidentSpec(day=day, **incident) for incident in incidents])
        return write(spec), day

    return run


def differing_columns(before: pa.Table, after: pa.Table) -> set[str]:
    return {name for name in before.schema.names if not before[name].combine_chunks().equals(after[name].combine_chunks())}


def test_drop_rows_loses_its_share_and_touches_nothing_else(log, plant):
    planted, day = plant({"kind": "drop_rows", "share": 0.3})
    before, after = log.read(day), planted.read(day)
    [incident] = planted.report.incidents
    assert incident.rows == len(before) - len(after)
    assert incident.rows == pytest.approx(0.3 * len(before), rel=0.15)
    kept = before.filter(pc.is_in(before["event_id"], after["event_id"]))
    assert set(after["event_id"].to_pylist()) < set(before["event_id"].to_pylist())
    assert len(kept) - len(after) <= log.report.duplicates[day]  # one of two copies may be lost


def test_duplicate_rows_adds_exact_copies(log, plant):
    planted, day = plant({"kind": "duplicate_rows", "share": 0.2})
    before, after = log.read(day), planted.read(day)
    [incident] = planted.report.incidents
    assert len(after) - len(before) == incident.rows > 0.15 * len(before)
    delivery_N = after["event_id"].to_numpy() * 2**40 + after["known_at_ms"].to_numpy() % 2**40
    _, first_N = np.unique(delivery_N, return_index=True)
    assert len(after) - len(first_N) == incident.rows
    assert after.take(np.sort(first_N)).equals(before)
    assert planted.report.duplicates == {day: log.report.duplicates[day] for day in planted.spec.dates}


@pytest.mark.parametrize(
    ("incident", "expected"),
    [
        ({"kind": "zero_feature", "feature": "duration_s"}, lambda values: 0.0 * values),
        ({"kind": "zero_feature", "feature": "like"}, lambda values: 0 * values),  # most of them were zero before
        ({"kind": "scale_feature", "feature": "watch_time_s", "factor": 1000.0}, lambda values: (values.astype(float) * 1000).astype("f4")),
        ({"kind": "flip_labels", "feature": "click"}, lambda values: 1 - values),
    ],
)
def test_values_are_damaged_in_one_column_only(log, plant, incident, expected):
    planted, day = plant(incident)
    before, after = log.read(day), planted.read(day)
    assert differing_columns(before, after) == {incident["feature"]}
    values = before[incident["feature"]].to_numpy()
    assert np.array_equal(after[incident["feature"]].to_numpy(), expected(values))
    [record] = planted.report.incidents
    assert (record.kind, record.day, record.feature) == (incident["kind"], day, incident["feature"])
    assert record.rows == (expected(values) != values).sum()


def test_null_feature_hits_its_share(log, plant):
    planted, day = plant({"kind": "null_feature", "feature": "tab", "share": 0.4})
    before, after = log.read(day), planted.read(day)
    assert differing_columns(before, after) == {"tab"}
    nulls = after["tab"].null_count
    assert planted.report.incidents[0].rows == nulls
    assert nulls == pytest.approx(0.4 * len(before), rel=0.15)
    assert pc.all(pc.or_kleene(pc.is_null(after["tab"]), pc.equal(after["tab"], before["tab"]))).as_py()


def test_missing_hour_loses_that_hour(log, plant):
    planted, day = plant({"kind": "missing_hour", "hour": 20})
    before, after = log.read(day), planted.read(day)
    start_ms = day_start_ms(day, log.spec.timezone)
    in_hour_N = (before["event_time_ms"].to_numpy() - start_ms) // HOUR_MS == 20
    assert planted.report.incidents[0].rows == in_hour_N.sum() > 0
    assert after.equals(before.filter(pa.array(~in_hour_N)))


def test_truncate_file_cuts_bytes_off_after_the_manifest(log, plant):
    planted, day = plant({"kind": "truncate_file", "share": 0.25})
    [incident] = planted.report.incidents
    whole, cut = ((folder / incident.file).read_bytes() for folder in (log.folder, planted.folder))
    assert whole.startswith(cut) and len(whole) - len(cut) == incident.bytes
    assert incident.bytes == pytest.approx(0.25 * len(whole), rel=0.01)
    assert_manifest_of(planted, day, whole)
    with pytest.raises(pa.ArrowInvalid):
        planted.read(day)


def assert_manifest_of(planted, day: str, whole: bytes) -> None:
    record = json.loads((planted.folder / "events" / f"dt={day}" / "_MANIFEST.json").read_text())["files"]["part-0.parquet"]
    assert record["sha256"] == hashlib.sha256(whole).hexdigest()


def test_bit_flips_hit_only_the_pages_of_their_column(log, plant):
    planted, day = plant({"kind": "bit_flip", "feature": "watch_time_s", "bits": 3})
    [incident] = planted.report.incidents
    whole, bad = (np.frombuffer((folder / incident.file).read_bytes(), np.uint8) for folder in (log.folder, planted.folder))
    assert np.flatnonzero(whole != bad).tolist() == incident.offsets
    assert len(incident.offsets) == incident.bytes == 3
    assert all(int(whole[offset] ^ bad[offset]).bit_count() == 1 for offset in incident.offsets)
    chunk = pq.read_metadata(planted.folder / incident.file).row_group(0).column(EVENTS_SCHEMA.get_field_index("watch_time_s"))
    assert all(chunk.data_page_offset <= offset < chunk.data_page_offset + chunk.total_compressed_size for offset in incident.offsets)
    assert_manifest_of(planted, day, whole.tobytes())
    with pytest.raises(OSError):
        planted.read(day)
    others = [name for name in EVENTS_SCHEMA.names if name != "watch_time_s"]
    kept = pq.read_table(planted.folder / incident.file, columns=others, partitioning=None, page_checksum_verification=True)
    assert kept.equals(log.read(day).select(others))


def test_two_incidents_on_one_day_both_happen(log, plant):
    planted, day = plant({"kind": "truncate_file", "share": 0.5}, {"kind": "bit_flip"}, {"kind": "drop_rows", "share": 0.1})
    assert [incident.kind for incident in planted.report.incidents] == ["drop_rows", "truncate_file", "bit_flip"]
    assert all(incident.day == day for incident in planted.report.incidents)
