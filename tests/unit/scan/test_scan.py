"""Each kind of damage: found, named, answered as the catalogue says, counted exactly; and nothing else is touched."""

import hashlib
import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from trainer.config import ScanConfig, ScanRunConfig
from trainer.errors import ConfigError, DataError
from trainer.logs.decode import carries_checksums, healthy_rows, open_parquet
from trainer.logs.roles import source_columns
from trainer.scan import check_budget, discover_days, run, scan, write_scan
from trainer.scan.show import heat_map, print_health
from trainer.scan.workers import Call, Failure, ReaderPool
from trainer.schema.health import FAULT_KINDS, LEDGER_SCHEMA, DayHealth, Fault, HealthMap
from trainer.schema.logs import ActionSpec, ColumnSpec, LayoutSpec, LogSpec, TimeSpec
from trainer.schema.time import day_start_ms, days_between

DAYS = days_between("2024-05-06", "2024-05-08")
ROWS, GROUP = 300, 100
BAD, GOOD = DAYS[1], (DAYS[0], DAYS[2])
CONFIG = ScanConfig(workers=1, max_bad_rows_share=0.5, max_masked_cells_share=0.5, min_rows_share=0.0, retries=1)


def log(root, **changes):
    values = {
        "name": "small", "root": str(root), "user": "user_id", "item": "item_id",
        "event_time": TimeSpec(column="ts"), "known_at": TimeSpec(column="ts", delay="5m"),
        "actions": {"click": ActionSpec(expression="clicked")},
        "features": {"tab": ColumnSpec(), "price": ColumnSpec(kind="numeric", minimum=0, maximum=1000)},
    }  # fmt: skip
    return LogSpec(**{**values, **changes})


def events(day, rows=ROWS, seed=0):
    random = np.random.default_rng([seed, *map(ord, day)])
    ts = np.sort(day_start_ms(day, "UTC") + random.choice(80_000, rows, replace=False) * 1000)
    return pa.table(
        {
            "user_id": random.integers(0, 50, rows), "item_id": random.integers(0, 40, rows), "ts": ts,
            "clicked": random.integers(0, 2, rows).astype(np.int8), "tab": random.choice(["a", "b"], rows),
            "price": random.uniform(1, 999, rows), "unused": random.normal(size=rows),
        }
    )  # fmt: skip


def write(root, day, table=None, name="part-0.parquet", checksum=True):
    path = root / f"dt={day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = events(day) if table is None else table
    pq.write_table(table, path, row_group_size=GROUP, write_page_checksum=checksum, use_dictionary=False, compression="zstd")
    return path


def write_manifest(root, day):
    folder = root / f"dt={day}"
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": pq.read_metadata(path).num_rows}
        for path in folder.glob("*.parquet")
    }
    (folder / "_MANIFEST.json").write_text(json.dumps({"files": files}))


@pytest.fixture
def root(tmp_path):
    for day in DAYS:
        write(tmp_path, day)
    return tmp_path


def flip(path, column, group=1, bit=3):
    """Flips one bit in the middle of a column chunk."""
    chunk = pq.ParquetFile(path).metadata.row_group(group)
    chunk = next(chunk.column(i) for i in range(chunk.num_columns) if chunk.column(i).path_in_schema == column)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2 + 10] ^= 1 << bit
    path.write_bytes(bytes(data))


def footer(data):
    return int.from_bytes(data[-8:-4], "little")


def replace(root, edit):
    table = edit(pq.read_table(root / f"dt={BAD}" / "part-0.parquet", partitioning=None))
    write(root, BAD, table)


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def reconciles(health):
    return all(day.rows == day.used + day.dropped + day.duplicates for day in health.days.values())


def scanned(root, config=CONFIG, **changes):
    health = scan(log(root, **changes), DAYS, config)
    assert reconciles(health)
    for day in GOOD:
        assert health.days[day].status == "ok" and not health.days[day].faults, "a healthy day was accused"
    for day in health.days.values():
        assert all(fault.kind in FAULT_KINDS for fault in day.faults)
    return health, health.days[BAD]


def only(day, kind):
    assert [fault.kind for fault in day.faults if fault.action != "refuse_day"] == [kind], day.faults
    return day.faults[0]


def test_clean_days_have_no_fault(root):
    health, day = scanned(root)
    assert (day.status, day.rows, day.used, day.faults) == ("ok", ROWS, ROWS, [])
    assert day.files[0].checksummed and health.types["ts"] == "integer" and health.types["tab"] == "text"


