"""What each kind of damage does to a scan, and to readers that do not look.

    python scripts/bench/corruption.py [kinds=weekly|all|none|NAME,NAME] [seeds=3] [days=12] [readers=pyarrow,ray,hf] [speed=true]
                                       [folder=DIR]

For every seed a simulated log is written, scanned clean (every row of its ledger but duplicates and late rows is a false alarm), then
damaged in one way at a time, on its last day, by `trainer.inject`, and scanned again. The table says how often the damage was
detected (a ledger row of the right kind, on the right day, that the clean log has not), placed (the right column), handled as the
catalogue says, counted (rows reconcile; what can be counted exactly was), and what else was accused. Beside it stand plain readers
of the same day: did they crash, hang, or deliver wrong cells without a word? A wrong cell is one that differs from the clean log's
cell of the same event and is not null; rows that the clean log has not count whole. Cells are compared as scan hands them over:
NaN becomes null, and repeated deliveries go, one step later, when rows are turned into events.

The weekly kinds come first (`weekly` in trainer/schema/faults.py): they need no failing hardware and no malice. A job is killed, retried
or finishes late (truncated, empty, missing, unexpected and doubled files, missing hours, late rows); a producer is released with another
schema, unit or default (missing column, garbage types, NaN, sentinels, unit change); a join finds nothing (zero-filled features, labels all
zero, yesterday's values). Their misses and false alarms are what a team meets every Monday.

Ray Data (``pip install rewarm[ray]``) and Hugging Face datasets (``pip install datasets``) are read where they are installed, and named
where they are not. Each reader keeps one process; what it takes to start (Ray: a cluster) is within its deadline.

``speed=true``: rows/s of the statistics pass on 32 columns; and what the loader that everything behind the scan reads through
(`trainer.logs.deliver`: whole-file hash, UTF-8, types, treatment; the hash is that of the bytes whose page checksums scan has verified)
costs beside plain pyarrow on the same columns: a made-up file of 32 columns, and a day of each real log in the folder REWARM_DATA
(default ../shared/data), written again with page checksums. One thread: processor and wall time, in turns. Two cores: wall time of many
files, pyarrow with its own threads on one after the other, ours in two processes of the rebuild, started before.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from trainer.config import ScanConfig, load
from trainer.errors import ConfigError, DataError
from trainer.inject import HAZARDS, KINDS, Score, hazard, inject, score
from trainer.inject.score import HARMLESS
from trainer.logs.conform import ARROW_TYPES, logical_type
from trainer.logs.deliver import delivered
from trainer.logs.hashing import combine, hash_ids
from trainer.logs.layout import day_folder, discover_days
from trainer.logs.roles import source_columns
from trainer.rebuild.engines import ROWS_A_WORKER, LocalEngine, Task
from trainer.scan import check_budget, scan, write_scan
from trainer.scan.links import links
from trainer.scan.states import column_state
from trainer.scan.summary import id_columns
from trainer.scan.workers import Call, Failure, Reader
from trainer.schema.faults import CATALOGUE
from trainer.schema.health import DayHealth, FileHealth, HealthMap
from trainer.schema.injection import FaultSettings
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, TimeSpec
from trainer.schema.simulation import SimulationSpec
from trainer.simulate import simulate

CONF = Path(__file__).parents[2] / "conf"
DAY = "2026-03-02"  # of the files whose reading is timed
DEADLINE_S, SLOW_S = 15.0, 3.0
PEER_DEADLINE_S = 180.0  # a cluster of Ray takes up to a minute to start on a busy machine, and stays
PEERS: dict[str, Reader] = {}


def main() -> None:
    settings = {"kinds": "weekly", "seeds": 3, "days": 12, "readers": "pyarrow,ray,hf", "speed": True, "folder": None}
    settings |= {name: yaml.safe_load(value) for name, value in (argument.split("=", 1) for argument in sys.argv[1:])}
    groups = {"weekly": weekly(), "all": [*weekly(), *(kind for kind in KINDS if kind not in weekly())], "none": []}
    kinds, readers = groups.get(settings["kinds"], str(settings["kinds"]).split(",")), str(settings["readers"]).split(",")
    if unknown := [*sorted(set(kinds) - set(KINDS)), *sorted(set(readers) - set(READERS))]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; readers are {', '.join(READERS)}, kinds those of trainer/schema/faults.py")
    with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
        if settings["speed"]:
            speed(Path(folder))
        if kinds:
            run(kinds, int(settings["seeds"]), int(settings["days"]), readers, Path(folder))


def weekly() -> list[str]:
    return [name for name, kind in CATALOGUE.items() if kind.weekly]


def run(kinds: list[str], seeds: int, days: int, readers: list[str], folder: Path) -> None:
    scores: dict[str, list[Score]] = defaultdict(list)
    ours: dict[str, list[str]] = defaultdict(list)
    others: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    alarms = judged = 0
    for seed in range(seeds):
        spec, config = written(folder / f"log-{seed}", seed, days), settings_of(folder)
        clean = scan(spec, discover_days(spec), config)
        alarms += sum(fault.kind not in HARMLESS for state in clean.days.values() for fault in state.faults)
        judged += len(clean.days)
        for kind in kinds:
            copy = replace(spec, root=str(folder / "damaged"))
            outcome = one(spec, copy, kind, seed, config, clean, readers if seed == 0 else [])
            scores[kind].append(outcome[0])
            ours[kind].append(outcome[1])
            for reader, said in outcome[2].items():
                others[kind][reader].append(said)
            shutil.rmtree(copy.root)
            print(f"seed {seed}  {kind:<22} {'as specified' if outcome[0].perfect else outcome[0]}", file=sys.stderr, flush=True)
    for reader in PEERS.values():
        reader.close()
    show(scores, ours, others, readers)
    allowed = judged / 30 * config.false_alarms
    print(f"clean logs: {alarms} false alarms in {judged} days; the budget allows {allowed:.2f}")


def written(root: Path, seed: int, days: int) -> LogSpec:
    """Writes a simulated log and returns its specification."""
    simulate(SimulationSpec(seed=seed, days=days), root)
    return load(LogSpec, yaml.safe_load((CONF / "data" / "simulated.yaml").read_text()) | {"root": str(root)})


def settings_of(folder: Path) -> ScanConfig:
    """The shipped policy; deadlines are short, because hangs are waited for."""
    values = yaml.safe_load((CONF / "scan" / "default.yaml").read_text())
    return load(ScanConfig, values | {"root": str(folder / "store"), "read_deadline_s": DEADLINE_S, "slow_read_s": SLOW_S})


def one(
    spec: LogSpec, copy: LogSpec, kind: str, seed: int, config: ScanConfig, clean: HealthMap, readers: list[str]
) -> tuple[Score, str, dict[str, str]]:
    """Plants one kind on the last day, scans, and lets the plain readers read the same day."""
    day = list(clean.days)[-1]
    settings = yaml.safe_load((CONF / "faults" / f"{kind}.yaml").read_text())[kind]
    truth, sites = inject(spec, Path(copy.root), {kind: load(FaultSettings, settings)}, day=day, seed=seed)
    if kind == "disk_full":
        return full_disk(clean, sites, Path(copy.root)), "-", {}
    with ExitStack() as stack:
        planted = [record for site in sites for record in stack.enter_context(hazard(site))] or truth.planted
        health = scan(copy, list(clean.days), config)
        found = score(planted, health, clean, stopped(health, config))
        reference = read_day(spec, day)
        said = {name: read_by(copy, day, READERS[name][1], spec, reference) for name in readers if installed(name)}
    if kind in HAZARDS:
        health = scan(copy, list(clean.days), config) if found.detected and health.days[day].used else health
    return found, delivered_by_scan(copy, day, health, spec, reference), said


def stopped(health: HealthMap, config: ScanConfig) -> bool:
    try:
        check_budget(health, config)
    except DataError:
        return True
    return False


def full_disk(clean: HealthMap, sites: list[Any], folder: Path) -> Score:
    """The ledger itself cannot be written: the scan must say so and leave no half of it."""
    raised = False
    with hazard(sites[0]):
        try:
            write_scan(clean, folder / "run")
        except OSError:
            raised = True
    left = [path for path in (folder / "run").rglob("*") if path.is_file() and path.stat().st_size]
    return Score(raised, True, raised and not left, not left, [])


def read_day(spec: LogSpec, day: str) -> pa.Table:
    """Reads a clean day."""
    return pa.concat_tables([pq.read_table(Path(spec.root) / path, partitioning=None) for path in day_folder(spec, day).files])


def delivered_by_scan(copy: LogSpec, day: str, health: HealthMap, spec: LogSpec, reference: pa.Table) -> str:
    state = health.days[day]
    if state.status == "refused":
        return "day refused"
    tables = [delivered(copy, file, state, health.types) for file in state.files if not file.quarantined]
    return compared(pa.concat_tables(tables), reference, spec)


def compared(table: pa.Table, reference: pa.Table, spec: LogSpec) -> str:
    """Counts cells that are neither null nor the clean log's, event by event."""
    try:
        key_N, key_M = (event_keys(one, spec) for one in (table, reference))
    except (KeyError, ConfigError, DataError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return f"keys unreadable ({type(error).__name__})"
    order_M = np.argsort(key_M, kind="stable")
    place_N = np.minimum(np.searchsorted(key_M[order_M], key_N), len(key_M) - 1)
    known_N = key_M[order_M][place_N] == key_N
    wrong = int((~known_N).sum()) * len(reference.column_names)
    rows = pa.array(order_M[place_N][known_N])
    for name in set(table.column_names) & set(reference.column_names):
        mine, theirs = table[name].filter(pa.array(known_N)), reference[name].take(rows)
        wrong += differing(mine, theirs)
    lost = len(set(key_M.tolist()) - set(key_N.tolist()))
    extra = len(table) - len(reference)
    parts = [
        f"{wrong:,} wrong cells" if wrong else "",
        f"{lost:,} rows lost" if lost else "",
        f"{extra:,} rows too many" if extra > 0 else "",
    ]
    return ", ".join(filter(None, parts)) or "no wrong cell"


def event_keys(table: pa.Table, spec: LogSpec) -> np.ndarray:
    columns = [spec.event_id] if spec.event_id else [spec.user, spec.item, spec.event_time.column]
    return combine(
        *(hash_ids(table[str(name)].combine_chunks()) for name in columns), hash_ids(table[str(spec.known_at.column)].combine_chunks())
    )


def differing(mine: pa.ChunkedArray, theirs: pa.ChunkedArray) -> int:
    one, other = mine.to_pylist(), theirs.to_pylist()
    return sum(
        a is not None and a != b and not (isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-6 * abs(b))
        for a, b in zip(one, other, strict=True)
    )


def read_by(copy: LogSpec, day: str, reader: Callable[[str], pa.Table], spec: LogSpec, reference: pa.Table) -> str:
    """Lets a plain reader read the day, in a process that can be killed."""
    guarded = PEERS.setdefault(reader.__name__, Reader(PEER_DEADLINE_S, 32.0))  # starts again by itself after a hang
    folder = str((Path(copy.root) / copy.layout.path / f"{copy.layout.partition}={day}").resolve())
    result = guarded.run(Call(guard, (reader.__name__, folder)))
    if isinstance(result, Failure):
        return {"read_timeout": "hangs", "worker_killed": "dies"}.get(result.kind, f"crashes ({result.kind})")
    return result if isinstance(result, str) else compared(result, reference, spec)


def guard(name: str, folder: str) -> pa.Table | str:
    """Runs a reader by name; its exception is an answer."""
    try:
        return globals()[name](folder)
    except Exception as error:
        return f"crashes ({type(error).__name__})"


def pyarrow_dataset(folder: str) -> pa.Table:
    return ds.dataset(folder, format="parquet").to_table()


def ray_data(folder: str) -> pa.Table:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=1, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False, configure_logging=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
    tables = [
        pa.table(batch) if isinstance(batch, dict) else batch
        for batch in ray.data.read_parquet(folder).iter_batches(batch_format="pyarrow")
    ]
    return pa.concat_tables(tables, promote_options="permissive")


def hf_datasets(folder: str) -> pa.Table:
    from datasets import load_dataset

    return load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train").data.table


READERS = {"pyarrow": ("pyarrow", pyarrow_dataset), "ray": ("ray", ray_data), "hf": ("datasets", hf_datasets)}  # name -> module, reader


def installed(name: str) -> bool:
    return find_spec(READERS[name][0]) is not None


def show(scores: dict[str, list[Score]], ours: dict[str, list[str]], others: dict[str, dict[str, list[str]]], readers: list[str]) -> None:
    print(
        "| kind | weekly | detected | placed | handled | counted | false alarms | delivered after the scan | " + " | ".join(readers) + " |"
    )
    print("|---" * (8 + len(readers)) + "|")
    for kind, found in scores.items():
        rates = [f"{sum(getattr(one, name) for one in found)}/{len(found)}" for name in ("detected", "placed", "handled", "counted")]
        alarms = sum(len(one.false_alarms) for one in found)
        cells = [kind, "yes" if CATALOGUE[kind].weekly else "", *rates, str(alarms), ours[kind][0]]
        for reader in readers:
            cells.append((others[kind][reader] or ["-"])[0] if installed(reader) else "not installed")
        print("| " + " | ".join(cells) + " |")
    total = [one for found in scores.values() for one in found]
    missed = sum(not one.detected for one in total)
    print(f"\n{len(total)} pieces of damage: {missed} missed, {sum(one.perfect for one in total)} exactly as specified, "
          f"{sum(len(one.false_alarms) for one in total)} false alarms")  # fmt: skip
    absent = [f"{name} (pip install {READERS[name][0]})" for name in readers if not installed(name)]
    print(f"readers that are not installed: {', '.join(absent) or 'none'}")


def speed(folder: Path) -> None:
    """Rows a second of the statistics, and what all checks cost beside plain reading."""
    wide = made_up(400_000)
    user_N, item_N = hash_ids(wide["user"]), hash_ids(wide["item"])
    features, ids = {name: wide[name].combine_chunks() for name in wide.column_names}, id_columns(made_up_spec())

    def statistics() -> None:
        for name, column in features.items():
            column_state(column, user_N, name in ids, None if name in ids else features["item"])
        links(features, user_N, item_N)

    spent = turns(statistics, times=12)[0][:, 0].min()
    print(f"statistics: {len(wide) / spent:,.0f} rows/s of {len(features)} columns on one core (processor time)\n")
    print(
        "| one file | rows | columns | MB | plain, rows/s | all checks, rows/s | share of plain: processor time, median [quartiles] "
        "| one thread, wall | two cores, wall | beside plain and cast |"
    )
    print("|---" * 10 + "|")
    with ExitStack() as stack:
        pool = LocalEngine(2)
        stack.callback(pool.close)
        for name, spec, table in [("made up", made_up_spec(), wide), *real_days()]:
            print(reading(name, replace(spec, root=str(folder / "speed" / name)), table, pool), flush=True)


def reading(name: str, spec: LogSpec, table: pa.Table, pool: LocalEngine) -> str:
    """Reads one file plainly and as everybody behind the scan reads it; returns a line of the table."""
    path = Path(spec.root) / spec.layout.path / f"{spec.layout.partition}={DAY}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path, write_page_checksum=True, compression="zstd", row_group_size=100_000)
    data, columns = path.read_bytes(), list(source_columns(spec))
    health = DayHealth(status="ok", files=[])
    file = FileHealth(path=str(path.relative_to(spec.root)), sha256=sha256(data).hexdigest(), rows=len(table), bytes=len(data))
    types = {column: logical_type(table.schema.field(column).type) for column in columns}
    schema = pa.schema([(column, ARROW_TYPES[kind]) for column, kind in types.items()])

    def plain() -> pa.Table:
        return pq.ParquetFile(path).read(columns=columns, use_threads=False)

    tasks = (plain, lambda: delivered(spec, file, health, types), lambda: plain().select(columns).cast(schema))
    plain_R, ours_R, cast_R = turns(*tasks, times=max(20, 1_000_000 // len(table)))
    share_R = plain_R / ours_R
    low, median, high = np.quantile(share_R[:, 0], (0.25, 0.5, 0.75))
    rates = [f"{len(table) / np.median(taken_R[:, 0]):,.0f}" for taken_R in (plain_R, ours_R)]
    shares = [f"{median:.0%} [{low:.0%}, {high:.0%}]", f"{np.median(share_R[:, 1]):.0%}"]
    both = on_two_cores(spec, file, health, types, pool)
    cells = [name, f"{len(table):,}", len(columns), f"{len(data) / 1e6:.1f}", *rates, *shares, f"{both:.0%}"]
    return "| " + " | ".join(map(str, [*cells, f"{np.median(cast_R[:, 0] / ours_R[:, 0]):.0%}"])) + " |"


def on_two_cores(spec: LogSpec, file: FileHealth, health: DayHealth, types: dict[str, str], pool: LocalEngine) -> float:
    """Returns the share of plain's wall time: pyarrow reads file after file with its own threads, ours in the rebuild's two processes."""
    count = 2 * ROWS_A_WORKER // file.rows + 8
    tasks = [Task(rows_delivered, (spec, file, health, types), file.rows)] * count
    list(pool.results(tasks))  # starts it

    def plain() -> None:
        for _ in tasks:
            pq.ParquetFile(Path(spec.root) / file.path).read(columns=list(types))

    own = pa.cpu_count()
    pa.set_cpu_count(2)  # the one thread of all else here would hold for Arrow too
    plain_R, ours_R = turns(plain, lambda: list(pool.results(tasks)), times=5)
    pa.set_cpu_count(own)
    return float(np.median(plain_R[:, 1] / ours_R[:, 1]))


def rows_delivered(spec: LogSpec, file: FileHealth, health: DayHealth, types: dict[str, str]) -> int:
    """Reads a file as a task of the rebuild does, and keeps it there."""
    return len(delivered(spec, file, health, types))


def made_up(rows: int) -> pa.Table:
    """Returns 32 columns of every type."""
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, rows // 10, rows), "item": rng.integers(0, rows // 100, rows)}
    columns |= {"time": np.sort(rng.integers(0, 86_400_000, rows)), "click": rng.integers(0, 2, rows)}
    columns |= {f"real_{i}": rng.normal(size=rows) for i in range(14)}
    columns |= {f"count_{i}": rng.integers(0, (5, 50, 1000, 100_000)[i % 4], rows) for i in range(8)}
    return pa.table(columns | {f"word_{i}": rng.choice(["a", "b", "c", "other"], rows) for i in range(6)})


def made_up_spec() -> LogSpec:
    words = {f"word_{i}": ColumnSpec() for i in range(6)}
    numbers = {name: ColumnSpec(kind="numeric") for name in [*(f"real_{i}" for i in range(14)), *(f"count_{i}" for i in range(8))]}
    time = TimeSpec(column="time", unit="ms")
    return LogSpec(
        name="made up", root="", user="user", item="item", event_time=time, known_at=time, features=words | numbers,
        actions={"click": ActionSpec(expression="click")},
    )  # fmt: skip


def real_days() -> Iterator[tuple[str, LogSpec, pa.Table]]:
    """Returns a day of each real log that is there."""
    folder = Path(os.environ.get("REWARM_DATA", Path(__file__).parents[3] / "shared" / "data"))
    for name in ("kuairand", "globo"):
        if (folder / name).is_dir():
            spec = load(LogSpec, yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()) | {"root": str(folder / name)})
            yield name, spec, read_day(spec, discover_days(spec)[1])
        else:
            print(f"{name} is not in {folder}", file=sys.stderr)


def turns(*tasks: Callable[[], Any], times: int) -> list[np.ndarray]:
    """Times tasks that take turns, so that a busy neighbour slows all of them.

    Returns:
        Processor and wall seconds of every run of each task: float64 [R, 2].
    """
    seconds: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for _ in range(times):
        for task, taken in zip(tasks, seconds, strict=True):
            spent, begun = time.process_time(), time.perf_counter()
            task()
            taken.append((time.process_time() - spent, time.perf_counter() - begun))
    return [np.array(taken) for taken in seconds]


if __name__ == "__main__":
    main()
