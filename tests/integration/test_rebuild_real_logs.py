"""Scan and rebuild on real logs: nothing healthy is accused, duplicates are counted, and a planted leak is caught."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from tests.conftest import real_log
from trainer.config import RebuildConfig, ScanConfig, load
from trainer.errors import ConfigError, DataError
from trainer.rebuild import rebuild
from trainer.rebuild.leak_alarm import leak_alarm, refuse_leaks
from trainer.scan import discover_days, scan
from trainer.schema.examples import read_partition
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_end_ms

pytestmark = pytest.mark.integration

CONF = Path(__file__).parents[2] / "conf"
LEAKY_COLUMNS = ("show_cnt", "play_cnt", "long_time_play_cnt", "valid_play_cnt", "like_cnt", "collect_cnt")


def shipped(name: str, **changes: object) -> tuple[LogSpec, FeatureSpec]:
    """The configuration as shipped."""
    values = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()) | {"root": str(real_log(name))} | changes
    return load(LogSpec, values), load(FeatureSpec, yaml.safe_load((CONF / "features" / f"{name}.yaml").read_text()))


def rebuilt(spec, features, days, root, **config):
    health = scan(spec, days, ScanConfig(workers=1))
    settings = {"workers": 1, **config}
    cut = day_end_ms(days[-1], spec.timezone)
    return health, rebuild(spec, features, health, days, RebuildConfig(root=str(root), **settings), 50, cut, days)


def leaky_table(static: bool) -> dict[str, object]:
    columns = {name: {"kind": "numeric", "transform": "log"} for name in LEAKY_COLUMNS}
    return {"path": "items_month_statistics_LEAKY.parquet", "entity": "item", "key": "item_id", "static": static, "columns": columns}


def test_kuairand_ten_days(tmp_path):
    spec, features = shipped("kuairand")
    assert len(features.counters) >= 20
    days = discover_days(spec)
    assert (days[0], days[-1], len(days)) == ("2022-04-25", "2022-05-04", 10)
    health, manifest = rebuilt(spec, features, days, tmp_path)
    assert all(state.status == "ok" for state in health.days.values())
    assert {fault.kind for state in health.days.values() for fault in state.faults} == {"duplicate_rows", "late_rows"}
    assert sum(state.duplicates for state in health.days.values()) == 4_739 == sum(manifest.duplicates.values())
    assert sum(record.rows for record in manifest.partitions) == 171_671 - 4_739
    rows = read_partition(tmp_path, manifest, days[-1], 0)
    assert rows["label_is_click"].null_count == 0 and np.isfinite(rows["feature_item_click_rate_7d"].to_numpy()).all()
    assert rows["feature_author"].type == pa.int64() and rows["feature_author"].null_count == 0
    assert leak_alarm(tmp_path, manifest, days[:-1], spec, features) == [], "the shipped configuration raises no alarm"


def test_the_leaky_statistics_are_refused_and_would_be_caught(tmp_path):
    with pytest.raises(ConfigError, match="carry the future"):
        shipped("kuairand", side_tables={"month": leaky_table(static=False)})
    spec, features = shipped("kuairand")
    spec, _ = shipped("kuairand", side_tables={**_tables("kuairand"), "month": leaky_table(static=True)})
    days = discover_days(spec)[:6]
    _, manifest = rebuilt(spec, features, days, tmp_path, audit_rows=0)
    alarms = leak_alarm(tmp_path, manifest, days, spec, features)
    assert alarms and all(any(column in alarm.feature for column in LEAKY_COLUMNS) for alarm in alarms)
    with pytest.raises(DataError, match="seen the future"):
        refuse_leaks(alarms)


def _tables(name: str) -> dict[str, object]:
    tables = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())["side_tables"]
    assert not any("LEAKY" in table["path"] for table in tables.values())
    return tables


def test_no_shipped_configuration_reads_the_leaky_file():
    assert not [path for path in CONF.rglob("*.yaml") if "LEAKY" in path.read_text()]


def test_globo_one_day(tmp_path):
    spec, features = shipped("globo")
    days = discover_days(spec)[:1]
    health, manifest = rebuilt(spec, features, days, tmp_path, audit_rows=16)
    state = health.days[days[0]]
    assert (state.status, state.rows, state.duplicates) == ("ok", 94_056, 0)
    rows = pa.concat_tables([read_partition(tmp_path, manifest, days[0], bucket) for bucket in range(manifest.user_buckets)])
    drawn = rows.filter(pa.array(~rows["is_event"].to_numpy(zero_copy_only=False)))
    judged = rows.filter(rows["is_event"])["label_click"].drop_null()
    assert len(drawn) == 4 * len(judged) == manifest.negatives[days[0]] and len(judged) > 85_000
    assert set(drawn["label_click"].unique().to_pylist()) == {0.0}