def test_one_flipped_bit_costs_one_feature_chunk(root):
    clean = pq.read_table(root / f"dt={BAD}" / "part-0.parquet", partitioning=None)
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    _, day = scanned(root)
    fault = only(day, "bit_flip_page")
    assert (day.status, day.used, fault.feature, fault.row_group, fault.rows, fault.action) == ("masked", ROWS, "price", 1, GROUP, "mask")
    assert fault.bytes > 0 and day.files[0].masked == [(1, "price")]
    read = healthy_rows((root / day.files[0].path).read_bytes(), "parquet", list(source_columns(log(root))), day.files[0].masked, [])
    expected = with_column(clean, "price", pc.if_else(pa.array(np.arange(ROWS) // GROUP == 1), None, clean["price"]))
    for name in read.column_names:
        assert read[name].to_pylist() == expected[name].to_pylist(), name


@pytest.mark.parametrize("column", ["user_id", "ts", "clicked"])
def test_one_flipped_bit_in_a_key_time_or_label_costs_the_row_group(root, column):
    flip(root / f"dt={BAD}" / "part-0.parquet", column)
    _, day = scanned(root)
    fault = only(day, "bit_flip_page")
    assert (fault.feature, fault.action, day.used, day.dropped) == (column, "quarantine_group", ROWS - GROUP, GROUP)
    assert day.files[0].dropped_groups == [1]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: data[: len(data) // 2], "truncated_file"),
        (lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "zero_tail"),
        (lambda data: b"", "empty_file"),
        (lambda data: data[:4], "empty_file"),
        (lambda data: data[: -footer(data) - 8] + bytes(40) + data[-footer(data) + 32 :], "footer_damage"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:], "footer_damage"),
    ],
)
def test_an_undecodable_file_is_set_aside_and_the_run_goes_on(root, damage, kind):
    write(root, BAD, events(BAD, 80, seed=1), "part-1.parquet")
    path = root / f"dt={BAD}" / "part-0.parquet"
    path.write_bytes(damage(path.read_bytes()))
    _, day = scanned(root)
    fault = only(day, kind)
    assert (fault.action, fault.file, day.status, day.used) == ("quarantine_file", f"dt={BAD}/part-0.parquet", "masked", 80)


def test_without_checksums_the_manifest_finds_the_flipped_bit(root):
    for day in DAYS:
        write(root, day, checksum=False)
        write_manifest(root, day)
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    layout = LayoutSpec(manifest="_MANIFEST.json")
    _, day = scanned(root, layout=layout)
    assert only(day, "hash_mismatch").action == "quarantine_file"
    assert (day.status, day.rows, day.dropped) == ("refused", ROWS, ROWS)


def test_with_checksums_and_a_manifest_only_the_chunk_is_lost(root):
    for day in DAYS:
        write_manifest(root, day)
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    _, day = scanned(root, layout=LayoutSpec(manifest="_MANIFEST.json"))
    assert only(day, "bit_flip_page").feature == "price" and day.used == ROWS


def test_a_change_that_no_page_explains_sets_the_file_aside(root):
    for day in DAYS:
        write_manifest(root, day)
    replace(root, lambda table: with_column(table, "price", pc.multiply(table["price"], 2.0)))
    _, day = scanned(root, layout=LayoutSpec(manifest="_MANIFEST.json"))
    assert only(day, "hash_mismatch").action == "quarantine_file"


def test_damage_in_a_column_that_nobody_reads_is_counted(root):
    for day in DAYS:
        write_manifest(root, day)
    flip(root / f"dt={BAD}" / "part-0.parquet", "unused")
    _, day = scanned(root, layout=LayoutSpec(manifest="_MANIFEST.json"))
    assert (only(day, "bit_flip_page").action, day.status, day.used) == ("count", "ok", ROWS)


def test_files_the_manifest_lists_or_lacks(root):
    for day in DAYS:
        write(root, day, events(day, 100, seed=2), "part-1.parquet")
        write_manifest(root, day)
    (root / f"dt={BAD}" / "part-1.parquet").unlink()
    write(root, BAD, name="part-0-attempt2.parquet")
    _, day = scanned(root, layout=LayoutSpec(manifest="_MANIFEST.json"))
    assert sorted(fault.kind for fault in day.faults) == ["missing_file", "unexpected_file"]
    assert (day.rows, day.used, day.dropped) == (ROWS + 100, ROWS, 100)


def test_temporary_names_are_not_read_but_reported(root):
    for name in ("part-1.parquet.tmp", ".part-2.parquet", "_part-3.parquet"):
        (root / f"dt={BAD}" / name).write_bytes(b"half")
    (root / f"dt={BAD}" / "_SUCCESS").touch()
    _, day = scanned(root)
    assert day.status == "ok" and len([fault for fault in day.faults if fault.kind == "unexpected_file"]) == 3 == len(day.faults)


def test_a_missing_optional_feature_is_masked_for_the_day(root):
    replace(root, lambda table: table.drop_columns(["price"]))
    _, day = scanned(root)
    assert only(day, "missing_column").feature == "price" and (day.status, day.used, day.masked_columns) == ("masked", ROWS, ["price"])


def test_a_missing_label_sets_the_file_aside_and_refuses_the_day(root):
    replace(root, lambda table: table.drop_columns(["clicked"]))
    _, day = scanned(root)
    assert day.status == "refused" and day.faults[0].kind == "missing_column" and day.dropped == ROWS


@pytest.mark.parametrize(
    "change", [{"user": "user_idd"}, {"features": {"tabb": ColumnSpec()}}, {"actions": {"c": ActionSpec(expression="clickd")}}]
)
def test_a_column_that_no_file_has_names_the_nearest(root, change):
    with pytest.raises(ConfigError, match=r"did you mean '(user_id|tab|clicked)'"):
        scan(log(root, **change), DAYS, CONFIG)


def test_castable_and_garbage_cells(root):
    texts = [f"{number}" for number in range(ROWS)]
    texts[:3] = ["NULL", "{}", "12x"]
    replace(root, lambda table: with_column(table, "price", pa.array(texts)))
    _, day = scanned(root)
    fault = next(fault for fault in day.faults if fault.kind == "wrong_dtype")
    assert (fault.feature, fault.rows, fault.action, day.used) == ("price", 3, "mask", ROWS)


def test_a_lossless_cast_is_reported_and_costs_nothing(root):
    replace(root, lambda table: with_column(table, "user_id", table["user_id"].cast(pa.float64())))
    _, day = scanned(root)
    assert (only(day, "wrong_dtype").action, day.status, day.used) == ("count", "ok", ROWS)


def test_non_finite_and_out_of_range_values_are_masked_cells(root):
    def edit(table):
        price = table["price"].to_numpy().copy()
        price[:5], price[5:7], price[7:10] = np.nan, np.inf, -5
        clicked = np.r_[[7, 9], table["clicked"].to_numpy()[2:]]
        return with_column(with_column(table, "price", pa.array(price)), "clicked", pa.array(clicked))

    replace(root, edit)
    _, day = scanned(root)
    counts = {(fault.kind, fault.feature): fault.rows for fault in day.faults}
    assert counts == {("non_finite", "price"): 7, ("out_of_range", "price"): 3, ("out_of_range", "clicked"): 2} and day.used == ROWS


def test_rows_without_id_or_with_an_impossible_time_are_dropped(root):
    def edit(table):
        user = pc.if_else(pa.array(np.arange(ROWS) < 4), None, table["user_id"])
        ts = table["ts"].to_numpy().copy()
        ts[4:6], ts[6], ts[7] = ts[4:6] // 1000, 0, ts[7] + 10 * 86_400_000
        return with_column(with_column(table, "user_id", user), "ts", pa.array(ts))

    replace(root, edit)
    _, day = scanned(root)
    counts = {(fault.kind, fault.feature): fault.rows for fault in day.faults}
    assert counts == {("null_key", "user_id"): 4, ("time_unit", "ts"): 2, ("time_out_of_day", "ts"): 2} and (day.used, day.dropped) == (
        ROWS - 8,
        8,
    )


def test_a_row_without_time_is_counted_once_although_two_instants_read_the_column(root):
    replace(root, lambda table: with_column(table, "ts", pc.if_else(pa.array(np.arange(ROWS) < 5), None, table["ts"])))
    _, day = scanned(root)
    assert only(day, "null_key").rows == 5 == day.dropped


def test_duplicates_are_counted_apart_also_across_days(root):
    table = events(DAYS[0]).slice(290)
    replace(root, lambda own: pa.concat_tables([own, own.slice(0, 20), table]))
    health, day = scanned(root)
    assert (day.status, day.duplicates, day.used, day.dropped) == ("ok", 30, ROWS, 0)
    assert next(fault for fault in day.faults if fault.kind == "duplicate_rows").action == "count"
    assert health.days[DAYS[0]].duplicates == 0


def test_late_rows_are_counted(root):
    health, day = scanned(root, known_at=TimeSpec(column="ts", delay="5m"))
    assert day.late == 0
    late = scan(log(root, known_at=TimeSpec(column="ts", delay="1d")), DAYS, CONFIG).days[BAD]
    assert (late.late, late.status) == (ROWS, "ok")
    assert reconciles(health)


def test_an_empty_day_and_a_missing_day_are_refused(root):
    write(root, BAD, events(BAD).slice(0, 0))
    _, day = scanned(root)
    assert day.status == "refused" and {fault.kind for fault in day.faults} == {"empty_file", "empty_day"}
    for path in (root / f"dt={BAD}").iterdir():
        path.unlink()
    assert scanned(root)[1].status == "refused"
    (root / f"dt={BAD}").rmdir()
    health = scan(log(root), list(GOOD), CONFIG)
    assert list(health.days) == DAYS and health.days[BAD].faults[0].kind == "missing_day"


def test_links_hours_markers_and_csv(root, tmp_path_factory):
    real = tmp_path_factory.mktemp("elsewhere")
    (root / f"dt={BAD}").rename(real / "day")
    (root / f"dt={BAD}").symlink_to(real / "day")
    (real / "day" / "hour=03").mkdir()
    (real / "day" / "part-0.parquet").rename(real / "day" / "hour=03" / "part-0.parquet")
    assert scanned(root)[1].files[0].path == f"dt={BAD}/hour=03/part-0.parquet"
    for day in GOOD:
        (root / f"dt={day}" / "_SUCCESS").touch()
    assert only_refusal(scan(log(root, layout=LayoutSpec(success_marker=True)), DAYS, CONFIG).days[BAD]) == "unfinished_day"
    import pyarrow.csv

    for day in DAYS:
        pyarrow.csv.write_csv(events(day), root / f"dt={day}" / "part.csv")
    health = scan(log(root, layout=LayoutSpec(format="csv")), DAYS, CONFIG)
    assert all(day.used == ROWS and day.status == "ok" for day in health.days.values())


def only_refusal(day):
    return next(fault.kind for fault in day.faults if fault.action == "refuse_day")


def test_typed_timestamps_bring_their_own_unit(root):
    for day in DAYS:
        table = events(day)
        write(root, day, with_column(table, "ts", table["ts"].cast(pa.timestamp("ms")).cast(pa.timestamp("ns", tz="UTC"))))
    health = scan(log(root, event_time=TimeSpec(column="ts", unit="s")), DAYS, CONFIG)
    assert all(day.used == ROWS and day.status == "ok" for day in health.days.values())


def test_required_features_row_floors_and_budgets_refuse(root):
    replace(root, lambda table: table.drop_columns(["price"]))
    features = {"tab": ColumnSpec(), "price": ColumnSpec(kind="numeric", criticality="required")}
    assert scanned(root, features=features)[1].status == "refused"
    replace(root, lambda table: table.slice(0, 100).append_column("price", pa.array(np.ones(100))))
    assert only_refusal(scanned(root, ScanConfig(workers=1, min_rows_share=0.7))[1]) == "too_few_rows"
    replace(root, lambda table: with_column(table, "user_id", pc.if_else(pa.array(np.arange(100) < 40), None, table["user_id"])))
    assert only_refusal(scanned(root, ScanConfig(workers=1, max_bad_rows_share=0.3))[1]) == "too_many_bad_rows"


def test_the_budget_of_refused_days_stops_the_run():
    refusal = Fault(kind="empty_day", day=BAD, action="refuse_day", evidence="no usable row")
    days = {day: DayHealth(status="ok", files=[]) for day in DAYS} | {BAD: DayHealth(status="refused", files=[], faults=[refusal])}
    check_budget(HealthMap(days=days), ScanConfig(max_refused_days=1))
    with pytest.raises(DataError, match="too many refused"):
        check_budget(HealthMap(days=days), ScanConfig(max_refused_days=0))
    with pytest.raises(DataError, match="every day"):
        check_budget(HealthMap(days={BAD: days[BAD]}), ScanConfig())


def test_written_files(root, tmp_path):
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    health, _ = scanned(root)
    for name in ("a", "b"):
        write_scan(health, tmp_path / name)
    assert (tmp_path / "a" / "scan.json").read_bytes() == (tmp_path / "b" / "scan.json").read_bytes()
    written = json.loads((tmp_path / "a" / "scan.json").read_text())["days"][BAD]
    assert written["status"] == "masked" and set(written["faults"][0]) == {"kind", "feature", "file", "rows", "evidence"}
    ledger = pq.read_table(tmp_path / "a" / "quarantine" / "ledger.parquet", page_checksum_verification=True)
    assert ledger.schema.equals(LEDGER_SCHEMA) and ledger["kind"].to_pylist() == ["bit_flip_page"]
    data = (tmp_path / "a" / "quarantine" / "ledger.parquet").read_bytes()
    assert carries_checksums(data, open_parquet(data))


def test_run_prints_and_writes(root, tmp_path, capsys):
    health = run(ScanRunConfig(run_dir=str(tmp_path / "run"), as_of=DAYS[1], data=log(root), scan=CONFIG))
    assert list(health.days) == DAYS[:2] and (tmp_path / "run" / "scan.json").exists()
    assert DAYS[0] in capsys.readouterr().out
    with pytest.raises(DataError, match="no day of the log"):
        run(ScanRunConfig(run_dir=str(tmp_path / "run"), as_of="2020-01-01", data=log(root), scan=CONFIG))
    print_health(health, Console(width=200))


def test_a_line_of_the_table_says_a_thing_once_and_causes_before_verdicts(capsys):
    def fault(kind, rows, action="mask", **more):
        return Fault(kind=kind, day=DAYS[0], rows=rows, action=action, evidence=f"seen in {rows}", **more)

    hours = [fault("sentinel_spike", rows, feature="price", file=f"hour={rows}") for rows in (3, 90, 7)]
    faults = [fault("too_many_bad_rows", 5000, "refuse_day"), *hours, fault("null_key", 40, "quarantine_row", feature="user_id")]
    state = DayHealth(status="refused", files=[], faults=[*faults, fault("late_rows", 9, "count")])
    print_health(HealthMap(days={DAYS[0]: state}), Console(width=200))
    said = [line.split("│")[-2].strip() for line in capsys.readouterr().out.splitlines() if "seen in" in line]
    assert said == [
        "sentinel_spike (price), 100 rows in 3 places: seen in 90", "null_key (user_id): seen in 40", "too_many_bad_rows: seen in 5000",
    ]  # fmt: skip


def test_the_heat_map_has_a_line_a_column_and_a_character_a_day(root):
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    health, _ = scanned(root)
    title, dates, tens, units, *lines = [text.plain for text in heat_map(health, 100)]
    assert "– masked or set aside" in title and f"{DAYS[0]} to {DAYS[-1]}" in dates
    [line] = lines
    assert line.startswith("price") and line.index("=") == len("price") + 2 + DAYS.index(BAD) and len(line) == len("price") + 2 + len(DAYS)
    assert tens.strip() + units.strip() == "".join(day[8] for day in DAYS) + "".join(day[9] for day in DAYS)
    assert heat_map(HealthMap(days={day: state for day, state in health.days.items() if day != BAD}), 100) == []


def test_a_heat_map_of_many_days_goes_on_below(root):
    flip(root / f"dt={BAD}" / "part-0.parquet", "price")
    health, _ = scanned(root)
    bad, good = health.days[BAD], health.days[DAYS[0]]
    days = days_between("2026-01-01", "2026-02-19")
    texts = [text.plain for text in heat_map(HealthMap(days={day: bad if day == days[-1] else good for day in days}), 37)]
    assert [text[7:] for text in texts if text.startswith("price")] == [" " * 30, " " * 19 + "="]
    assert [text.strip() for text in texts if " to " in text] == ["2026-01-01 to 2026-01-30", "2026-01-31 to 2026-02-19"]


def test_no_logs_at_all(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        discover_days(log(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no day folder"):
        discover_days(log(tmp_path))


def test_hangs_crashes_and_bombs_cost_one_call_each():
    """Module-level functions of other packages: the reader process imports what it is told to call."""
    calls = [Call(time.sleep, (600,)), Call(signal.raise_signal, (signal.SIGKILL,)), Call(np.ones, (1 << 34,)), Call(len, ("four",))]
    with ReaderPool(1, deadline_s=20.0, memory_gb=4.0, retries=0) as pool:
        begun = time.monotonic()
        kinds = [done.result.kind if isinstance(done.result, Failure) else done.result for done in pool.map(calls)]
    assert kinds == ["read_timeout", "worker_killed", "oversized_read", 4]
    assert time.monotonic() - begun < 120


def test_transient_errors_are_tried_again_and_give_one_result(monkeypatch):
    answers = [Failure("unreadable_file", "busy"), Failure("unreadable_file", "busy"), "read", Failure("missing_file", "gone")]
    with ReaderPool(1, 1.0, 4.0, retries=2) as pool:
        monkeypatch.setattr(pool, "_make", lambda: SimpleNamespace(run=lambda call: answers.pop(0), close=lambda: None))
        results = list(pool.map([Call(len, ("a",)), Call(len, ("b",))]))
    assert [done.result for done in results] == ["read", Failure("missing_file", "gone")]
    assert [len(done.failures) for done in results] == [2, 0]
