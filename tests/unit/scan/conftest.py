"""A small log whose columns hang together, and a scan that reads in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import ScanConfig
from trainer.errors import RewarmError
from trainer.scan.workers import Call, Done, Failure
from trainer.schema.heat import HARMLESS
from trainer.schema.logs import ActionSpec, ColumnSpec, LogSpec, TimeSpec
from trainer.schema.time import add_days, day_start_ms, days_between

scan_run = import_module("trainer.scan.run")  # the package exports a function of the same name

FIRST, COUNT, ROWS = "2024-05-06", 10, 3000
DAYS = days_between(FIRST, add_days(FIRST, COUNT - 1))
LAST = DAYS[-1]


def specification(root, **changes) -> LogSpec:
    values = {
        "name": "linked", "root": str(root), "user": "user", "item": "item",
        "event_time": TimeSpec(column="ts"), "known_at": TimeSpec(column="ts", delay="5m"),
        "actions": {"click": ActionSpec(expression="click")},
        "features": {
            "country": ColumnSpec(), "age": ColumnSpec(kind="numeric"),
            "length": ColumnSpec(kind="numeric"), "price": ColumnSpec(kind="numeric"),
        },
        "logged_scores": {"click": "score"},
    }  # fmt: skip
    return LogSpec(**{**values, **changes})


def events(day: str, rows: int = ROWS, base: float = -1.0) -> pa.Table:
    """Country and age belong to the user, length and price to the item; production's score ranks clicks well."""
    rng = np.random.default_rng([7, *map(ord, day)])
    user, item = rng.integers(1, 401, rows), rng.integers(1, 201, rows)
    ts = np.sort(day_start_ms(day, "UTC") + (rng.random(rows) * 86_000_000).astype(np.int64))
    taste = np.sin(user * 7.7) + np.cos(item * 3.3) + np.sin(user * 1.1) * np.cos(item * 0.7)
    click = (rng.random(rows) < 1 / (1 + np.exp(-(base + 1.5 * taste)))).astype(np.int8)
    score = 1 / (1 + np.exp(-(base + 1.5 * taste + 0.4 * rng.normal(size=rows))))
    return pa.table(
        {
            "user": user, "item": item, "ts": ts, "click": click, "country": np.array(["CN", "SG", "MY", "TH"])[user % 4],
            "length": 5.0 + item % 97 * 3.0, "price": np.exp(1 + np.cos(item * 3.3) + 0.5 * rng.normal(size=rows)),
            "age": 20.0 + user % 31, "score": score,
        }
    )  # fmt: skip


def write(root: Path, day: str, table: pa.Table, name: str = "part-0.parquet") -> Path:
    path = Path(root) / f"dt={day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True)
    return path


def with_column(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def found(health, day=LAST):
    return {(fault.kind, fault.feature) for fault in health.days[day].faults} - {(kind, None) for kind in HARMLESS}


def only(health, kind, feature, day=LAST):
    assert found(health, day) == {(kind, feature)}, health.days[day].faults
    for other in DAYS:
        assert other == day or not found(health, other), (other, health.days[other].faults)
    return next(fault for fault in health.days[day].faults if fault.kind == kind)


@dataclass
class Inline:
    """Runs calls here; counts them by function."""

    calls: list[str] = field(default_factory=list)

    def __call__(self, *_: object) -> Inline:
        return self

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, call: Call) -> Done:
        self.calls.append(call.function.__name__)
        try:
            return Done(call.function(*call.arguments), [])
        except RewarmError:
            raise
        except OSError as error:
            return Done(Failure("unreadable_file", str(error)), [])

    def map(self, calls):
        yield from map(self.run, calls)


@pytest.fixture
def inline(monkeypatch) -> Inline:
    pool = Inline()
    monkeypatch.setattr(scan_run, "ReaderPool", pool)
    return pool


@pytest.fixture
def root(tmp_path) -> Path:
    for day in DAYS:
        write(tmp_path / "log", day, events(day))
    return tmp_path / "log"


@pytest.fixture
def judge(root, inline):
    """Edits days (day -> function of the table), scans, checks that the counts reconcile, and returns the health map."""

    def run(edits=None, config: ScanConfig | None = None, **changes):
        for day, edit in (edits or {}).items():
            write(root, day, edit(pq.read_table(root / f"dt={day}" / "part-0.parquet", partitioning=None)))
        health = scan_run.scan(specification(root, **changes), DAYS, config or ScanConfig())
        for state in health.days.values():
            assert state.rows == state.used + state.dropped + state.duplicates
        return health

    return run
