"""The books of a run add up, and a row that is lost, doubled or never reached is told."""

import numpy as np
import pytest

from trainer.data.plan import BatchPlan, PlannedBatch, plan_batches
from trainer.data.shards import ShardKey
from trainer.errors import TrainingError
from trainer.fit.account import DayAccount, reconcile
from trainer.fit.steps import StepLog

KEYS = [ShardKey(day, bucket) for day in ("2026-01-01", "2026-01-02") for bucket in (0, 1)]
OLD = ShardKey("2025-12-31", 0)
TARGETS = {key: np.random.default_rng(place).integers(1, 9, 40) for place, key in enumerate([*KEYS, OLD])}
ROWS = {day: sum(int(TARGETS[key].sum()) for key in KEYS if key.day == day) for day in ("2026-01-01", "2026-01-02")}


def lengths(key):
    return 3 * TARGETS[key], TARGETS[key]


def plan(ranks=1, passes=1, share=0.0, beside=False):
    return plan_batches(
        KEYS, lengths, batch_targets=32, batch_tokens=1000, passes=passes, seed=0, ranks=ranks, replay=[OLD], replay_share=share,
        replay_beside=beside,
    )  # fmt: skip


def log(steps, skipped=()):
    return [StepLog(step, 0.5, 1.0, 1.0, step in skipped) for step in range(steps)]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("ranks", "passes", "share"), [(1, 1, 0.0), (2, 1, 0.0), (1, 2, 0.25), (3, 2, 0.25)])
def test_every_row_is_trained_once_a_pass(ranks, passes, share, beside):
    planned = plan(ranks, passes, share, beside)
    account = reconcile(planned, lengths, log(planned.steps), ROWS, passes)
    assert account.new == {day: DayAccount(planned=passes * rows, trained=passes * rows) for day, rows in ROWS.items()}
    assert (set(account.replayed) == {OLD.day}) == (share > 0) and account.total.remaining == account.total.skipped == 0


def test_rows_of_skipped_steps_are_counted_apart_on_all_ranks():
    planned = plan(ranks=2)
    account = reconcile(planned, lengths, log(planned.steps, skipped={3}), ROWS, 1)
    gone = sum(int(TARGETS[batch.key][batch.units_B].sum()) for batch in planned.batches[6:8])
    assert account.total == DayAccount(planned=sum(ROWS.values()), trained=sum(ROWS.values()) - gone, skipped=gone)


def test_a_step_that_was_not_made_is_told():
    planned = plan()
    missing = [entry for entry in log(planned.steps) if entry.step != 2]
    with pytest.raises(TrainingError, match=r"before every planned row was trained[\s\S]*remain"):
        reconcile(planned, lengths, missing, ROWS, 1)


@pytest.mark.parametrize("change", ["lost", "doubled", "unknown day"])
def test_rows_that_are_not_those_of_the_rebuild_are_told(change):
    planned = plan()
    first = planned.batches[0]
    batches = {
        "lost": [PlannedBatch(first.key, first.units_B[1:]), *planned.batches[1:]], "doubled": [first, *planned.batches],
        "unknown day": [*planned.batches, PlannedBatch(OLD, np.arange(3))],
    }[change]  # fmt: skip
    with pytest.raises(TrainingError, match="not the rows that were rebuilt"):
        reconcile(BatchPlan(batches), lengths, log(len(batches)), ROWS, 1)
