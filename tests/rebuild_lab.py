"""Small nasty logs to rebuild: ties, duplicates, late rows, unripe labels, unknown ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import RebuildConfig, ScanConfig
from trainer.rebuild import rebuild
from trainer.scan import discover_days, scan
from trainer.schema.examples import ExamplesManifest, read_partition
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, NegativesSpec, ServingSpec, SideTableSpec, TimeSpec
from trainer.schema.time import day_end_ms, day_start_ms, days_between

FIRST_DAY = "2024-03-08"  # two days before daylight saving begins in New York
ZONE = "America/New_York"

# Every kind of counter, keyed by user, item, cross, side feature and everything; short and long windows.
COUNTERS = {
    "item_views_1d": CounterSpec(kind="count", entity=["item"], window="1d"),
    "item_clicks_3h": CounterSpec(kind="count", entity=["item"], action="click", window="3h"),
    "item_click_rate_2d": CounterSpec(kind="rate", entity=["item"], action="click", window="2d", prior=3),
    "author_click_rate_2d": CounterSpec(kind="rate", entity=["author"], action="click", window="2d", prior=3),
    "item_tab_rate_2d": CounterSpec(kind="rate", entity=["item", "tab"], action="click", window="2d", prior=2, parent=["item"]),
    "tab_watch_mean_1d": CounterSpec(kind="mean", entity=["tab"], action="watch", window="1d", prior=0),
    "item_watch_sum_1d": CounterSpec(kind="sum", entity=["item"], action="watch", window="1d"),
    "item_users_1d": CounterSpec(kind="distinct", entity=["item"], of="user", window="1d"),
    "tab_items_6h": CounterSpec(kind="distinct", entity=["tab"], of="item", window="6h"),
    "item_recency_1d": CounterSpec(kind="recency", entity=["item"], window="1d"),
    "item_click_recency_6h": CounterSpec(kind="recency", entity=["item"], action="click", window="6h"),
    "all_views_30m": CounterSpec(kind="count", window="30m"),
    "all_click_rate_1d": CounterSpec(kind="rate", action="click", window="1d"),
    "user_views_1d": CounterSpec(kind="count", entity=["user"], window="1d"),
    "user_click_rate_2d": CounterSpec(kind="rate", entity=["user"], action="click", window="2d", prior=5),
    "user_watch_mean_2d": CounterSpec(kind="mean", entity=["user"], action="watch", window="2d", prior=1),
    "user_watch_sum_1d": CounterSpec(kind="sum", entity=["user"], action="watch", window="1d"),
    "user_authors_2d": CounterSpec(kind="distinct", entity=["user"], of="author", window="2d"),
    "user_recency_1d": CounterSpec(kind="recency", entity=["user"], window="1d"),
    "user_click_recency_1d": CounterSpec(kind="recency", entity=["user"], action="click", window="1d"),
    "user_tab_rate_2d": CounterSpec(kind="rate", entity=["user", "tab"], action="click", window="2d", prior=2, parent=["tab"]),
}


def spec(root: Path, **changes: object) -> LogSpec:
    """A log with every role; clicks ripen after 40 minutes, so some ripen after the shortest windows."""
    values: dict[str, object] = {
        "name": "synthetic",
        "root": str(root),
        "timezone": ZONE,
        "user": "uid",
        "item": "iid",
        "event_time": TimeSpec(column="ts", unit="s"),
        "known_at": TimeSpec(column="known", unit="s"),
        "actions": {
            "click": ActionSpec(expression="clicked == 1", maturity="40m"),
            "watch": ActionSpec(expression="watch_s", kind="duration", gated=False),
        },
        "features": {"tab": ColumnSpec(token=True), "price": ColumnSpec(kind="numeric", minimum=0, maximum=100)},
        "side_tables": {
            "items": SideTableSpec(path="items.parquet", entity="item", key="iid", static=True, columns={"author": ColumnSpec()})
        },
    }
    return LogSpec(**{**values, **changes})  # type: ignore[arg-type]


def write_log(root: Path, days: int = 4, rows: int = 250, seed: int = 0, users: int = 25, items: int = 30) -> list[str]:
    """Writes the log; instants lie on whole minutes so that ties are frequent."""
    random = np.random.default_rng(seed)
    names = days_between(FIRST_DAY, "2024-04-30")[:days]
    for day in names:
        start = day_start_ms(day, ZONE) // 1000
        length = (day_end_ms(day, ZONE) + 1) // 1000 - start
        minute = random.integers(0, length // 60, rows)
        ts = start + minute * 60
        early = random.random(rows) < 0.03  # rows of the evening before, delivered with this day
        ts = np.where(early, start - random.integers(1, 180, rows) * 60, ts)
        delay = np.where(random.random(rows) < 0.2, random.integers(0, 90_000, rows), random.integers(0, 5, rows) * 60)
        table = pa.table(
            {
                "uid": pa.array(random.integers(0, users, rows), mask=random.random(rows) < 0.01),
                "iid": pa.array([f"i{number}" for number in random.integers(0, items, rows)]),
                "ts": ts,
                "known": ts + delay,
                "clicked": pa.array(random.integers(0, 2, rows).astype(np.int8), mask=random.random(rows) < 0.1),
                "watch_s": pa.array(np.round(random.exponential(20, rows), 3), mask=random.random(rows) < 0.1),
                "tab": pa.array(random.choice(["home", "search", "feed"], rows), mask=random.random(rows) < 0.05),
                "price": np.where(random.random(rows) < 0.05, np.nan, random.normal(50, 30, rows)),
            }
        )
        again = random.integers(0, rows, rows // 10)
        table = pa.concat_tables([table, table.take(pa.array(again))])
        folder = root / f"dt={day}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", row_group_size=100, write_page_checksum=True)
    items = [f"i{number}" for number in range(items) if number % 7]  # some items have no author
    pq.write_table(pa.table({"iid": items, "author": [f"a{int(name[1:]) % 5}" for name in items]}), root / "items.parquet")
    return names


def build(
    log: LogSpec,
    root: Path,
    days: list[str] | None = None,
    features: FeatureSpec | None = None,
    as_of_day: str | None = None,
    **config: object,
) -> ExamplesManifest:
    """Scans and rebuilds."""
    found = discover_days(log)
    days = days or found
    health = scanned(log, [day for day in found if day <= max(days)])
    settings = {"user_buckets": 3, "entity_buckets": 2, "workers": 1, "audit_rows": 0, **config}
    features = features or FeatureSpec(counters=COUNTERS)
    cut = day_end_ms(as_of_day or days[-1], log.timezone)
    return rebuild(log, features, health, days, RebuildConfig(root=str(root), **settings), 5, cut, days)  # type: ignore[arg-type]


def scanned(log: LogSpec, days: list[str]) -> HealthMap:
    """Scans with a budget for rows without a user, which this log has many of."""
    return scan(log, days, ScanConfig(workers=1, max_bad_rows_share=0.1))


def bytes_of(root: Path) -> dict[str, bytes]:
    """Everything that a rebuild publishes: name -> content."""
    folders = ("examples", "tails", "vocabularies")
    files = [root / "manifest.json", *(path for folder in folders for path in sorted((root / folder).rglob("*.parquet")))]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def rows_of(root: Path, manifest: ExamplesManifest, day: str) -> pa.Table:
    """All examples of a day."""
    return pa.concat_tables([read_partition(root, manifest, day, bucket) for bucket in range(manifest.user_buckets)])


def snapshot(period: str, delay: str = "0") -> ServingSpec:
    """Snapshot serving."""
    return ServingSpec(mode="snapshot", period=period, delay=delay)


def click_only(log_root: Path, sampler: str = "recent_popularity", per_positive: int = 2) -> LogSpec:
    """The same log read as clicks only."""
    return spec(log_root, negatives=NegativesSpec(per_positive=per_positive, sampler=sampler, window="1d"))


def changed_by_one_late_row(folder: Path, seed: int = 0) -> tuple[set[tuple], set[tuple]]:
    """Rebuilds the log below `folder`, lets one row be known eight hours later, and rebuilds again.

    Returns:
        Rows (user, item, event time, request time) whose counters changed, and those that should have.
    """
    log = spec(folder / "log")
    counters = {name: COUNTERS[name] for name in ("item_views_1d", "user_views_1d")}
    before = _counters_of_rows(log, folder / "before", counters)
    moved, old, new = _delay_one_row(folder / "log", seed)
    after = _counters_of_rows(log, folder / "after", counters)
    changed = {key for key in before if key in after and before[key] != after[key]}
    touched = [key for key in before if key in after and (key[0] == moved["uid"] or key[1] == moved["iid"])]
    return changed, {key for key in touched if old <= key[3] < new and moved["ts"] * 1000 >= key[3] - 86_400_000}


def _counters_of_rows(log: LogSpec, root: Path, counters: dict[str, CounterSpec]) -> dict[tuple, tuple]:
    manifest = build(log, root, features=FeatureSpec(counters=counters, calendar=False, coverage=False))
    found = {}
    for day in manifest.source_days:
        for row in rows_of(root, manifest, day).to_pylist():
            key = (row["user"], row["item"], row["event_time"], row["request_time"])
            found[key] = tuple(row[f"feature_{name}"] for name in counters)
    return found


def _delay_one_row(folder: Path, seed: int) -> tuple[dict, int, int]:
    """Delays one row that is delivered once; returns it, and the instants (ms) from which it was and will be known."""
    path = sorted(folder.glob("dt=*/part-0.parquet"))[1]
    table = pq.read_table(path)
    rows = table.to_pylist()
    copies: dict[tuple, int] = {}
    for row in rows:
        key = (row["uid"], row["iid"], row["ts"])
        copies[key] = copies.get(key, 0) + 1
    early = sorted(row["ts"] for row in rows)[len(rows) // 3]
    usable = [
        index for index, row in enumerate(rows)
        if row["uid"] is not None and row["ts"] >= early and row["known"] - row["ts"] < 600
        and copies[row["uid"], row["iid"], row["ts"]] == 1
    ]  # fmt: skip
    row = rows[usable[seed]]
    old, new = max(row["known"] * 1000, row["ts"] * 1000 + 1), (row["known"] + 8 * 3600) * 1000
    rows[usable[seed]] = {**row, "known": row["known"] + 8 * 3600}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return row, old, new
