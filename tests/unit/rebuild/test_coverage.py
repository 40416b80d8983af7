"""Coverage follows the health map: refused days, rows set aside and masked feature-days; below a floor counters are masked."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import ConfigError, DataError
from trainer.rebuild import coverage
from trainer.rebuild.audit import compare
from trainer.rebuild.context import Context
from trainer.rebuild.coverage import DayShare, coverage_features, day_share, maskable_columns
from trainer.rebuild.events import read_many
from trainer.rebuild.oracle import Oracle
from trainer.schema.examples import read_manifest
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.health import DayHealth, Fault
from trainer.schema.time import day_start_ms

COUNTERS = {
    "user_views_2d": CounterSpec(kind="count", entity=["user"], window="2d"),
    "tab_click_rate_2d": CounterSpec(kind="rate", entity=["tab"], action="click", window="2d", prior=2),
    "item_tab_views_1d": CounterSpec(kind="count", entity=["item", "tab"], window="1d"),
    "item_rate_by_tab_1d": CounterSpec(kind="rate", entity=["item"], action="click", window="1d", prior=2, parent=["tab"]),
    "tab_views_6h_always": CounterSpec(kind="count", entity=["tab"], window="6h", coverage_floor=0.0),
}
FEATURES = FeatureSpec(counters=COUNTERS, calendar=False)
COLUMNS = ["user", "item", "event_time", "known_at", "label_click", "feature_tab"]


def _masking(lab, monkeypatch, day):
    """Lets the scan find that the column `tab` of a day is to be masked."""
    honest = lab.scanned

    def scanned(log, days):
        health = honest(log, days)
        health.days[day].masked_columns.append("tab")
        return health

    monkeypatch.setattr(lab, "scanned", scanned)
    return scanned


def _check(lab, log, root, health, floor=0.5, features=FEATURES):
    """Every feature of every row equals the oracle's, which walks over days and events one by one."""
    used = [day for day, state in health.days.items() if state.status != "refused"]
    context = Context(log, features, str(root), 3, 2, "zstd", 5, 1 << 60, floor)
    manifest = read_manifest(root)
    shares = [day_share(log, day, state) for day, state in health.days.items()]
    oracle = Oracle(read_many(context, used, range(3), COLUMNS), log, features.counters, shares, floor)
    rows = {day: lab.rows_of(root, manifest, day) for day in used}
    for day in used:
        compare(rows[day], oracle, coverage_features(features.counters.values(), log), day)
    return rows


def test_a_masked_feature_day_lowers_the_windows_that_contain_it_and_no_others(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=5)
    log = lab.spec(tmp_path / "log")
    health = _masking(lab, monkeypatch, days[1])(log, days)
    lab.build(log, tmp_path / "out", features=FEATURES, as_of_day="2024-06-01")
    rows = _check(lab, log, tmp_path / "out", health)
    at_noon = day_start_ms(days[2], lab.ZONE) + 43_200_000
    near = rows[days[2]].filter(pa.array(abs(rows[days[2]]["request_time"].to_numpy() - at_noon) < 1_800_000))
    assert len(near) and np.nanmin(near["feature_coverage_1d"].to_numpy()) > 0.9, "the rows of that day are all there"
    assert 0.4 < np.mean(near["feature_coverage_1d_tab"].to_numpy()) < 0.6
    assert near["feature_user_views_2d"].null_count == 0, "a counter that does not read the masked column keeps its value"
    early = rows[days[2]].filter(pa.array(rows[days[2]]["request_time"].to_numpy() < at_noon - 7_200_000))
    late = rows[days[4]]
    for name in ("item_tab_views_1d", "item_rate_by_tab_1d"):
        assert early[f"feature_{name}"].null_count == len(early) > 10, name
    assert early["feature_tab_views_6h_always"].null_count < len(early), "its own floor is 0"
    tabs = late["feature_tab"].null_count
    assert late["feature_item_tab_views_1d"].null_count == tabs, "the window has passed the masked day"


