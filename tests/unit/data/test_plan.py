from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from trainer.data.plan import cut, plan_batches
from trainer.data.shards import ShardKey

KEYS = [ShardKey(f"2026-01-{day:02d}", bucket) for day in range(1, 6) for bucket in range(2)]


def lengths(key):
    rng = np.random.default_rng([int(key.day[-2:]), key.bucket])
    return rng.integers(0, 60, 90), rng.integers(1, 5, 90)


def plan(**overrides):
    settings = {"batch_targets": 40, "batch_tokens": 600, "passes": 1, "seed": 3, **overrides}
    return plan_batches(KEYS, lengths, **settings)


def units(batches, *, new=True):
    return sorted((p.key, int(u)) for b in batches for p in b.parts if p.new is new for u in p.units_B)


def targets_of(batches, *, new=True):
    return np.array([sum(int(lengths(p.key)[1][p.units_B].sum()) for p in b.parts if p.new is new) for b in batches])


def test_every_unit_is_trained_exactly_once_per_pass():
    expected = sorted((key, unit) for key in KEYS for unit in range(90))
    assert units(plan().batches) == expected
    assert units(plan(passes=3).batches) == sorted(expected * 3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_every_step_and_lose_nothing(ranks):
    planned = plan(ranks=ranks)
    assert len(planned.batches) == planned.steps * ranks
    assert all(len(planned.of_rank(rank)) == planned.steps for rank in range(ranks))
    assert units(planned.batches) == units(plan().batches)


def test_single_units_are_padded_with_empty_batches():
    planned = plan_batches(
        [KEYS[0]], lambda key: (np.array([5]), np.array([1])), batch_targets=1, batch_tokens=10, passes=1, seed=0, ranks=2
    )
    assert [len(batch.units_B) for batch in planned.batches] == [1, 0]


def test_budgets_hold():
    for key in KEYS:
        tokens_U, targets_U = lengths(key)
        for batch in cut(tokens_U, targets_U, 40, 600, np.random.default_rng(0)):
            assert (tokens_U[batch] + 1).sum() <= 600 + 60 or len(batch) == 1
            assert targets_U[batch].sum() <= 40 + targets_U.max()


def test_same_seed_same_plan_other_seed_other_plan():
    def flat(planned):
        return [(b.key, tuple(b.units_B)) for b in planned.batches]

    assert flat(plan()) == flat(plan())
    assert flat(plan()) != flat(plan(seed=4))


def test_batches_hold_units_of_similar_length():
    tokens_U, targets_U = lengths(KEYS[0])
    batches = cut(tokens_U, targets_U, 40, 10_000, np.random.default_rng(0))
    within = np.mean([tokens_U[b].std() for b in batches])
    assert within < 0.5 * tokens_U.std()


def test_replay_makes_up_its_share():
    planned = plan(replay=KEYS[:2], replay_share=0.25)
    replayed = sum(not batch.new for batch in planned.batches)
    assert replayed / len(planned.batches) == pytest.approx(0.25, abs=0.02)
    assert units(planned.batches) == units(plan().batches)


def test_nothing_is_replayed_again_before_all_has_been():
    times = Counter(units(plan(replay=KEYS[:4], replay_share=0.5).batches, new=False))
    assert len(times) == 4 * 90 and set(times.values()) == {2, 3}, "ten shards' worth of replay from four"


def test_replay_from_shards_without_units_is_none():
    nothing = np.zeros(0, np.int64)
    planned = plan_batches(
        KEYS[:1], lambda key: lengths(key) if key in KEYS else (nothing, nothing), batch_targets=40, batch_tokens=600, passes=1, seed=0,
        replay=[ShardKey("2025-12-31", 0)], replay_share=0.5,
    )  # fmt: skip
    assert all(batch.new for batch in planned.batches)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("in_order", [False, True])
def test_replay_beside_new_targets_has_its_share_of_every_batch(ranks, in_order):
    settings = {"replay": KEYS[:4], "replay_share": 0.4, "ranks": ranks, "in_order": in_order, "passes": 2}
    apart, planned = plan(**settings), plan(**settings, replay_beside=True)
    assert all(planned.is_new(step) for step in range(planned.steps)) and len(planned.batches) == planned.steps * ranks
    assert units(planned.batches) == units(apart.batches), "every new unit is trained once a pass"
    new, old = targets_of(planned.batches), targets_of(planned.batches, new=False)
    assert old.sum() / (new + old).sum() == pytest.approx(0.4, abs=0.04)
    assert (old > 0).mean() > 0.97 and np.median(new + old) == pytest.approx(40, abs=8), "together they fill one batch"
    assert planned.steps == pytest.approx(apart.steps, rel=0.15), "as many steps as with batches of their own"
    times = Counter(units(planned.batches, new=False))
    assert len(times) == 4 * 90 and max(times.values()) - min(times.values()) == 1, "nothing comes again before all has come"


def test_a_batch_halved_for_a_rank_replays_once():
    planned = plan_batches(
        KEYS[:1], lengths, batch_targets=40, batch_tokens=600, passes=1, seed=3, ranks=7, replay=KEYS[1:], replay_share=0.3,
        replay_beside=True,
    )  # fmt: skip
    assert any(batch.beside is None for batch in planned.batches), "some were halved"
    assert set(Counter(units(planned.batches, new=False)).values()) == {1}
    assert units(planned.batches) == [(KEYS[0], unit) for unit in range(90)]


def test_replay_beside_nothing_replayed_is_the_plan_without():
    assert plan(replay_beside=True).sha256 == plan(replay_beside=True, replay=KEYS[:2]).sha256 == plan().sha256
    assert plan(replay_beside=True, replay_share=0.5).sha256 == plan().sha256


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_of_a_step_are_new_or_all_are_replayed(ranks):
    planned = plan(replay=KEYS[:2], replay_share=0.25, ranks=ranks)
    kinds = [{batch.new for batch in planned.batches[step * ranks : (step + 1) * ranks]} for step in range(planned.steps)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True, False} == {planned.is_new(step) for step in range(planned.steps)}
    assert units(planned.batches) == units(plan().batches)


def test_a_plan_is_known_by_every_unit_of_every_step():
    assert plan().sha256 == plan().sha256
    others = [plan(seed=4), plan(ranks=2), plan(batch_targets=41), plan(replay=KEYS[:1], replay_share=0.1)]
    others.append(plan(replay=KEYS[:1], replay_share=0.1, replay_beside=True))
    beside = others[-1].batches[0]
    others.append(type(plan())([replace(beside, beside=None), *others[-1].batches[1:]]))
    others.append(type(plan())([*beside.parts, *others[-2].batches[1:]]))
    assert len({plan().sha256, *(other.sha256 for other in others)}) == 8
    batches = plan().batches
    swapped = type(plan())([batches[1], batches[0], *batches[2:]])
    assert swapped.steps == plan().steps and swapped.sha256 != plan().sha256


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_days_in_order_end_at_a_step_of_their_own(ranks: int):
    keys = [ShardKey(f"2026-01-0{day}", bucket) for day in (3, 1, 2) for bucket in range(3)]
    rng = np.random.default_rng(0)
    sizes = {key: (rng.integers(0, 20, 37), rng.integers(1, 5, 37)) for key in keys}
    plan = plan_batches(keys, sizes.__getitem__, batch_targets=16, batch_tokens=400, passes=1, seed=1, ranks=ranks, in_order=True)
    days = [{plan.batches[step * ranks + rank].key.day for rank in range(ranks)} for step in range(plan.steps)]
    assert all(len(day) == 1 for day in days)
    order = [next(iter(day)) for day in days]
    assert order == sorted(order)
    assert plan.ends_of_days() == {max(step for step, got in enumerate(order) if got == day): day for day in set(order)}
    seen = {key: np.sort(np.concatenate([b.units_B for b in plan.batches if b.key == key])) for key in keys}
    assert all(np.array_equal(units, np.arange(37)) for units in seen.values()), "every unit is used exactly once"


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_ranks_of_a_step_have_about_the_same_to_do(ranks: int, in_order: bool):
    """A step takes as long as its dearest rank. Histories differ a hundredfold here; taken as they come, an eighth would be waiting."""
    rng = np.random.default_rng(0)
    keys = [ShardKey(f"2024-01-0{day}", 0) for day in (1, 2, 3)]
    lengths = {key: (np.minimum(400, 4 * rng.zipf(1.3, 20_000)), rng.integers(1, 4, 20_000)) for key in keys}
    plan = plan_batches(keys, lengths.get, batch_targets=256, batch_tokens=8192, passes=1, seed=0, ranks=ranks, in_order=in_order)
    cost = np.array([sum(part[batch.units_B].sum() for part in lengths[batch.key]) + len(batch.units_B) for batch in plan.batches])
    dearest = cost.reshape(-1, ranks).max(1)
    assert dearest.sum() * ranks / cost.sum() - 1 < 0.05
    assert np.corrcoef(dearest[:-1], dearest[1:])[0, 1] < 0.3, "steps are not sorted by what they cost"
    planned = [(batch.key, unit) for batch in plan.batches for unit in batch.units_B.tolist()]
    assert len(planned) == len(set(planned)) == 60_000
