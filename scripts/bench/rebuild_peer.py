"""A rebuild's speed beside the same features hand-written in DuckDB, and how it grows: rows, features, window length, buckets.

    python scripts/bench/rebuild_peer.py                      # 12 days of 100,000 impressions, 20 counters, last-50 histories

The log is synthetic: 20,000 users, 5,000 items of 500 authors (Zipf), clicks and watch time. Features: views and clicks in one and
in seven days and watch time in seven, of the user, the item, the author, and the user with the author. The hand-written version is
what somebody would write who knows DuckDB well: running sums a key, and three ASOF joins a key (now, a day ago, a week ago); a window
function for the last 50 items. It has no knowledge times, no ripeness, no duplicates, no checksums and resumes nothing; sums are
compared with ours. Both read the same Parquet files and write Parquet.

*two cores* is wall time with two workers (two threads); the growth is processor time of one process, so a busy machine does not
matter to it. The scan is done before and does not count.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.config import RebuildConfig, ScanConfig
from trainer.rebuild import rebuild, run
from trainer.rebuild.engines import engine_of
from trainer.scan import discover_days, scan
from trainer.schema.examples import ExamplesManifest, read_partition
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, TimeSpec
from trainer.schema.time import DAY_MS, day_end_ms, day_start_ms, days_between

sys.path.insert(0, str(Path(__file__).parent))
from rebuild import Timed, widened

FIRST_DAY, HISTORY = "2024-05-06", 50
USERS, ITEMS, AUTHORS = 20_000, 5_000, 500
KEYS = {"user": ("user",), "item": ("item",), "author": ("author",), "user_author": ("user", "author")}
WINDOWS = {"1d": DAY_MS, "7d": 7 * DAY_MS}
TWO_YEARS, LARGEST = 730 * 1_000_000, 1_000_000_000_000  # impressions


def main() -> None:
    """Measures and prints everything."""
    options = _arguments()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        spec = written(Path(folder) / "log", options.days, options.rows)
        days = discover_days(spec)
        health = scan(spec, days, ScanConfig(workers=1))
        beside(spec, health, days, Path(folder))
        growth(spec, health, days[: len(days) // 2])


def written(root: Path, days: int, rows: int) -> LogSpec:
    """Writes the log, one file a day, sorted by time as logs are."""
    rng = np.random.default_rng(0)
    share_K = 1 / np.arange(1, ITEMS + 1) ** 0.8
    for day in days_between(FIRST_DAY, "2024-12-31")[:days]:
        item_N = rng.choice(ITEMS, rows, p=share_K / share_K.sum())
        table = pa.table(
            {
                "user": rng.integers(0, USERS, rows), "item": item_N, "author": item_N % AUTHORS,
                "ts": np.sort(day_start_ms(day, "UTC") + rng.integers(0, DAY_MS, rows)),
                "click": (rng.random(rows) < 0.2).astype(np.int8), "watch": np.round(rng.exponential(20, rows), 2),
            }
        )  # fmt: skip
        (root / f"dt={day}").mkdir(parents=True)
        pq.write_table(table, root / f"dt={day}" / "part-0.parquet", compression="zstd", row_group_size=50_000, write_page_checksum=True)
    return LogSpec(
        name="synthetic", root=str(root), user="user", item="item", event_time=TimeSpec(column="ts"), known_at=TimeSpec(column="ts"),
        actions={"click": ActionSpec(expression="click"), "watch": ActionSpec(expression="watch", kind="duration", gated=False)},
        features={"author": ColumnSpec()},
    )  # fmt: skip


def features(count: int = 20) -> FeatureSpec:
    """Returns the first so many counters."""
    counters = {}
    for key, entity in KEYS.items():
        for window in WINDOWS:
            counters[f"{key}_views_{window}"] = CounterSpec(kind="count", entity=list(entity), window=window)
            counters[f"{key}_click_{window}"] = CounterSpec(kind="sum", entity=list(entity), action="click", window=window)
        counters[f"{key}_watch_7d"] = CounterSpec(kind="sum", entity=list(entity), action="watch", window="7d")
    return FeatureSpec(counters=dict(list(counters.items())[:count]), calendar=False, coverage=False, auto=False)


def ours(
    spec: LogSpec, declared: FeatureSpec, health: HealthMap, days: list[str], root: Path, workers: int, buckets: int = 4
) -> ExamplesManifest:
    """Rebuilds in an empty folder."""
    config = RebuildConfig(root=str(root), workers=workers, audit_rows=0, user_buckets=buckets)
    return rebuild(spec, declared, health, days, config, HISTORY, day_end_ms(days[-1], spec.timezone), days)


def beside(spec: LogSpec, health: HealthMap, days: list[str], folder: Path) -> None:
    """Times both on two cores and compares what they found."""
    rows = sum(health.days[day].rows for day in days)
    begun = time.perf_counter()
    manifest = ours(spec, features(), health, days, folder / "ours", 2)
    mine = time.perf_counter() - begun
    print(f"{rows:,} impressions, 20 counters, last {HISTORY} items; two cores, wall time")
    print(f"  rewarm, counters and histories        {mine:6.1f} s  {rows / mine:>9,.0f} impressions/s")
    for name, history in (("counters", False), ("counters and histories", True)):
        begun = time.perf_counter()
        sums = hand_written(Path(spec.root), folder / "peer.parquet", history)
        theirs = time.perf_counter() - begun
        print(
            f"  DuckDB by hand, {name:<22}{theirs:6.1f} s  {rows / theirs:>9,.0f} impressions/s, {theirs / mine:.1f} x our time", flush=True
        )
    for name, theirs_sum in sums.items():
        mine_sum = total(folder / "ours", manifest, name)
        if abs(mine_sum - theirs_sum) > 1e-6 * max(abs(theirs_sum), 1):
            raise SystemExit(f"{name}: ours adds up to {mine_sum}, theirs to {theirs_sum}")
    print(f"  all {len(sums)} counters add up to the same")


def total(root: Path, manifest: ExamplesManifest, name: str) -> float:
    """Adds up a feature over all examples."""
    parts = [read_partition(root, manifest, record.day, record.bucket, [f"feature_{name}"]) for record in manifest.partitions]
    return sum(float(pc.sum(part[f"feature_{name}"].cast(pa.float64())).as_py() or 0.0) for part in parts)


def hand_written(root: Path, out: Path, history: bool) -> dict[str, float]:
    """Runs the DuckDB version; returns the sum of every counter."""
    import duckdb

    with duckdb.connect(config={"threads": 2}) as base:
        later = ", ".join(f"ts - {length} AS ts_{window}" for window, length in WINDOWS.items())
        base.execute(f"CREATE TABLE log AS SELECT *, {later} FROM read_parquet('{root}/*/*.parquet', hive_partitioning=false)")
        columns, joins = [], []
        for key, entity in KEYS.items():
            names = ", ".join(f'"{name}"' for name in entity)
            base.execute(
                f"CREATE TABLE cum_{key} AS SELECT DISTINCT {names}, ts, count(*) OVER w AS n, sum(click) OVER w AS c, "
                f"sum(watch) OVER w AS s FROM log WINDOW w AS (PARTITION BY {names} ORDER BY ts RANGE UNBOUNDED PRECEDING)"
            )
            for alias, at in (("now", "ts"), *((window, f"ts_{window}") for window in WINDOWS)):
                same = " AND ".join(f'log."{name}" = {key}_{alias}."{name}"' for name in entity)
                joins.append(f"ASOF LEFT JOIN cum_{key} AS {key}_{alias} ON {same} AND log.{at} > {key}_{alias}.ts")
            for window in WINDOWS:
                for name, value in (("views", "n"), ("click", "c"), *([("watch", "s")] if window == "7d" else [])):
                    counted = f"coalesce({key}_now.{value}, 0) - coalesce({key}_{window}.{value}, 0)"
                    columns.append(f"CAST({counted} AS FLOAT) AS {key}_{name}_{window}")
        names = [column.rsplit(" AS ", 1)[1] for column in columns]
        if history:
            window = f"ROWS BETWEEN {HISTORY} PRECEDING AND 1 PRECEDING"
            columns.append(f'list(log.item) OVER (PARTITION BY log."user" ORDER BY log.ts {window}) AS history')
        chosen = f'SELECT log."user", log.item, log.ts, log.click, log.watch, {", ".join(columns)} FROM log {" ".join(joins)}'
        base.execute(f"COPY ({chosen}) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
        sums = base.execute(f"SELECT {', '.join(f'sum({name}::DOUBLE)' for name in names)} FROM read_parquet('{out}')").fetchone()
    return dict(zip(names, map(float, sums or ()), strict=True))


def growth(spec: LogSpec, health: HealthMap, days: list[str]) -> None:
    """Prints processor seconds of one process as one thing grows, and what follows for large logs."""
    print("\ngrowth, processor time of one process")
    seconds = {}
    for name, declared, used, buckets in _cases(days):
        engine = Timed()
        run.engine_of = lambda name, workers, engine=engine: engine  # type: ignore[assignment,misc]
        with tempfile.TemporaryDirectory() as root:
            begun = time.process_time()
            manifest = ours(spec, declared, health, used, Path(root), 1, buckets)
            seconds[name] = time.process_time() - begun
        rows = sum(record.rows for record in manifest.partitions)
        steps = ", ".join(f"{step} {spent:.1f}" for step, spent in engine.seconds.items())
        print(f"  {name:<26}{seconds[name]:6.1f} s  {rows / seconds[name]:>9,.0f} impressions/s a core  ({steps})", flush=True)
    run.engine_of = engine_of  # type: ignore[assignment]
    rows = sum(health.days[day].rows for day in days)
    most, half = seconds["as it is"], seconds["half the days"]
    part = sum(health.days[day].rows for day in days[: len(days) // 2])
    slope = (most - half) / (rows - part)
    print(f"  each further million impressions takes {1e6 * slope:.1f} s of a core")
    for what, count in (("two years of a million a day", TWO_YEARS), ("1e12 impressions", LARGEST)):
        print(f"  {what}: {count * slope / 3600:,.1f} core-hours")


def _cases(days: list[str]) -> Iterator[tuple[str, FeatureSpec, list[str], int]]:
    yield "as it is", features(), days, 4
    yield "half the days", features(), days[: len(days) // 2], 4
    yield "10 counters", features(10), days, 4
    yield "5 counters", features(5), days, 4
    yield "windows 8 x as long", widened(features(), 8), days, 4
    yield "windows 1/8 as long", _shortened(features(), 8), days, 4
    yield "1 user bucket", features(), days, 1
    yield "16 user buckets", features(), days, 16


def _shortened(declared: FeatureSpec, factor: int) -> FeatureSpec:
    counters = {
        name: dataclasses.replace(counter, window=f"{counter.window_ms // factor}ms") for name, counter in declared.counters.items()
    }
    return dataclasses.replace(declared, counters=counters)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=12, help="all of them beside DuckDB, half of them for the growth")
    parser.add_argument("--rows", type=int, default=100_000, help="impressions a day")
    parser.add_argument("--folder", type=Path, help="where the temporary log lies")
    return parser.parse_args()


if __name__ == "__main__":
    main()
