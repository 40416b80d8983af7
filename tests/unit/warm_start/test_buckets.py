"""Rows by id and by hash, in every direction: exact ones to 1e-10, the others by hand, and what cannot be known is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.data import Encoder
from trainer.data.inputs import hashed_vocabulary, merge_vocabulary
from trainer.errors import CheckpointError, ConfigError
from trainer.fit.begin import transfer_report
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashed import HashedVocabulary
from trainer.schema.vocabulary import Vocabulary
from trainer.warm_start import Rules, apply, carry_moments, plan
from trainer.warm_start.apply import InMemory
from trainer.warm_start.buckets import Pool, match
from trainer.warm_start.stream import stream_moments, stream_weights

both = pytest.mark.parametrize("architecture", warm.ARCHITECTURES)
AUTHORS = 40
TABLE = "embedding.item_features.tables.feature:author.weight"


def listed(authors=range(AUTHORS), seed=0):
    keys, rng = pa.array(list(authors)), np.random.default_rng(seed)
    first, last = (pa.array([f"2026-0{month}-{day:02d}" for day in rng.integers(1, 29, len(keys))]) for month in (1, 2))
    return Vocabulary("author", keys, np.random.default_rng(seed).integers(1, 50, len(keys)), first, last)


def encoder(author):
    """An encoder whose authors are a vocabulary, a hash (of the listed ones), or ids."""
    if isinstance(author, HashFunction):
        author = HashedVocabulary.of(author, listed())
    plain = small.encoder()
    return Encoder(plain.inputs, {**plain.vocabularies, "author": author if not isinstance(author, range) else listed(author)})


def tables(seed=0):
    """Examples of all authors."""
    examples, tail = small.tables(seed=seed)
    rng = np.random.default_rng(seed)
    return tuple(
        table.set_column(table.column_names.index("feature_author"), "feature_author", pa.array(rng.integers(0, AUTHORS, len(table))))
        for table in (examples, tail)
    )


def outputs(side, ranker):
    from trainer.data import take

    shard = side.encode(*tables(), warm.LATE)
    with torch.inference_mode():
        return ranker(take(shard, np.arange(shard.units))).output_NO


def moved(old, new, architecture="sasrec", **rules):
    source, target = warm.build(old, name=architecture).double(), warm.fresh(new, name=architecture).double()
    the_plan, sides = warm.transfer(old, source, new, target, **rules)
    return source, target, the_plan, sides


def fate(the_plan):
    return next(fate for fate in the_plan.fates if fate.target == TABLE)


def buckets(rows, seed=0, ids=range(AUTHORS)):
    return HashFunction(rows=rows, seed=seed).buckets(pa.array(list(ids)))


def by_hand(values, weights, bucket_E, rows):
    """The mean of each bucket's rows by traffic, one at a time; None for empty ones."""
    means = []
    for bucket in range(rows):
        members = np.flatnonzero(bucket_E == bucket)
        share = torch.tensor([float(weights[m]) for m in members], dtype=torch.float64)
        means.append(sum(share[i] / share.sum() * values[2 + m] for i, m in enumerate(members)) if len(members) else None)
    return means


@both
def test_the_same_hash_copies_every_row(architecture):
    side = encoder(HashFunction(rows=16))
    grown = Encoder(side.inputs, {**side.vocabularies, "author": side.vocabularies["author"].plus(side.vocabularies["author"])})
    source, target, the_plan, _ = moved(side, grown, architecture)
    assert the_plan.exact and fate(the_plan).fate == "copied" and not fate(the_plan).moves
    assert (outputs(grown, target) - outputs(side, source)).abs().max() <= 1e-10
    assert torch.equal(target.state_dict()[TABLE], source.state_dict()[TABLE])


@both
@pytest.mark.parametrize("factor", [2, 5])
def test_a_whole_multiple_of_the_rows_is_exact(architecture, factor):
    old, new = encoder(HashFunction(rows=16, seed=3)), encoder(HashFunction(rows=16 * factor, seed=3))
    source, target, the_plan, sides = moved(old, new, architecture)
    assert the_plan.exact and fate(the_plan).fate == "row-remapped"
    assert (outputs(new, target) - outputs(old, source)).abs().max() <= 1e-10
    asked = pa.array([*range(10_000), None])  # also ids that nobody ever met
    rows = [side.vocabularies["author"].lookup(asked) for side in (old, new)]
    assert torch.equal(target.state_dict()[TABLE][rows[1]], source.state_dict()[TABLE][rows[0]])
    report = transfer_report(the_plan, None, *sides)["vocabularies"]["author"]
    assert (report["kept"], report["new"], report["dropped"]) == (16 * factor, 0, 0) and report["hash"]["rows"] == 16 * factor


