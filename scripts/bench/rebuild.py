"""How fast a rebuild is, beside the same features hand-written in DuckDB, and how it grows: rows, features, windows, buckets.

    python scripts/bench/rebuild.py                                                  # 12 days of 100,000 impressions
    python scripts/bench/rebuild.py --data globo --root ../shared/data/globo --days 3      # a real log by step; or kuairand

The log is synthetic unless another is named: 20,000 users, 5,000 items of 500 authors (Zipf), clicks and watch time. 20 counters of four
keys (views and clicks in one and in seven days and watch time in seven, of the user, the item, the author, and the user with the
author), and last-50 histories. The hand-written version is what somebody would write who knows DuckDB well: running sums a key, three
ASOF joins a key (now, a day ago, a week ago), and a window function for the last 50 items. It has no knowledge times, no ripeness, no
duplicates, no checksums, and resumes nothing; every counter's sum is compared with ours. Both read the same Parquet files and write
Parquet. DuckDB is optional: where it is not installed, that is said, and only our times are given.

*Two cores* is wall time with two workers (two threads), the rounds alternate; all else is processor time of one process, so that a
busy machine matters less to it. The scan is done before and does not count.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from trainer.config import RebuildConfig, ScanConfig, load
from trainer.logs.roles import source_columns
from trainer.rebuild import rebuild, run
from trainer.rebuild.engines import LocalEngine, Task, engine_of, prepare_process
from trainer.scan import discover_days, scan
from trainer.schema.examples import ExamplesManifest, read_partition
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, TimeSpec
from trainer.schema.time import DAY_MS, day_end_ms, day_start_ms, days_between

CONF = Path(__file__).resolve().parents[2] / "conf"
FIRST_DAY, HISTORY = "2024-05-06", 50
USERS, ITEMS, AUTHORS = 20_000, 5_000, 500
KEYS = {"user": ("user",), "item": ("item",), "author": ("author",), "user_author": ("user", "author")}
WINDOWS = {"1d": DAY_MS, "7d": 7 * DAY_MS}
TWO_YEARS, LARGEST = 730 * 1_000_000, 1_000_000_000_000  # impressions
STEPS = {
    "ingest": "read, normalise", "mark_repeats": "repeats", "write_negatives": "negatives", "write_shares": "shares",
    "write_drawn_shares": "negatives' shares", "write_answers": "answers", "write_examples": "examples", "write_tails": "tails",
    "count_ids": "vocabularies",
}  # fmt: skip


def main() -> None:
    """Measures and prints everything that was asked."""
    options = _arguments()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.data == "synthetic":
            spec = written(Path(folder) / "log", options.days, options.rows)
            days = discover_days(spec)
            health = scan(spec, days, ScanConfig(workers=1))
            beside(spec, health, days, Path(folder), options.rounds)
            prepare_process()
            if options.growth:
                growth(spec, health, days)
        else:
            prepare_process()
            real_log(options.data, options.root, options.days)


class Timed(LocalEngine):
    """Runs tasks here and adds up their processor time by function."""

    def __init__(self) -> None:
        super().__init__(workers=1)
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    def results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yields the results in order."""
        for task in tasks:
            begun = time.process_time()
            result = task.function(*task.arguments)
            self.seconds[task.function.__name__] += time.process_time() - begun
            yield result

    def shares(self, seconds: float) -> str:
        """Says what part of all processor seconds each step took."""
        named = {STEPS[step]: spent for step, spent in self.seconds.items() if spent}
        named["keys, hashes"] = seconds - sum(named.values())
        return ", ".join(f"{step} {spent / seconds:.0%}" for step, spent in named.items())


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


def scaled(declared: FeatureSpec, factor: float) -> FeatureSpec:
    """Returns the same features over windows `factor` times as long."""
    counters = {
        name: dataclasses.replace(counter, window=f"{round(counter.window_ms * factor)}ms") for name, counter in declared.counters.items()
    }
    return dataclasses.replace(declared, counters=counters)


def ours(
    spec: LogSpec, declared: FeatureSpec, health: HealthMap, days: list[str], root: Path, workers: int, user: int = 4, entity: int = 4
) -> ExamplesManifest:
    """Rebuilds in an empty folder, with so many user and entity buckets."""
    config = RebuildConfig(root=str(root), workers=workers, audit_rows=0, user_buckets=user, entity_buckets=entity)
    return rebuild(spec, declared, health, days, config, HISTORY, day_end_ms(days[-1], spec.timezone), days)


def measured(
    spec: LogSpec, declared: FeatureSpec, health: HealthMap, days: list[str], user: int = 4, entity: int = 4
) -> tuple[ExamplesManifest, float, Timed]:
    """Rebuilds in this process; returns the manifest, all processor seconds, and those of the steps."""
    engine = Timed()
    run.engine_of = lambda name, workers: engine  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as root:
            begun = time.process_time()
            manifest = ours(spec, declared, health, days, Path(root), 1, user, entity)
            return manifest, time.process_time() - begun, engine
    finally:
        run.engine_of = engine_of  # type: ignore[assignment]