def test_a_day_of_strangers_is_missing_to_counters_of_users_and_to_no_others(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=5)
    log, honest = lab.spec(tmp_path / "log"), lab.scanned

    def scanned(log, days):
        health = honest(log, days)
        state = health.days[days[1]]
        state.faults.append(
            Fault(kind="id_collapse", day=days[1], feature=log.user, rows=state.used * 9 // 10, action="mask", evidence="strangers")
        )
        return health

    monkeypatch.setattr(lab, "scanned", scanned)
    counters = {
        "user_views_1d": CounterSpec(kind="count", entity=["user"], window="1d"),
        "user_tab_rate_1d": CounterSpec(kind="rate", entity=["user", "tab"], action="click", window="1d", prior=2),
        "tab_users_1d": CounterSpec(kind="distinct", entity=["tab"], of="user", window="1d"),
        "tab_views_1d": CounterSpec(kind="count", entity=["tab"], window="1d"),
    }
    features = FeatureSpec(counters=counters, calendar=False)
    lab.build(log, tmp_path / "out", features=features, as_of_day="2024-06-01")
    rows = _check(lab, log, tmp_path / "out", scanned(log, days), features=features)
    noon = day_start_ms(days[2], lab.ZONE) + 43_200_000
    early, late = (rows[days[2]].filter(pa.array(when)) for when in _around(rows[days[2]]["request_time"].to_numpy(), noon, 7_200_000))
    assert len(early) > 10 < len(late)
    for name in ("user_views_1d", "user_tab_rate_1d", "tab_users_1d"):
        assert early[f"feature_{name}"].null_count == len(early), name
    assert late["feature_user_views_1d"].null_count == 0, "more than half of the window has its users"
    assert early["feature_tab_views_1d"].null_count == early["feature_tab"].null_count, "rows of strangers are rows"
    assert np.nanmin(early["feature_coverage_1d"].to_numpy()) > 0.9


def _around(time_N, instant, apart):
    return time_N < instant - apart, time_N > instant + apart


def test_a_refused_day_is_no_part_of_the_window(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=4)
    (tmp_path / "log" / f"dt={days[1]}" / "part-0.parquet").write_bytes(b"")
    log = lab.spec(tmp_path / "log")
    health = lab.scanned(log, days)
    manifest = lab.build(log, tmp_path / "out", features=FEATURES, as_of_day="2024-06-01")
    assert days[1] not in manifest.source_days and health.days[days[1]].status == "refused"
    rows = _check(lab, log, tmp_path / "out", health)[days[2]]
    first_hours = rows.filter(pa.array(rows["request_time"].to_numpy() < day_start_ms(days[2], lab.ZONE) + 3_600_000 * 8))
    assert first_hours["feature_item_tab_views_1d"].null_count == len(first_hours) > 10
    with_floor_off = lab.build(log, tmp_path / "off", features=FEATURES, as_of_day="2024-06-01", coverage_floor=0.0)
    shown = lab.rows_of(tmp_path / "off", with_floor_off, days[2])
    assert shown["feature_item_tab_views_1d"].null_count == shown["feature_tab"].null_count, "only rows without a tab"


def test_several_refused_days_in_a_row_leave_the_days_around_them_right(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=6)
    for day in days[1:4]:
        (tmp_path / "log" / f"dt={day}" / "part-0.parquet").write_bytes(b"")
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out", features=FEATURES, as_of_day="2024-06-01")
    assert list(manifest.source_days) == [days[0], *days[4:]]
    _check(lab, log, tmp_path / "out", lab.scanned(log, days))


def test_an_undamaged_log_masks_nothing_even_where_it_begins(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out", features=FEATURES, as_of_day="2024-06-01", coverage_floor=0.9)
    first = lab.rows_of(tmp_path / "out", manifest, days[0])
    assert first["feature_user_views_2d"].null_count == 0
    assert first["feature_coverage_2d"].to_numpy().max() < 0.55, "coverage itself tells that the window reaches before the log"


def test_masking_a_day_rebuilds_the_days_that_reach_it(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=5, rows=120)
    log = lab.spec(tmp_path / "log")
    features = FeatureSpec(counters={"user_views_1d": CounterSpec(kind="count", entity=["user"], window="1d")})
    before = lab.build(log, tmp_path / "out", features=features)
    honest = lab.scanned

    def less(log, found):
        health = honest(log, found)
        state = health.days[days[1]]
        health.days[days[1]] = DayHealth(**{**vars(state), "dropped": state.dropped + 40})  # a file that was set aside
        return health

    monkeypatch.setattr(lab, "scanned", less)
    after = lab.build(log, tmp_path / "out", features=features)
    changed = {new.day for old, new in zip(before.partitions, after.partitions, strict=True) if old.examples_sha256 != new.examples_sha256}
    assert changed == set(days[1:4]), "the fourth day brings rows of the evening before, whose window reaches the damage"


def test_shares_of_a_day_come_from_its_faults(lab, tmp_path):
    log = lab.spec(tmp_path)
    fault = {"day": "d", "evidence": "", "action": "mask"}
    faults = [
        Fault(kind="bit_flip_page", feature="tab", rows=30, **fault),
        Fault(kind="out_of_range", feature="price", rows=5, **{**fault, "action": "count"}),
        Fault(kind="duplicate_rows", rows=50, **{**fault, "action": "count"}),
    ]
    state = DayHealth(status="masked", files=[], faults=faults, rows=250, used=150, dropped=50, duplicates=50)
    share = day_share(log, "d", state)
    assert share.rows == 0.75 and share.cells == {"tab": pytest.approx(0.8)}, "duplicates are no loss, told cells are none either"
    assert share.of(["tab"]) == pytest.approx(0.6) and share.of(["price"]) == 0.75
    strange = Fault(kind="id_collapse", feature=log.user, rows=60, **fault)
    assert day_share(log, "d", replace(state, faults=[strange])).cells == {"user": pytest.approx(0.6)}
    hole = Fault(kind="missing_hours", rows=100, **fault)
    assert day_share(log, "d", replace(state, faults=[*faults, hole])).rows == 0.5, "rows of lost hours are missed"
    let_go = replace(hole, action="count")
    assert day_share(log, "d", replace(state, faults=[*faults, let_go])).rows == 0.75
    assert day_share(log, "d", DayHealth(status="refused", files=[], rows=9, used=0, dropped=9)).of([]) == 0


def test_damage_in_several_columns_adds_up_to_no_less_than_nothing():
    assert DayShare("d", 1.0, {"a": 0.3, "b": 0.4}).of(["a", "b"]) == 0


def test_only_columns_of_the_log_can_be_masked(lab, tmp_path):
    log = lab.spec(tmp_path)
    crossed = CounterSpec(kind="rate", entity=["user", "author"], action="click", parent=["tab"])
    assert maskable_columns(crossed, log) == ("tab", "user")
    assert list(coverage_features(COUNTERS.values(), log)) == [
        "coverage_6h",
        "coverage_6h_tab",
        "coverage_1d",
        "coverage_1d_tab",
        "coverage_2d",
        "coverage_2d_tab",
    ]


def test_the_audit_refuses_a_counter_that_should_be_masked(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=3)
    (tmp_path / "log" / f"dt={days[1]}" / "part-0.parquet").write_bytes(b"")
    monkeypatch.setattr(coverage.Calendar, "thin", lambda self, window, columns, floor: np.zeros(len(self._time_N), bool))
    with pytest.raises(DataError, match="not known, or the kernel is wrong"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out", features=FEATURES, audit_rows=400)


def test_a_floor_is_a_share(lab):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        CounterSpec(kind="count", coverage_floor=1.5)
    with pytest.raises(ConfigError, match=r"rebuild\.coverage_floor"):
        lab.RebuildConfig(root="x", coverage_floor=-0.1)
