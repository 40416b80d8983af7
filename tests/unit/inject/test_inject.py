"""What the injector says it did is what it did, and nothing else changed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROOT
from trainer.config import InjectConfig, load
from trainer.errors import ConfigError, DataError
from trainer.inject import HAZARDS, KINDS, inject, run
from trainer.logs.layout import discover_days
from trainer.schema.faults import CATALOGUE, FAULT_KINDS
from trainer.schema.injection import TRUTH_FILE, FaultSettings, Planted, Truth
from trainer.schema.plain import from_plain

ON_DISK = [kind for kind in KINDS if kind not in HAZARDS]
ONE_COLUMN = [
    "zero_filled", "constant", "unit_change", "non_finite", "sentinel_spike", "stale_copy", "shuffled_column", "future_leakage",
    "label_leak", "overflow", "label_flip", "label_noise", "labels_all_zero", "unripe_labels", "invalid_text", "time_out_of_day",
    "time_unit", "late_rows", "wrong_dtype", "wrong_dtype_garbage", "typed_time", "list_damage", "out_of_range_id", "resalted_ids",
    "id_collapse",
]  # fmt: skip


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file() and path.name != TRUTH_FILE}


def read(spec, path):
    return pq.read_table(Path(spec.root) / path, partitioning=None)


def test_the_catalogue_has_54_kinds_and_15_of_them_are_weekly():
    assert sorted(kind.number for kind in CATALOGUE.values()) == list(range(1, 55))
    assert sum(kind.weekly for kind in CATALOGUE.values()) == 15
    assert all(word in FAULT_KINDS for kind in CATALOGUE.values() for word in kind.ledger_kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ships_settings(kind):
    shipped = yaml.safe_load((ROOT / "conf" / "faults" / f"{kind}.yaml").read_text())
    assert list(shipped) == [kind] and load(FaultSettings, shipped[kind])


@pytest.mark.parametrize("kind", ON_DISK)
def test_damage_is_seeded_recorded_and_stays_on_its_day(log, plant, kind):
    copy, truth, hazards = plant(kind)
    again, second, _ = plant(kind, name="again")
    assert not hazards and truth.planted and contents(copy.root) == contents(again.root) and second.planted == truth.planted
    day = discover_days(log)[-1]
    before, after = contents(log.root), contents(copy.root)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed and all(f"dt={day}" in path for path in changed), "another day changed"
    assert all(record.kind == kind and record.day == day for record in truth.planted)
    assert from_plain(Truth, json.loads((Path(copy.root) / TRUTH_FILE).read_text())) == truth
    assert contents(log.root) == before


@pytest.mark.parametrize("kind", ONE_COLUMN)
def test_values_change_in_one_column_and_are_counted(log, plant, kind):
    copy, truth, _ = plant(kind)
    [record] = truth.planted
    before, after = read(log, record.file), read(copy, record.file)
    assert before.column_names == after.column_names and len(before) == len(after)
    differing = {name for name in before.column_names if not cells_equal(before[name], after[name])}
    assert differing == {record.feature}
    assert record.rows > 0


def cells_equal(one, other):
    if one.type != other.type:
        return False
    buffers = [pa.concat_arrays(column.chunks) if column.num_chunks > 1 else column.chunk(0) for column in (one, other)]
    return buffers[0].equals(buffers[1])


def test_counts_are_exact(log, plant):
    copy, truth, _ = plant("label_flip")
    path = truth.planted[0].file
    before, after = (read(spec, path)["click"].to_numpy() for spec in (log, copy))
    assert (after == 1 - before).all() and truth.planted[0].rows == len(before)
    copy, truth, _ = plant("sentinel_spike", name="sentinel", value=777.0)
    before, after = (read(spec, path)["duration_s"].to_numpy() for spec in (log, copy))
    assert (after[before != after] == 777).all() and truth.planted[0].rows == (before != after).sum()
    copy, truth, _ = plant("missing_hours", name="hours", hours=2)
    assert truth.planted[0].rows == len(before) - len(read(copy, path))
    copy, truth, _ = plant("duplicate_rows", name="rows", share=0.3)
    assert truth.planted[0].rows == len(read(copy, path)) - len(before)


def test_a_shuffled_column_keeps_its_values_and_a_stale_one_has_yesterdays(log, plant):
    copy, truth, _ = plant("shuffled_column")
    [record] = truth.planted
    before, after = (read(spec, record.file)[record.feature].to_pylist() for spec in (log, copy))
    assert sorted(before) == sorted(after) and before != after
    copy, truth, _ = plant("stale_copy", name="stale")
    [record] = truth.planted
    today = read(copy, record.file)
    yesterday = read(log, record.file.replace(record.day, discover_days(log)[-2]))
    had = {}
    for user, value in zip(yesterday["user_id"].to_pylist(), yesterday[record.feature].to_pylist(), strict=True):
        had.setdefault(user, set()).add(value)
    pairs = zip(today["user_id"].to_pylist(), today[record.feature].to_pylist(), strict=True)
    known = [(user, value) for user, value in pairs if user in had]
    assert len(known) > 100 and all(value in had[user] for user, value in known)


def test_a_bomb_claims_two_gibibytes_and_changes_no_other_page(plant, log):
    from trainer.logs.decode import open_parquet
    from trainer.logs.pages import chunk_pages

    copy, truth, _ = plant("decompression_bomb")
    [record] = truth.planted
    data = (Path(copy.root) / record.file).read_bytes()
    metadata = open_parquet(data).metadata.row_group(0)
    claims = {
        metadata.column(i).path_in_schema: [page.unpacked for page in chunk_pages(data, metadata.column(i))]
        for i in range(metadata.num_columns)
    }
    assert max(claims.pop(record.feature)) == 2**31 - 1 and max(map(max, claims.values())) < 1 << 20
    assert len(data) == (Path(log.root) / record.file).stat().st_size


def test_other_logs(tmp_path):
    """Text ids, seconds, hourly files, no manifest: nothing is assumed about a log but its specification."""
    from tests.unit.scan.test_scan import DAYS, events, log, write

    for day in DAYS:
        table = events(day)
        table = table.set_column(0, "user_id", pa.array([f"u{user}" for user in table["user_id"].to_pylist()]))
        table = table.set_column(2, "ts", pa.array(table["ts"].to_numpy() // 1000))
        write(tmp_path / "log", day, table.slice(0, 200), "hour=00/part-0.parquet")
        write(tmp_path / "log", day, table.slice(200), "hour=12/part-0.parquet")
    from trainer.schema.logs import TimeSpec

    spec = log(tmp_path / "log", event_time=TimeSpec(column="ts", unit="s"), known_at=None)
    for number, kind in enumerate(
        ["resalted_ids", "id_collapse", "time_unit", "typed_time", "bot_user", "mixed_version", "missing_hours", "truncated_file"]
    ):
        truth, _ = inject(spec, tmp_path / f"out-{number}", {kind: FaultSettings()}, day=DAYS[1])
        assert truth.planted and all(isinstance(record, Planted) for record in truth.planted)
    with pytest.raises(ConfigError, match="does not say when rows became known"):
        inject(spec, tmp_path / "out-a", {"late_rows": FaultSettings()}, day=DAYS[1])
    with pytest.raises(ConfigError, match=r"needs a manifest[\s\S]*data.layout.manifest"):
        inject(spec, tmp_path / "out-b", {"missing_file": FaultSettings()}, day=DAYS[1])


def test_bad_requests_get_one_clear_message(log, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'zero_filled'"):
        inject(log, tmp_path / "a", {"zero_fill": FaultSettings()})
    with pytest.raises(DataError, match="no such day"):
        inject(log, tmp_path / "b", {"zero_filled": FaultSettings()}, day="2020-01-01")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").touch()
    with pytest.raises(DataError, match="not empty"):
        inject(log, tmp_path / "c", {"zero_filled": FaultSettings()})
    with pytest.raises(DataError, match="lies in the log"):
        inject(log, Path(log.root) / "d", {"zero_filled": FaultSettings()})
    with pytest.raises(ConfigError, match="did you mean 'duration_s'"):
        inject(log, tmp_path / "e", {"unit_change": FaultSettings(feature="duration")})
    with pytest.raises(ConfigError, match="only Parquet"):
        inject(replace(log, layout=replace(log.layout, format="csv")), tmp_path / "f", {"footer_damage": FaultSettings()})
    for bad in ({"share": 0.0}, {"hours": 25}, {"day": "yesterday"}):
        with pytest.raises(ConfigError):
            FaultSettings(**bad)
    with pytest.raises(ConfigError, match="hold_s"):
        run(InjectConfig(data=log, out=str(tmp_path / "g"), faults={"slow_read": FaultSettings()}))
    with pytest.raises(ConfigError, match="no fault"):
        InjectConfig(data=log, out=str(tmp_path / "h"), faults={})


def test_a_day_each(log, tmp_path):
    faults = {"truncated_file": FaultSettings(), "zero_filled": FaultSettings(), "label_flip": FaultSettings()}
    truth, _ = inject(log, tmp_path / "out", faults, spread=True)
    days = discover_days(log)
    assert [(record.kind, record.day) for record in truth.planted] == [
        ("zero_filled", days[-1]), ("label_flip", days[-2]), ("truncated_file", days[-3]),
    ]  # fmt: skip
    with pytest.raises(DataError, match="no such day"):
        inject(log, tmp_path / "more", faults, day=days[1], spread=True)


def test_the_command_line(log, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, str(ROOT / "scripts" / "inject.py"), f"data.root={log.root}", f"out={tmp_path / 'out'}", "seed=3"]
    done = subprocess.run(
        [*command, "faults=[unit_change,truncated_file]", "faults.unit_change.factor=60"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    truth = from_plain(Truth, json.loads((tmp_path / "out" / TRUTH_FILE).read_text()))
    assert [record.kind for record in truth.planted] == ["unit_change", "truncated_file"], "values are damaged before bytes"
    bad = subprocess.run([*command[:3], f"out={tmp_path / 'bad'}", "faults=unit_chang"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "unit_change" in bad.stderr


def test_wrong_type_of_a_number_does_not_lose_it(log, plant):
    copy, truth, _ = plant("wrong_dtype")
    [record] = truth.planted
    before, after = (read(spec, record.file)[record.feature] for spec in (log, copy))
    assert before.type != after.type and np.array_equal(before.to_numpy(), np.asarray(after.to_pylist(), before.type.to_pandas_dtype()))