def beside(spec: LogSpec, health: HealthMap, days: list[str], folder: Path, rounds: int) -> None:
    """Times both on two cores, in turns, and compares what they found."""
    rows = sum(health.days[day].rows for day in days)
    wanted = ["rewarm, counters and histories"]
    if importlib.util.find_spec("duckdb"):
        wanted += ["DuckDB by hand, counters", "DuckDB by hand, counters and histories"]
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    sums: dict[str, float] = {}
    for number in range(rounds):
        for name in wanted:
            begun = time.perf_counter()
            if name.startswith("rewarm"):
                manifest = ours(spec, features(), health, days, folder / f"ours-{number}", 2)
            else:
                sums = hand_written(Path(spec.root), folder / "peer.parquet", name.endswith("histories"))
            seconds[name].append(time.perf_counter() - begun)
    print(f"{rows:,} impressions, 20 counters, last {HISTORY} items; two cores, wall time: median of {rounds} rounds in turns [range]")
    mine = statistics.median(seconds[wanted[0]])
    for name, spent in seconds.items():
        middle = statistics.median(spent)
        times = "" if name == wanted[0] else f", {middle / mine:.1f} x our time"
        print(f"  {name:<40}{middle:6.1f} s [{min(spent):.1f}, {max(spent):.1f}]  {rows / middle:>9,.0f} impressions/s{times}")
    if len(wanted) == 1:
        print("  DuckDB is not installed: nothing to stand beside (pip install duckdb)")
    for name, theirs_sum in sums.items():
        mine_sum = total(folder / "ours-0", manifest, name)
        if abs(mine_sum - theirs_sum) > 1e-6 * max(abs(theirs_sum), 1):
            raise SystemExit(f"{name}: ours adds up to {mine_sum}, theirs to {theirs_sum}")
    if sums:
        print(f"  all {len(sums)} counters add up to the same", flush=True)


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
            by = ", ".join(f'"{name}"' for name in entity)
            base.execute(
                f"CREATE TABLE cum_{key} AS SELECT DISTINCT {by}, ts, count(*) OVER w AS n, sum(click) OVER w AS c, "
                f"sum(watch) OVER w AS s FROM log WINDOW w AS (PARTITION BY {by} ORDER BY ts RANGE UNBOUNDED PRECEDING)"
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
    for name, declared, used, user, entity in _cases(days):
        manifest, seconds[name], engine = measured(spec, declared, health, used, user, entity)
        rows = sum(record.rows for record in manifest.partitions)
        print(
            f"  {name:<26}{seconds[name]:6.1f} s  {rows / seconds[name]:>9,.0f} impressions/s  ({engine.shares(seconds[name])})", flush=True
        )
    added = sum(health.days[day].rows for day in days[len(days) // 2 :])
    slope = (seconds["all days"] - seconds["half the days"]) / added
    print(f"  each further million impressions takes {1e6 * slope:.1f} s of a core")
    for what, count in (("two years of a million a day", TWO_YEARS), ("1e12 impressions", LARGEST)):
        print(f"  {what}: {count * slope / 3600:,.1f} core-hours")


def _cases(days: list[str]) -> Iterator[tuple[str, FeatureSpec, list[str], int, int]]:
    """Yields name, features, days, user and entity buckets of each case."""
    half = days[: len(days) // 2]
    yield "all days", features(), days, 4, 4
    yield "half the days", features(), half, 4, 4
    yield "a quarter of the days", features(), days[: len(days) // 4], 4, 4
    yield "10 counters", features(10), half, 4, 4
    yield "5 counters", features(5), half, 4, 4
    yield "no counters", features(0), half, 4, 4
    yield "windows 1/8 as long", scaled(features(), 1 / 8), half, 4, 4
    yield "windows 8 x as long", scaled(features(), 8), half, 4, 4
    yield "1 user bucket", features(), half, 1, 4
    yield "16 user buckets", features(), half, 16, 4
    yield "1 entity bucket", features(), half, 4, 1
    yield "16 entity buckets", features(), half, 4, 16


def real_log(name: str, root: str, count: int) -> None:
    """Prints a real log's rate by step, beside plain pyarrow reading the same columns of the same files."""
    spec = load(LogSpec, yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()) | {"root": root})
    declared = load(FeatureSpec, yaml.safe_load((CONF / "features" / f"{name}.yaml").read_text()))
    days = discover_days(spec)[:count]
    health = scan(spec, days, ScanConfig(workers=1))
    manifest, seconds, engine = measured(spec, declared, health, days)
    logged, read_s = plain_read(spec, health, days)
    rows = sum(record.rows for record in manifest.partitions)
    print(
        f"{name}: {logged:,} rows logged, {rows:,} examples, {len(manifest.numeric) + len(manifest.categorical)} features, {len(days)} days"
    )
    print(f"  {rows / seconds:,.0f} examples/s, {logged / seconds:,.0f} logged rows/s a core; {seconds / rows * 1e6:.2f} s a million")
    print(f"  {engine.shares(seconds)}")
    print(f"  pyarrow reads the same columns at {logged / read_s:,.0f} rows/s: a rebuild takes {seconds / read_s:.0f} x that")


def plain_read(spec: LogSpec, health: HealthMap, days: list[str]) -> tuple[int, float]:
    """Reads the mapped columns of the same files with pyarrow alone; returns rows and processor seconds."""
    columns, rows, begun = list(source_columns(spec)), 0, time.process_time()
    for day in days:
        for file in health.days[day].files:
            path = Path(spec.root) / file.path
            known = [name for name in columns if name in pq.read_schema(path).names]
            rows += len(pq.read_table(path, columns=known, use_threads=False, partitioning=None))
    return rows, time.process_time() - begun


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", choices=("synthetic", "globo", "kuairand"))
    parser.add_argument("--root", help="folder of a real log")
    parser.add_argument("--days", type=int, default=12, help="all of them beside DuckDB")
    parser.add_argument("--rows", type=int, default=100_000, help="impressions a day of the synthetic log")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="whether to measure growth too")
    parser.add_argument("--folder", type=Path, help="where the temporary log lies")
    options = parser.parse_args()
    if (options.data == "synthetic") == (options.root is not None):
        parser.error("--root is the folder of a real log, and only of one")
    return options


if __name__ == "__main__":
    main()
