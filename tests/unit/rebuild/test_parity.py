"""Logged features are compared with rebuilt ones: exactly for counts, within rounding for rates, a rate by feature and day."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.errors import ConfigError
from trainer.rebuild.parity import _match, total
from trainer.schema.examples import FeatureMatch, read_manifest
from trainer.schema.features import FeatureSpec
from trainer.schema.time import day_start_ms

NAMES = {"item_views_1d": "logged_views", "user_click_rate_2d": "logged_rate", "hour": "logged_hour"}


def _features(lab):
    return FeatureSpec(counters={name: lab.COUNTERS[name] for name in ("item_views_1d", "user_click_rate_2d")}, coverage=False)


def _log_what_was_rebuilt(lab, folder, days, wrong_day, wrong_share):
    """Writes rebuilt values into the log as production would have; on one day an old view count for a part of the rows."""
    features = _features(lab)
    log = lab.spec(folder)
    manifest = lab.build(log, folder.parent / "first", features=features, as_of_day="2024-06-01")
    for day in days:
        known = {}
        for row in lab.rows_of(folder.parent / "first", manifest, day).to_pylist():
            known[row["user"], row["item"], row["event_time"]] = row
        path = folder / f"dt={day}" / "part-0.parquet"
        table = pq.read_table(path)
        rows = [known.get((row["uid"], row["iid"], row["ts"] * 1000)) for row in table.to_pylist()]
        values = {column: [row and row[f"feature_{name}"] for row in rows] for name, column in NAMES.items()}
        if day == wrong_day:
            stop = int(wrong_share * len(rows))
            views = values["logged_views"]
            values["logged_views"] = [None if value is None else value + (i < stop) for i, value in enumerate(views)]
        for column, value in values.items():
            table = table.append_column(column, pa.array(value, pa.int64() if column == "logged_hour" else pa.float64()))
        pq.write_table(table, path, row_group_size=100, write_page_checksum=True)
    return dataclasses.replace(log, logged_features=NAMES), features


def test_match_rates_are_one_but_for_the_feature_and_day_that_differ(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=3)
    log, features = _log_what_was_rebuilt(lab, tmp_path / "log", days, days[1], 0.25)
    manifest = lab.build(log, tmp_path / "out", features=features, as_of_day="2024-06-01")
    assert read_manifest(tmp_path / "out") == manifest and set(manifest.matches) == set(NAMES)
    for name, found in manifest.matches.items():
        assert list(found) == days
        for day, match in found.items():
            events = sum(record.events for record in manifest.partitions if record.day == day)
            assert match.compared == match.logged and 0.8 * events < match.compared <= events
            if (name, day) == ("item_views_1d", days[1]):
                assert 0.65 < match.matched / match.compared < 0.85
            else:
                assert match.matched == match.compared, (name, day)
    rows = lab.rows_of(tmp_path / "out", manifest, days[2])
    assert "served_hour" in rows.column_names and "hour" in manifest.categorical and "served_hour" not in manifest.categorical
    assert day_start_ms(days[0], lab.ZONE) < rows["event_time"][0].as_py()


def test_a_count_matches_exactly_and_a_rate_within_rounding():
    logged = pa.chunked_array([pa.array([10_000.0, 10_001.0, None, 3.0])])
    rebuilt = pa.chunked_array([pa.array([10_000, 10_000, 5, None], pa.float32())])
    assert _match(logged, rebuilt, exact=True) == FeatureMatch(logged=3, compared=2, matched=1)
    assert _match(logged, rebuilt, exact=False) == FeatureMatch(logged=3, compared=2, matched=2)
    text = pa.chunked_array([pa.array(["a", "b", None])])
    assert _match(text, pa.chunked_array([pa.array(["a", "c", "d"])]), exact=True) == FeatureMatch(logged=2, compared=2, matched=1)


def test_buckets_of_a_day_add_up():
    one, two = {"x": {"logged": 3, "compared": 2, "matched": 1}}, {"x": {"logged": 4, "compared": 4, "matched": 4}}
    assert total([one, two]) == {"x": FeatureMatch(logged=7, compared=6, matched=5)}


def test_negatives_have_no_logged_features(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    _, features = _log_what_was_rebuilt(lab, tmp_path / "log", days, None, 0)
    clicks = dataclasses.replace(lab.click_only(tmp_path / "log"), logged_features=NAMES)
    manifest = lab.build(clicks, tmp_path / "out", features=features, as_of_day="2024-06-01")
    rows = lab.rows_of(tmp_path / "out", manifest, days[1])
    drawn = rows.filter(pa.array(~rows["is_event"].to_numpy(zero_copy_only=False)))
    assert len(drawn) > 100 and drawn["served_item_views_1d"].null_count == len(drawn)
    assert manifest.matches["item_views_1d"][days[1]].logged < len(rows) - len(drawn) + 1


def test_a_logged_feature_that_nobody_rebuilds_is_refused_by_name(lab, tmp_path):
    lab.write_log(tmp_path / "log", days=1)
    log = dataclasses.replace(lab.spec(tmp_path / "log"), logged_features={"item_view_1d": "price"})
    with pytest.raises(ConfigError, match=r"data\.logged_features[\s\S]*did you mean 'item_views_1d'"):
        lab.build(log, tmp_path / "out")
