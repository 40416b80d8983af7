"""How fast a rebuild is: rows a second of processor time, by step, beside plain pyarrow reading the same columns of the same files.

    python scripts/bench/rebuild.py --data globo --root ../shared/data/globo --days 1 3            # growth with rows
    python scripts/bench/rebuild.py --data kuairand --root ../shared/data/kuairand --windows 1 8   # growth with the windows' length

Everything runs in this process on one thread, and processor time is counted: two busy cores give the same numbers as two idle ones,
and tasks share nothing, so n workers make n times the rows. The scan is done before and does not count. Rows are rows of the log and
the negatives drawn for them.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from trainer.config import RebuildConfig, ScanConfig, load
from trainer.logs.roles import source_columns
from trainer.rebuild import rebuild, run
from trainer.rebuild.engines import LocalEngine, Task
from trainer.scan import discover_days, scan
from trainer.schema.examples import ExamplesManifest
from trainer.schema.features import FeatureSpec
from trainer.schema.health import HealthMap
from trainer.schema.logs import LogSpec
from trainer.schema.time import day_end_ms

CONF = Path(__file__).resolve().parents[2] / "conf"
HISTORY = 50
STEPS = {
    "ingest": "read, normalise", "mark_repeats": "repeats", "write_negatives": "negatives", "write_shares": "entity shares",
    "write_drawn_shares": "negatives' shares", "write_answers": "entity counters", "write_examples": "examples",
    "write_tails": "tails", "count_ids": "vocabularies",
}  # fmt: skip


class Timed(LocalEngine):
    """Runs tasks here and adds up their processor time by function."""

    def __init__(self) -> None:
        super().__init__(workers=1)
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    def results(self, tasks: Sequence[Task]) -> Iterator[Any]:
        for task in tasks:
            begun = time.process_time()
            result = task.function(*task.arguments)
            self.seconds[task.function.__name__] += time.process_time() - begun
            yield result


def widened(features: FeatureSpec, factor: int) -> FeatureSpec:
    """Returns the same features over windows `factor` times as long."""
    counters = {name: dataclasses.replace(counter, window=f"{counter.window_ms * factor}ms") for name, counter in features.counters.items()}
    return dataclasses.replace(features, counters=counters)


def measured(spec: LogSpec, features: FeatureSpec, health: HealthMap, days: list[str]) -> tuple[ExamplesManifest, float, Timed]:
    """Rebuilds days in an empty folder; returns the manifest, processor seconds and the steps'."""
    engine = Timed()
    run.engine_of = lambda name, workers: engine  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as root:
        config = RebuildConfig(root=root, workers=1, audit_rows=0)
        begun = time.process_time()
        manifest = rebuild(spec, features, health, days, config, HISTORY, day_end_ms(days[-1], spec.timezone), days)
        return manifest, time.process_time() - begun, engine


def plain_read(spec: LogSpec, health: HealthMap, days: list[str]) -> tuple[int, float]:
    """Reads the mapped columns of the same files with pyarrow alone; returns rows and processor seconds."""
    columns, rows, begun = list(source_columns(spec)), 0, time.process_time()
    for day in days:
        for file in health.days[day].files:
            path = Path(spec.root) / file.path
            known = [name for name in columns if name in pq.read_schema(path).names]
            rows += len(pq.read_table(path, columns=known, use_threads=False, partitioning=None))
    return rows, time.process_time() - begun


def report(name: str, spec: LogSpec, features: FeatureSpec, health: HealthMap, days: list[str]) -> None:
    """Measures and prints one case."""
    manifest, seconds, engine = measured(spec, features, health, days)
    logged, read_s = plain_read(spec, health, days)
    rows = sum(record.rows for record in manifest.partitions)
    shares = {**{STEPS[step]: spent for step, spent in engine.seconds.items()}, "keys, hashes": seconds - sum(engine.seconds.values())}
    steps = ", ".join(f"{step} {spent / seconds:.0%}" for step, spent in shares.items())
    made = len(manifest.numeric) + len(manifest.categorical)
    print(f"{name}: {logged:,} rows logged, {rows:,} examples, {made} features, {len(days)} days")
    print(f"  {rows / seconds:,.0f} examples/s, {logged / seconds:,.0f} logged rows/s a core; {seconds / rows * 1e6:.2f} s a million")
    print(f"  {steps}")
    print(f"  pyarrow reads the same columns at {logged / read_s:,.0f} rows/s: a rebuild takes {seconds / read_s:.0f} x that", flush=True)


def main() -> None:
    """Measures the asked cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="globo", choices=("globo", "kuairand"))
    parser.add_argument("--root", required=True, help="folder of the log")
    parser.add_argument("--days", type=int, nargs="+", default=[3], help="numbers of days, one case each")
    parser.add_argument("--windows", type=int, nargs="+", default=[1], help="factors of the windows' length, one case each")
    asked = parser.parse_args()
    values = yaml.safe_load((CONF / "data" / f"{asked.data}.yaml").read_text()) | {"root": asked.root}
    spec = load(LogSpec, values)
    features = load(FeatureSpec, yaml.safe_load((CONF / "features" / f"{asked.data}.yaml").read_text()))
    days = discover_days(spec)[: max(asked.days)]
    health = scan(spec, days, ScanConfig(workers=1))
    pa.set_cpu_count(1)
    for count in asked.days:
        for factor in asked.windows:
            report(f"{asked.data}, windows x {factor}", spec, widened(features, factor), health, days[:count])


if __name__ == "__main__":
    main()