@both
def test_hashed_ids_that_become_listed_take_their_buckets_row(architecture):
    old, new = encoder(HashFunction(rows=16)), encoder(range(AUTHORS))
    source, target, the_plan, sides = moved(old, new, architecture)
    assert (outputs(new, target) - outputs(old, source)).abs().max() <= 1e-10, "every id of the examples is in the list"
    rows = 2 + buckets(16)
    assert torch.equal(target.state_dict()[TABLE][2:], source.state_dict()[TABLE][rows])
    assert torch.equal(target.state_dict()[TABLE][:2], source.state_dict()[TABLE][:2])
    assert not the_plan.exact and any("served by their bucket" in reason for reason in the_plan.inexact), "other ids are unknown now"
    report = transfer_report(the_plan, None, *sides)["vocabularies"]["author"]
    assert (report["kept"], report["new"]) == (AUTHORS, 0) and "hash" not in report


def test_buckets_that_no_listed_id_was_in_count_against_coverage():
    old, new = encoder(HashFunction(rows=4)), encoder(range(2))
    assert len(set(buckets(4, ids=range(2)))) == 2, "two of four buckets"
    sides = warm.sides(old, warm.build(old), new, warm.fresh(new))
    the_plan, count_V = plan(*sides), old.vocabularies["author"].count_V
    kept = count_V[buckets(4, ids=range(2))].sum() / count_V.sum()
    assert fate(the_plan).moves[0].dropped == 2 and fate(the_plan).carried == pytest.approx(kept)
    assert any("2 buckets of author lose their row" in reason for reason in the_plan.inexact)


@both
def test_listed_ids_that_become_hashed_start_as_their_mean_by_traffic(architecture):
    old, new = encoder(range(AUTHORS)), encoder(HashFunction(rows=32))
    source, target, the_plan, sides = moved(old, new, architecture, approximate=True, new_ids="zero")
    before, after = source.state_dict()[TABLE], target.state_dict()[TABLE]
    means = by_hand(before, listed().count_V, buckets(32), 32)
    assert sum(mean is None for mean in means) > 3 and len(set(buckets(32))) < AUTHORS - 3, "empty buckets, and shared ones"
    for bucket, mean in enumerate(means):
        expected = before[1] if mean is None else mean  # production knew no id of an empty bucket
        assert (after[2 + bucket] - expected).abs().max() <= 1e-10
    assert torch.equal(after[:2], before[:2])
    assert fate(the_plan).fate == "merged" and not the_plan.exact
    report = transfer_report(the_plan, None, *sides)["vocabularies"]["author"]
    assert (report["kept"], report["dropped"], report["traffic_kept"]) == (AUTHORS, 0, 1.0)
    assert report["new"] == sum(mean is None for mean in means)


def test_rows_that_nobody_met_count_alike():
    pool = Pool.of(np.array([0, 0, 2]), np.array([0.0, 0.0, 5.0]), 3)
    values = torch.arange(10, dtype=torch.float64).view(5, 2)
    taken = pool.take(values.__getitem__, np.array([0, 1, 2, 4]))
    assert taken.tolist() == [[0, 1], [2, 3], [5, 6], [8, 9]]
    assert pool.heaviest_V.tolist() == [0, 1, 3, -1, 4] and pool.shared.tolist() == [False, False, True, True, False]


def test_a_pool_is_read_a_block_at_a_time(monkeypatch):
    rng, values = np.random.default_rng(0), torch.randn(102, 3, dtype=torch.float64)
    pool = Pool.of(rng.integers(0, 6, 100), rng.random(100), 6)
    whole = pool.take(values.__getitem__, np.arange(8))
    monkeypatch.setattr("trainer.warm_start.buckets._READ_ROWS", 7)
    assert (pool.take(values.__getitem__, np.arange(8)) - whole).abs().max() <= 1e-12
    assert torch.equal(pool.take(values.__getitem__, np.array([5]))[0], pool.take(values.__getitem__, np.arange(8))[5])


def test_a_whole_divisor_of_the_rows_is_the_mean_of_buckets():
    old, new = encoder(HashFunction(rows=24)), encoder(HashFunction(rows=8))
    source, target, the_plan, _ = moved(old, new, approximate=True)
    means = by_hand(source.state_dict()[TABLE], old.vocabularies["author"].count_V, np.arange(24) % 8, 8)
    assert max((target.state_dict()[TABLE][2 + bucket] - mean).abs().max() for bucket, mean in enumerate(means)) <= 1e-10
    assert not the_plan.exact and fate(the_plan).fate == "merged"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (range(AUTHORS), HashFunction(rows=16), "40 ids of author share 16 rows now"),
        (HashFunction(rows=16), HashFunction(rows=8), "16 buckets of author become 8"),
        (HashFunction(rows=16), HashFunction(rows=24), "hashed otherwise"),
        (HashFunction(rows=16), HashFunction(rows=16, seed=1), "hashed otherwise"),
        (HashFunction(rows=16), HashFunction(rows=32, seed=1), "hashed otherwise"),
    ],
    ids=str,
)
def test_what_cannot_keep_productions_outputs_is_refused_unless_asked_for(old, new, told):
    old, new = encoder(old), encoder(new)
    source, target = warm.build(old), warm.fresh(new)
    with pytest.raises(CheckpointError, match="cannot be carried over") as error:
        warm.transfer(old, source, new, target)
    assert error.value.where == TABLE and told in error.value.got and "warm_start.approximate=true" in error.value.remedy
    the_plan, _ = warm.transfer(old, source, new, target, approximate=True)
    assert not the_plan.exact and any(told in reason for reason in the_plan.inexact)


