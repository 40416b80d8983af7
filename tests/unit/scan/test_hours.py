"""Hours that are lost: a notice before their weekday was ever seen, a fault from then on; clocks that change, and weekdays that sleep."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scan.conftest import DAYS, ROWS, events, found, only, scan_run, specification, write
from trainer.config import ScanConfig
from trainer.scan import write_scan
from trainer.scan.examine import Examined, Memory, remember
from trainer.scan.history import History, Remembered
from trainer.scan.labels import clock_hours, lost_hours
from trainer.scan.summary import FileState
from trainer.schema.time import add_days, days_between, parse_day

RNG = np.random.default_rng(0)


def without_hours(first, last, share=0.0):
    """Leaves a share of the rows of some hours, evenly."""

    def change(table):
        hour = (table["ts"].to_numpy() // 3_600_000) % 24
        left = np.arange(len(table)) % round(1 / share) == 0 if share else np.zeros(len(table), bool)
        return table.filter(pa.array((hour < first) | (hour > last) | left))

    return change


@pytest.mark.parametrize("earlier", [1, 2, 6])
def test_hours_lost_before_the_weekday_was_seen_are_a_notice(judge, tmp_path, earlier):
    """Nobody knows yet what this weekday looks like: a quiet hour is nothing, an empty one is told, and nobody is accused."""
    day = DAYS[earlier]
    assert not judge({day: without_hours(9, 11, share=0.03)}).days[day].notices, "some rows are left"
    health = judge({day: without_hours(9, 11)})
    assert all(not found(health, one) and state.status == "ok" for one, state in health.days.items())
    notices = [notice for state in health.days.values() for notice in state.notices]
    assert [(notice.kind, notice.day) for notice in notices] == [("missing_hours", day)] * (earlier >= 2)
    write_scan(health, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "scan.json").read_text())["notices"] == [vars(notice) for notice in notices]
    assert "missing_hours" not in pq.read_table(tmp_path / "run" / "quarantine" / "ledger.parquet")["kind"].to_pylist()
    for notice in notices:
        weekday = f"none of them a {parse_day(day):%A}"
        assert "9, 10, 11" in notice.what and f"{earlier} days of history" in notice.evidence and weekday in notice.evidence


@pytest.mark.parametrize("earlier", [7, 8])
def test_hours_lost_once_the_weekday_was_seen_are_a_fault(judge, earlier):
    day = DAYS[earlier]
    health = judge({day: without_hours(9, 11, share=0.01)})
    fault = only(health, "missing_hours", None, day)
    assert "9, 10, 11" in fault.evidence and abs(fault.rows - (ROWS - health.days[day].used)) < 0.25 * ROWS / 8
    assert health.days[day].status == "masked" and not any(state.notices for state in health.days.values())


def test_days_with_lost_hours_do_not_make_them_usual(judge):
    health = judge({day: without_hours(9, 11) for day in DAYS[7:]})
    assert all(found(health, day) == {("missing_hours", None)} for day in DAYS[7:])
    past = History(28, 3, 0.05)
    for number in range(24):
        state = FileState(rows=100, hour_H=np.where(np.arange(25) == 9, 0, 4) if number >= 7 else np.full(25, 4))
        day = add_days(DAYS[0], number)
        examined = Examined(list(lost_hours(past, replace(state, hour_H=20 * state.hour_H), day, "UTC")), True, Remembered(day, state))
        assert len(examined.suspicions) == (number >= 7), f"{day}: {number - 7} such days, and the hour was forgotten"
        remember(memory := Memory(past), examined, (), {}, healthy=True)
        past = memory.history


def test_an_hour_that_daylight_saving_takes_is_not_lost_and_one_beside_it_is():
    """Berlin, open from 1 to 22 h on the clock: on 31 March 2024 nobody saw 2 h, and 22 h is the 22nd hour of the day, not the 23rd."""
    zone, open_H = "Europe/Berlin", (np.arange(25) >= 1) & (np.arange(25) <= 22)
    past = History(28, 3, 0.05)
    for day in days_between("2024-03-11", "2024-03-30"):
        state = FileState(rows=1000, hour_H=40 * open_H)
        remember(memory := Memory(past), Examined([], True, Remembered(day, state)), (), {}, healthy=True)
        past = memory.history
    short_H = 40 * ((np.arange(25) >= 1) & (np.arange(25) <= 21))
    assert not list(lost_hours(past, FileState(rows=1000, hour_H=short_H), "2024-03-31", zone))
    short_H[20] = 0
    [found] = lost_hours(past, FileState(rows=1000, hour_H=short_H), "2024-03-31", zone)
    assert "hours 21," in found.evidence
    assert clock_hours(np.arange(25), "2024-10-27", zone).tolist() == [0, 1, 2 + 3, *range(4, 25)], "2 h comes twice in autumn"


def test_hours_in_which_a_weekday_sleeps_are_not_missed(root, inline):
    """Closed on Sunday mornings: a notice the first time, no fault afterwards; and a Monday that does the same is told."""
    days = days_between("2024-05-06", "2024-05-20")
    for day in days:
        asleep = parse_day(day).weekday() == 6 or day == days[-1]
        write(root, day, without_hours(4, 9)(events(day)) if asleep else events(day))
    health = scan_run.scan(specification(root), days, ScanConfig())
    assert {day for day, state in health.days.items() if state.notices} == {"2024-05-12"}
    assert {day for day in days if found(health, day)} == {"2024-05-20"}
