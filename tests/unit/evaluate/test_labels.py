"""Production ranks the labels of new days: turned-over ones are told at any base rate, a world that moved is not."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluate.labels import MOST_ROWS, rank_day, turned_over
from trainer.schema.logs import ActionSpec, LogSpec, TimeSpec

SPEC = LogSpec(
    name="x", root="none", user="u", item="i", event_time=TimeSpec(column="t"), known_at=TimeSpec(column="t"),
    actions={
        "click": ActionSpec(expression="click"), "watch": ActionSpec(expression="watch", kind="duration"),
        "follow": ActionSpec(expression="follow", gated=False),
    },
)  # fmt: skip
UNTIL = 1_000


def part(seed, base, *, flip=False, noise=1.0, rows=3000, known_at=0):
    """Examples whose clicks follow a score that production sees with noise."""
    rng = np.random.default_rng(seed)
    logit = np.log(base / (1 - base)) + rng.normal(size=rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-logit))
    return pa.table(
        {
            "user": rng.integers(0, 300, rows), "event_time": np.zeros(rows, np.int64), "known_at": np.full(rows, known_at),
            "label_click": (click ^ flip).astype(np.float32), "label_watch": np.ones(rows, np.float32),
            "label_follow": (rng.random(rows) < 0.5).astype(np.float32), "score": logit + noise * rng.normal(size=rows),
        }
    )  # fmt: skip


class Production:
    """Scores the click; remembers how many rows it was shown."""

    def __init__(self):
        self.rows = 0

    def score(self, examples, tail, known_until_ms):
        self.rows += len(examples)
        return SimpleNamespace(score_N={"click": examples["score"].to_numpy()})


def ranked(*days):
    return [one for day, table in enumerate(days) for one in rank_day(SPEC, Production(), f"d{day}", [lambda t=table: (t, t)], UNTIL)]


@pytest.mark.parametrize("base", [0.05, 0.5, 0.9])
def test_a_flip_is_told_also_where_the_mean_does_not_move(base):
    found = ranked(*(part(day, base, flip=day == 3) for day in range(5)))
    [(odd, usual)] = turned_over(found)
    assert (odd.day, odd.action) == ("d3", "click") and odd.auc == pytest.approx(1 - usual, abs=0.04)
    assert base != 0.5 or abs(odd.base_rate - found[0].base_rate) < 0.03


def test_a_world_that_moved_while_production_ranks_is_left_alone():
    rare, poor = part(3, 0.05), part(4, 0.5, noise=8.0)
    assert turned_over(ranked(part(0, 0.5), part(1, 0.5), rare, poor)) == [], "another base rate; half of the ranking lost"


def test_a_production_that_never_ranks_says_nothing_about_a_day():
    backwards = [part(day, 0.5, flip=True) for day in range(4)]
    assert turned_over(ranked(*backwards)) == [] and turned_over(ranked(part(0, 0.5, flip=True))) == []


def test_few_unripe_and_ungated_labels_are_not_judged():
    assert ranked(part(0, 0.5, rows=30)) == [] and ranked(part(0, 0.5, known_at=UNTIL + 1)) == []
    assert {one.action for one in ranked(part(0, 0.5))} == {"click"}, "watch is no binary action, follow is not gated"


def test_a_day_is_looked_at_only_as_far_as_it_takes():
    production = Production()
    read = []

    def reader(seed):
        read.append(seed)
        return part(seed, 0.5), None

    [found] = rank_day(SPEC, production, "d", [partial(reader, seed) for seed in range(6)], UNTIL)
    assert production.rows == found.rows == MOST_ROWS == 5000 and read == [0, 1], "3,000 rows of the first, 2,000 of the second"
