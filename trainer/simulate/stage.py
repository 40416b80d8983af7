"""The stage: day by day from a specification to a folder of logs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import DataError
from trainer.schema.files import write_text
from trainer.schema.plain import as_plain, from_plain
from trainer.schema.simulation import (
    ACTIONS,
    EVENTS_FOLDER,
    EVENTS_SCHEMA,
    ITEMS_FILE,
    ITEMS_SCHEMA,
    PART_FILE,
    REPORT_FILE,
    TRUTH_FOLDER,
    UNFINISHED_FILE,
    USERS_FILE,
    USERS_SCHEMA,
    PlantedIncident,
    SimulationReport,
    SimulationSpec,
)
from trainer.simulate.delivery import deliver, json_text, truth_table, write_manifest, write_table
from trainer.simulate.feed import Feed, serve
from trainer.simulate.incidents import damage_file, damage_rows
from trainer.simulate.policy import ProductionScorer, Scorer
from trainer.simulate.world import AGE_BANDS, CHANNELS, World


def simulate(spec: SimulationSpec, out: Path) -> SimulationReport:
    """Writes a simulated log, day by day; memory does not grow with the days.

    Args:
        spec: What to simulate.
        out: Folder to write to. A finished simulation of the same specification is left as it is, an unfinished one is
            started again.

    Returns:
        What was written, also as ``simulation.json``, which is written last.

    Raises:
        DataError: If the folder holds anything else, or the catalogue dies out.
    """
    if (out / REPORT_FILE).exists():
        return _finished(spec, out)
    _clear(out)
    write_text(out / UNFINISHED_FILE, json_text(as_plain(spec)))
    world = World(spec)
    report = _days(spec, world, ProductionScorer(world), out)
    write_text(out / REPORT_FILE, json_text(as_plain(report)))
    (out / UNFINISHED_FILE).unlink()
    return report


def _finished(spec: SimulationSpec, out: Path) -> SimulationReport:
    try:
        report = from_plain(SimulationReport, json.loads((out / REPORT_FILE).read_text()))
    except (TypeError, ValueError) as error:
        where = out / REPORT_FILE
        raise DataError("cannot read the report of a simulation", where=where, got=error, remedy="give an empty folder") from error
    if report.spec != spec:
        before, now = as_plain(report.spec), as_plain(spec)
        raise DataError(
            "the folder holds another simulation", where=out, got={name: before[name] for name in now if before[name] != now[name]},
            expected={name: now[name] for name in now if before[name] != now[name]}, remedy="give an empty folder",
        )  # fmt: skip
    return report


def _clear(out: Path) -> None:
    """Makes sure that the folder is there and empty; only what an unfinished simulation left is removed."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / UNFINISHED_FILE).exists():
        raise DataError("the output folder is not empty", where=out, remedy="give an empty folder")
    for name in (EVENTS_FOLDER, TRUTH_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (USERS_FILE, ITEMS_FILE, REPORT_FILE):
        (out / name).unlink(missing_ok=True)


def _days(spec: SimulationSpec, world: World, scorer: Scorer, out: Path) -> SimulationReport:
    write_table(_users_table(world), out / USERS_FILE)
    counts: dict[str, dict[str, int]] = {name: {} for name in ("days", "events", "duplicates", "straddling", "late")}
    totals: Counter[str] = Counter()
    incidents: list[PlantedIncident] = []
    overnight = EVENTS_SCHEMA.empty_table()
    with pq.ParquetWriter(out / ITEMS_FILE, ITEMS_SCHEMA, write_page_checksum=True, store_schema=False) as items:
        for index, day in enumerate(spec.dates):
            feed = serve(world, scorer, index)
            items.write_table(_born_table(world))
            start_ms, end_ms = world.day_bounds_ms()
            delivery = deliver(spec, feed, overnight, end_ms)
            rows, planted = _write_day(spec, day, feed, delivery.table, start_ms, out)
            overnight = delivery.overnight
            incidents += planted
            today = (rows, len(feed), delivery.duplicates, delivery.straddling, delivery.late)
            for by_day, count in zip(counts.values(), today, strict=True):
                by_day[day] = count
            totals.update(_sums(feed))
    events = max(sum(counts["events"].values()), 1)
    rates = {name: totals[name] / events for name in ACTIONS}
    return SimulationReport(spec=spec, **counts, items=world.total_items, incidents=incidents, base_rates=rates)  # type: ignore[arg-type]


def _write_day(spec: SimulationSpec, day: str, feed: Feed, table: pa.Table, start_ms: int, out: Path) -> tuple[int, list[PlantedIncident]]:
    """Writes the day's log, manifest and truth; returns the number of rows written and what was planted."""
    folder = out / EVENTS_FOLDER / f"dt={day}"
    table, in_rows = damage_rows(spec, day, table, start_ms)
    write_table(table, folder / PART_FILE)
    write_manifest(folder, len(table))
    write_table(truth_table(feed), out / TRUTH_FOLDER / f"dt={day}" / PART_FILE)
    return len(table), in_rows + damage_file(spec, day, out)


def _sums(feed: Feed) -> dict[str, float]:
    if not len(feed):
        return {}
    return {name: float(feed.cells["watch_time_s" if name == "watch_time" else name].sum(dtype=np.float64)) for name in ACTIONS}


def _users_table(world: World) -> pa.Table:
    users = world.users
    columns = [
        np.arange(1, world.spec.users + 1),
        pa.array(AGE_BANDS).take(pa.array(users.age_U)),
        pa.array(CHANNELS).take(pa.array(users.channel_U)),
    ]
    return pa.table(columns, schema=USERS_SCHEMA)


def _born_table(world: World) -> pa.Table:
    born = world.born
    columns = [born.id_I, born.born_ms_I, born.author_I + 1, born.topic_I, born.duration_s_I]
    return pa.table(columns, schema=ITEMS_SCHEMA)