def test_another_hash_starts_afresh_where_that_is_asked_for():
    old, new = encoder(HashFunction(rows=16)), encoder(HashFunction(rows=16, seed=1))
    source, target = warm.build(old), warm.fresh(new)
    fresh = target.state_dict()[TABLE].clone()
    the_plan, sides = warm.transfer(old, source, new, target, approximate=True)
    assert torch.equal(target.state_dict()[TABLE], fresh) and fate(the_plan).fate == "initialised"
    moments = carry_moments(the_plan, *sides, warm.random_moments(source))
    assert TABLE not in moments, "state of other ids' rows means nothing"
    report = transfer_report(the_plan, None, *sides)["vocabularies"]["author"]
    assert (report["kept"], report["new"], report["dropped"], report["traffic_kept"]) == (0, 16, 16, 0.0)


def test_a_hashed_vocabulary_has_no_start_of_new_ids():
    side = encoder(HashFunction(rows=16))
    with pytest.raises(ConfigError, match="no new ids") as error:
        plan(*warm.sides(side, warm.build(side), side, warm.fresh(side)), Rules(new_ids_by={"author": "zero"}))
    assert error.value.where == "warm_start.new_ids_by"


def states(ranker, rows):
    """Moments of dense Adam, of row-wise Adagrad, and last-touched steps, of one table; float64."""
    generator = torch.Generator().manual_seed(1)
    shape = tuple(ranker.state_dict()[TABLE].shape)
    assert shape[0] == rows + 2
    return {
        f"{TABLE}/exp_avg": torch.randn(shape, generator=generator, dtype=torch.float64),
        f"{TABLE}/exp_avg_sq": torch.rand(shape, generator=generator, dtype=torch.float64),
        f"{TABLE}/sum": torch.rand(shape[:1], generator=generator, dtype=torch.float64),
        f"{TABLE}/last": torch.randint(1, 5000, shape[:1], generator=generator).double(),
        f"{TABLE}/step": torch.tensor(5000.0),
    }


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (HashFunction(rows=16), HashFunction(rows=16), np.arange(16)),
        (HashFunction(rows=16), HashFunction(rows=48), np.arange(48) % 16),
        (HashFunction(rows=16), range(AUTHORS), buckets(16)),
    ],
    ids=["same", "multiple", "listed"],
)
def test_optimizer_state_moves_with_the_rows(old, new, rows):
    old, new = encoder(old), encoder(new)
    source, _, the_plan, sides = moved(old, new)
    before = states(source, 16)
    after = carry_moments(the_plan, *sides, before)[TABLE]
    index = np.concatenate([[0, 1], 2 + rows])
    for state in ("exp_avg", "exp_avg_sq", "sum", "last"):
        assert torch.equal(after[state], before[f"{TABLE}/{state}"][index]), state
    assert after["step"] == 5000


def test_state_of_ids_that_share_a_row_becomes_that_of_the_row():
    """Directions as the weights; squares add up, as gradients of a shared row do; touched when the last was."""
    old, new = encoder(range(AUTHORS)), encoder(HashFunction(rows=32))
    source, _, the_plan, sides = moved(old, new, approximate=True)
    before = states(source, AUTHORS)
    after, bucket_E = carry_moments(the_plan, *sides, before)[TABLE], buckets(32)
    means = by_hand(before[f"{TABLE}/exp_avg"], listed().count_V, bucket_E, 32)
    for bucket, mean in enumerate(means):
        members = 2 + np.flatnonzero(bucket_E == bucket)
        if mean is None:
            assert (after["exp_avg"][2 + bucket] == 0).all() and after["last"][2 + bucket] == 0
            assert (after["exp_avg_sq"][2 + bucket] > 0).all(), "as rows that are met as often"
            continue
        assert (after["exp_avg"][2 + bucket] - mean).abs().max() <= 1e-10
        assert (after["exp_avg_sq"][2 + bucket] - before[f"{TABLE}/exp_avg_sq"][members].sum(0)).abs().max() <= 1e-10
        assert abs(after["sum"][2 + bucket] - before[f"{TABLE}/sum"][members].sum()) <= 1e-10
        assert after["last"][2 + bucket] == before[f"{TABLE}/last"][members].max()


