"""The succession table from scores: paired gaps, curves over nights, arms on different rows refused."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from tests.integration.conftest import configure_backtest
from trainer.backtest.meter import Point
from trainer.backtest.show import show
from trainer.backtest.table import Night, curves_of, steps_of, succession_of
from trainer.errors import DataError
from trainer.schema.succession import CURVES_SCHEMA

DAYS = ["2026-03-06", "2026-03-07"]
ACTIONS = ("click", "long_view", "like")


def scores(day, noise, seed=0):
    """200 rows of 40 users with true probabilities; an arm's scores are those plus `noise` on the log-odds."""
    rng = np.random.default_rng([seed, DAYS.index(day)])
    columns = {
        "user": rng.integers(0, 40, 200),
        "item": rng.integers(0, 99, 200),
        "time": np.arange(200),
        "weight": np.ones(200, np.float32),
    }
    wobble = np.random.default_rng(7).normal(size=200)
    for action in ACTIONS:
        logit = rng.normal(-1, 1.5, 200)
        columns["label_" + action] = (rng.random(200) < 1 / (1 + np.exp(-logit))).astype(float)
        columns["score_" + action] = 1 / (1 + np.exp(-logit - noise * wobble))
    return pa.table(columns)


def nights(arm, noise, cost, seed=0, points=()):
    found = []
    for number, day in enumerate(DAYS):
        on_the_way = [Point(step, step * cost // 10, 0.1 * step, dict.fromkeys(ACTIONS, ne)) for step, ne in points] if not number else []
        found.append(Night(arm, seed, day, number * cost, float(number), [*on_the_way, Point(10, cost, 1.0, {})], scores(day, noise)))
    return found


@pytest.fixture(scope="module")
def config():
    return configure_backtest("arms.warm_grown.seeds=2")


@pytest.fixture(scope="module")
def replayed():
    return [
        *nights("production_continued", 0.3, 50), *nights("production_frozen", 1.5, 0), *nights("scratch_all", 0.35, 1000),
        *nights("warm_grown", 0.2, 100, points=((0, 9.0), (5, 0.1))), *nights("warm_grown", 0.2, 100, seed=1),
    ]  # fmt: skip


def test_gaps_are_paired_and_have_the_sign_of_the_difference(config, replayed):
    found = {(r.arm, r.seed): r for r in succession_of(config, replayed).results if r.action == "click"}
    assert found["production_continued", 0].gap.value == 0
    assert found["production_frozen", 0].gap.low > 0, "much noisier scores are worse beyond doubt"
    grown = found["warm_grown", 0]
    assert grown.gap.value < 0 and grown.gap.value == pytest.approx(grown.ne.value / found["production_continued", 0].ne.value - 1)
    own_width = grown.ne.high - grown.ne.low
    assert (grown.gap.high - grown.gap.low) < own_width / 2, "the same rows: what both find hard cancels"


def test_compute_counts_from_the_first_night_and_bounds_what_was_never_reached(config, replayed):
    found = {(r.arm, r.seed): r for r in succession_of(config, replayed).results if r.action == "click"}
    grown = found["warm_grown", 0]
    assert (grown.level.flops, grown.level.share, grown.level.reached) == (50, 0.05, True), "the point on the way, not the beginning"
    assert found["warm_grown", 1].level.flops == 100 and grown.flops == 200 and grown.seconds == 2.0
    frozen = found["production_frozen", 0]
    assert not frozen.level.reached and frozen.level.flops == 0
    assert found["scratch_all", 0].reach.share == 1.0 and found["scratch_all", 0].reach.reached


def test_an_arm_may_have_a_reference_of_its_own(replayed):
    other = configure_backtest("arms.warm_grown.reference=last", "arms.last.start=none")
    found = {(r.arm, r.seed): r for r in succession_of(other, [*replayed, *nights("last", 0.25, 400)]).results if r.action == "click"}
    assert found["warm_grown", 0].reference == "last" and found["warm_grown", 0].level.share == 50 / 400
    assert found["scratch_all", 0].reference == "scratch_all" and found["scratch_all", 0].reach.share == 1.0


def test_curves_hold_every_judged_point(config, replayed):
    succession = succession_of(config, replayed)
    table = curves_of(succession, replayed)
    assert table.schema == CURVES_SCHEMA
    rows = [r for r in table.to_pylist() if (r["arm"], r["seed"], r["action"]) == ("warm_grown", 0, "click")]
    assert [(r["day"], r["step"], r["last"], r["flops"]) for r in rows] == [
        (DAYS[0], 0, False, 0), (DAYS[0], 5, False, 50), (DAYS[0], 10, True, 100), (DAYS[1], 10, True, 200)
    ]  # fmt: skip
    goal = next(r for r in succession.results if (r.arm, r.action) == ("production_continued", "click")).nights[DAYS[0]]
    assert rows[0]["gap"] == pytest.approx(9.0 / goal - 1)
    assert len(table) == len(ACTIONS) * (5 * len(DAYS) + 2)


def test_points_that_were_not_judged_say_nothing():
    run = nights("arm", 0.2, 100, points=((5, 0.5),))
    silent = dataclasses.replace(run[0], points=[Point(0, 0, 0.0, {}), *run[0].points])
    assert [step.flops for step in steps_of([silent, run[1]], run, "click", "binary")] == [50, 100, 200]


def test_arms_on_different_rows_are_refused(config, replayed):
    other = dataclasses.replace(replayed[2], scores=replayed[2].scores.slice(1))
    with pytest.raises(DataError, match="different rows") as error:
        succession_of(config, [*replayed[:2], other, *replayed[3:]])
    assert "199 rows" in str(error.value) and "production_frozen" in str(error.value)


def test_the_printed_table_marks_bounds_and_ranges(config, replayed):
    stream = io.StringIO()
    show(succession_of(config, replayed), Console(file=stream, width=200))
    lines = {line.split("│")[1].strip(): line for line in stream.getvalue().splitlines() if line.startswith("│")}
    assert "> 0.0%" in lines["production_frozen"] and "warm_grown (2 seeds)" in lines
    assert "5.0%, 10.0%" in lines["warm_grown (2 seeds)"]
