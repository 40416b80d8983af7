"""Days that production has learned are never new again, unless their contents changed: a second pass is another experiment."""

from dataclasses import replace

import pytest

from tests.integration.conftest import configure
from trainer.days import plan_days
from trainer.errors import DataError
from trainer.rebuild.plan import content_hash
from trainer.schema.health import DayHealth, FileHealth, HealthMap

DAYS = [f"2026-03-0{day}" for day in range(2, 8)]


def healthy(day, sha256="a", **changes):
    return replace(DayHealth(status="ok", files=[FileHealth(path=f"dt={day}/part.parquet", sha256=sha256, rows=10, bytes=100)]), **changes)


@pytest.fixture
def spec():
    return configure("data.root=none", "registry.root=none", "run_dir=none").data


def plan(spec, health, trained):
    contents = {day: content_hash(day, state) for day, state in health.items()}
    return plan_days(spec, HealthMap(days=health), contents, trained, DAYS[-1], 1)


def hashes(health, days):
    return {day: content_hash(day, health[day]) for day in days}


def test_days_that_production_has_learned_are_not_new(spec):
    health = {day: healthy(day) for day in DAYS}
    planned = plan(spec, health, hashes(health, DAYS[:3]))
    assert planned.seen == DAYS[:3]
    assert planned.train and not set(planned.train) & set(DAYS[:3])
    assert sorted([*planned.seen, *planned.train, *planned.holdout, *planned.unripe]) == DAYS


@pytest.mark.parametrize(
    "repaired",
    [
        healthy(DAYS[1], sha256="repaired"),
        healthy(DAYS[1], masked_columns=["score"]),
        healthy(DAYS[1], files=[*healthy(DAYS[1]).files, FileHealth(path=f"dt={DAYS[1]}/late.parquet", sha256="c", rows=1, bytes=9)]),
    ],
    ids=["another file", "another mask", "a late file"],
)
def test_a_repaired_day_is_new_again_and_the_others_are_not(spec, repaired):
    before = {day: healthy(day) for day in DAYS}
    planned = plan(spec, {**before, DAYS[1]: repaired}, hashes(before, DAYS[:3]))
    assert DAYS[1] in planned.train and planned.seen == [DAYS[0], DAYS[2]]


def test_a_moved_folder_is_not_a_repair(spec):
    before = {day: healthy(day) for day in DAYS}
    moved = replace(before[DAYS[1]], files=[replace(before[DAYS[1]].files[0], path="elsewhere/part.parquet")])
    assert DAYS[1] in plan(spec, {**before, DAYS[1]: moved}, hashes(before, DAYS[:3])).seen


def test_nothing_new_to_learn_is_said_before_anything_is_read(spec):
    health = {day: healthy(day) for day in DAYS}
    with pytest.raises(DataError, match="production has learned every day before the judged ones") as error:
        plan(spec, health, hashes(health, DAYS))
    assert "warm_start=none" in str(error.value.remedy)
