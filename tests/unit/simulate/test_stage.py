from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trainer.errors import DataError
from trainer.schema.plain import from_plain
from trainer.schema.simulation import ITEMS_SCHEMA, IncidentSpec, SimulationReport
from trainer.simulate import simulate


def hashes(folder: Path, *parts: str) -> dict[str, str]:
    files = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(log, write):
    again = write(log.spec)
    assert hashes(again.folder, ".") == hashes(log.folder, ".")
    assert again.report == log.report
    other = write(dataclasses.replace(log.spec, seed=1))
    same = hashes(other.folder, "events", "truth").items() & hashes(log.folder, "events", "truth").items()
    assert not same


def test_days_do_not_depend_on_how_many_are_asked_for(log, write):
    half = write(dataclasses.replace(log.spec, days=3))
    expected = hashes(half.folder, "events", "truth")
    assert len(expected) == 9
    assert expected.items() <= hashes(log.folder, "events", "truth").items()
    born_N = pq.read_table(half.folder / "items.parquet").num_rows
    assert pq.read_table(half.folder / "items.parquet") == pq.read_table(log.folder / "items.parquet").slice(0, born_N)


def test_an_incident_leaves_the_other_days_alone(log, write):
    days = log.spec.dates
    spec = dataclasses.replace(log.spec, incidents=[IncidentSpec(kind="drop_rows", day=days[2], share=0.5)])
    before, after = hashes(log.folder, "events", "truth"), hashes(write(spec).folder, "events", "truth")
    different = {path for path in before if before[path] != after[path]}
    assert different == {f"events/dt={days[2]}/part-0.parquet", f"events/dt={days[2]}/_MANIFEST.json"}


def test_the_report_tells_what_was_written(log):
    report = from_plain(SimulationReport, json.loads((log.folder / "simulation.json").read_text()))
    assert report == log.report
    tables = {day: log.read(day) for day in log.spec.dates}
    assert report.days == {day: len(table) for day, table in tables.items()}
    assert report.events == {day: len(log.read(day, "truth")) for day in log.spec.dates}
    assert report.rows == sum(map(len, tables.values()))
    assert report.items == pq.read_metadata(log.folder / "items.parquet").num_rows
    assert 0.25 < report.base_rates["click"] < 0.45
    assert report.base_rates["click"] > report.base_rates["long_view"] > report.base_rates["like"] > report.base_rates["follow"] > 0


def test_items_exist_before_they_are_shown(log):
    items = pq.read_table(log.folder / "items.parquet")
    assert items.schema.equals(ITEMS_SCHEMA)
    born = dict(zip(items["item_id"].to_pylist(), items["valid_from_ms"].to_pylist(), strict=True))
    assert list(born) == list(range(1, len(born) + 1))
    for day in log.spec.dates:
        events = log.read(day)
        pairs = zip(events["item_id"].to_pylist(), events["request_time_ms"].to_pylist(), strict=True)
        assert all(born[item] < time for item, time in pairs)


def test_a_finished_simulation_is_left_as_it_is(log):
    written = {path: path.stat().st_mtime_ns for path in log.folder.rglob("*")}
    assert simulate(log.spec, log.folder) == log.report
    assert {path: path.stat().st_mtime_ns for path in log.folder.rglob("*")} == written


def test_an_unfinished_simulation_starts_again(log, tmp_path, monkeypatch):
    spec = dataclasses.replace(log.spec, days=2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainer.simulate.stage.damage_file", stop)
        simulate(spec, tmp_path)
    assert not (tmp_path / "simulation.json").exists()
    (tmp_path / "events" / "dt=1999-01-01").mkdir()
    assert simulate(spec, tmp_path).days == {day: log.report.days[day] for day in spec.dates}
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == [f"dt={day}" for day in spec.dates]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "items.parquet", "simulation.json", "truth", "users.parquet"]


def test_a_folder_with_anything_else_is_refused(log, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        simulate(log.spec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_folder_with_another_simulation_is_refused(log):
    with pytest.raises(DataError, match="another simulation") as error:
        simulate(dataclasses.replace(log.spec, seed=7), log.folder)
    assert "'seed': 0" in str(error.value)
    assert "'seed': 7" in str(error.value)


def test_a_dying_catalogue_is_one_clear_error(tiny, tmp_path):
    spec = dataclasses.replace(tiny, items=30, births_per_day=0.01, lifetime_days=0.1)
    with pytest.raises(DataError, match="died out") as error:
        simulate(spec, tmp_path)
    assert "births_per_day" in str(error.value)


def test_a_day_without_visitors_has_an_empty_file(tiny, write):
    quiet = write(dataclasses.replace(tiny, users=2, events_per_user_day=0.01, days=3, duplicate_share=0.0))
    assert 0 in quiet.report.events.values()
    for day in quiet.spec.dates:
        assert len(quiet.read(day)) == quiet.report.days[day]