@pytest.mark.parametrize(("old", "new"), [(range(AUTHORS), HashFunction(rows=16)), (HashFunction(rows=16), HashFunction(rows=32))], ids=str)
def test_a_table_moved_in_blocks_is_the_same_table(old, new):
    old, new = encoder(old), encoder(new)
    source, target = warm.build(old), warm.fresh(new)
    sides = warm.sides(old, source, new, target)
    the_plan, initial, written = plan(*sides, Rules(approximate=True)), target.state_dict(), {}

    def write(name, blocks):
        written[name] = torch.cat(list(blocks))

    stream_weights(the_plan, *sides, InMemory(source.state_dict()), lambda name, rows: initial[name][rows].clone(), write, lambda _: 3)
    for name, tensor in apply(the_plan, *sides, source.state_dict(), initial).items():
        assert torch.equal(written[name], tensor), name
    before = {key: value for key, value in states(source, len(source.state_dict()[TABLE]) - 2).items() if value.ndim}
    stream_moments(the_plan, *sides, InMemory(before), {key: value.dtype for key, value in before.items()}, write, lambda _: 3)
    for state, tensor in carry_moments(the_plan, *sides, before)[TABLE].items():
        assert torch.equal(written[f"{TABLE}/{state}"], tensor), state


def test_a_table_that_does_not_fit_its_hash_is_refused():
    import dataclasses

    side = encoder(HashFunction(rows=16))
    target = warm.fresh(side)
    source = warm.sides(side, warm.build(side), side, target)[0]
    lie = dataclasses.replace(source, shapes={**source.shapes, TABLE: (19, 16)})
    with pytest.raises(CheckpointError, match="does not fit its keys") as error:
        plan(lie, warm.sides(side, target, side, target)[1])
    assert error.value.where == TABLE


def test_matching_is_by_key_on_every_side():
    ids, hashing = listed(), HashFunction(rows=16)
    hashed = HashedVocabulary.of(hashing, ids)
    assert match(ids, ids).index.tolist() == list(range(AUTHORS + 2))
    assert match(hashed, ids).index.tolist() == [0, 1, *(2 + buckets(16))]
    heaviest = match(ids, hashed).index
    for bucket in range(16):
        members = np.flatnonzero(buckets(16) == bucket)
        best = members[np.argmax(ids.count_V[members])] if len(members) else -3
        assert best == -3 or ids.count_V[heaviest[2 + bucket] - 2] == ids.count_V[best]
        assert (heaviest[2 + bucket] < 0) == (best == -3)


def test_the_challengers_traffic_adds_the_new_days_to_productions():
    fresh, hashing = listed(range(30, 60), seed=1), HashFunction(rows=16)
    both_days = HashedVocabulary.of(hashing, merge_vocabulary(listed(), fresh))
    assert np.array_equal(hashed_vocabulary(listed(), fresh, hashing).count_V, both_days.count_V), "production listed its ids"
    for days in ("first_seen", "last_seen"):
        assert getattr(hashed_vocabulary(listed(), fresh, hashing), days).equals(getattr(both_days, days)), days
    before = HashedVocabulary.of(hashing, listed())
    after = hashed_vocabulary(before, fresh, hashing)
    assert np.array_equal(after.count_V, both_days.count_V) and after.rows == before.rows == 18, "no night adds a row"
    assert hashed_vocabulary(None, fresh, hashing).count_V.sum() == fresh.count_V.sum()
    grown = hashed_vocabulary(before, fresh, HashFunction(rows=32))
    assert grown.count_V.sum() == both_days.count_V.sum() and grown.rows == 34


def test_a_new_default_function_moves_no_id(monkeypatch):
    """The function is production's; rows and seed are the configuration's."""
    monkeypatch.setattr("trainer.schema.hash_function.FUNCTIONS", ("text-fnv1a64-splitmix64", "newer"))
    before = HashedVocabulary.of(HashFunction(rows=16), listed())
    after = hashed_vocabulary(before, listed(), HashFunction(function="newer", rows=16))
    assert after.hash == before.hash
    assert hashed_vocabulary(listed(), listed(), HashFunction(function="newer", rows=16)).hash.function == "newer"


def test_noise_leaves_rows_of_ids_alone():
    old, new = encoder(range(AUTHORS)), encoder(HashFunction(rows=32))
    quiet, noisy = (moved(old, new, approximate=True, noise=noise)[1].state_dict()[TABLE] for noise in (0.0, 0.5))
    empty = np.flatnonzero(np.bincount(buckets(32), minlength=32) == 0)
    changed = (quiet != noisy).any(1).nonzero()[:, 0].tolist()
    assert changed == (2 + empty).tolist()
