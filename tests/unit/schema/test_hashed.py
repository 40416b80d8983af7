"""Hashed vocabularies: rows by brute force, on every machine and in any order of ids; traffic by bucket; refusals."""

import math

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import ModelConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashed import HashedVocabulary, crowding, read_vocabulary
from trainer.schema.vocabulary import OOV_ROW, Vocabulary

MASK = 2**64 - 1


def mixed(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def bucket_by_hand(text, rows, seed):
    """The function of the manifest, in plain integers."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 & MASK
    return mixed(mixed(state) ^ mixed(seed)) % rows


def listed(keys, count=None, first="2026-01-02", last="2026-01-05", name="author"):
    keys = pa.array(keys)
    days = (pa.array([day] * len(keys), pa.string()) if isinstance(day, str) else pa.array(day, pa.string()) for day in (first, last))
    return Vocabulary(name, keys, np.arange(1, len(keys) + 1) if count is None else np.asarray(count), *days)


@pytest.mark.parametrize(("rows", "seed"), [(1, 0), (97, 0), (97, 1), (2**31 - 3, 2**63 - 1)])
def test_rows_are_those_of_the_function_computed_by_hand(rows, seed):
    ids = [0, 7, -7, 2**62, "7", "", "é", "a long id with spaces", "007"]
    expected = [bucket_by_hand(str(key), rows, seed) for key in ids]
    hashing = HashFunction(rows=rows, seed=seed)
    assert hashing.buckets(pa.array([str(key) for key in ids])).tolist() == expected
    assert hashing.buckets(pa.array(ids[:4])).tolist() == expected[:4], "the number 7 and the text 7 are one id"


def test_rows_never_change():
    """What a bundle was trained with must be what any later version computes."""
    assert HashFunction(rows=1000).buckets(pa.array([1, 2, 42])).tolist() == [386, 68, 103]
    assert HashFunction(rows=1000, seed=1).buckets(pa.array(["a", "é", ""])).tolist() == [699, 60, 663]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["5", None, "6"]),
        pa.array([5, None, 6], pa.uint8()),
        pa.array([5, None, 6], pa.uint64()),
        pa.array(["5", None, "6"], pa.large_string()),
        pa.array(["5", None, "6"]).dictionary_encode(),
        pa.chunked_array([pa.array(["5", None]).dictionary_encode(), pa.array(["6"]).dictionary_encode()]),
        pa.chunked_array([pa.array([5, None]), pa.array([6])]),
    ],
    ids=str,
)
def test_an_id_has_one_row_in_every_type_and_null_is_the_only_unknown(ids):
    vocabulary = HashedVocabulary.of(HashFunction(rows=11), listed([5, 6]))
    five, six = (2 + bucket_by_hand(text, 11, 0) for text in "56")
    assert vocabulary.lookup(ids).tolist() == [five, OOV_ROW, six]
    assert vocabulary.lookup(ids, np.int32).dtype == np.int32


@pytest.mark.parametrize("empty", [pa.array([], pa.int64()), pa.array([], pa.null()), pa.chunked_array([], pa.string())], ids=str)
def test_no_ids_have_no_rows(empty):
    assert HashFunction(rows=5).buckets(empty).tolist() == []
    assert HashFunction(rows=5).buckets(pa.nulls(2)).tolist() == [-1, -1]


def test_parts_of_many_ids_are_hashed_alike(monkeypatch):
    ids = pa.array([*np.random.default_rng(0).integers(0, 30, 100).tolist(), None])
    whole = HashFunction(rows=7).buckets(ids)
    monkeypatch.setattr("trainer.schema.hash_function._HASHED_IDS", 9)
    assert np.array_equal(HashFunction(rows=7).buckets(ids), whole)


def test_another_seed_moves_ids_independently():
    ids = pa.array(range(20_000))
    first, second = (HashFunction(rows=10, seed=seed).buckets(ids) for seed in (0, 1))
    both = np.bincount(first * 10 + second, minlength=100)
    assert abs(both - 200).max() < 5 * math.sqrt(200)


@pytest.mark.parametrize(("rows", "ids"), [(10_000, 20_000), (10_000, 2_000)])
def test_the_share_of_ids_with_a_row_of_their_own_is_as_told(rows, ids):
    bucket = HashFunction(rows=rows).buckets(pa.array(range(ids)))
    alone = (np.bincount(bucket, minlength=rows)[bucket] == 1).mean()
    assert alone == pytest.approx(math.exp(-(ids - 1) / rows), abs=0.015)


def test_crowding_by_brute_force():
    hashing, count = HashFunction(rows=8), np.random.default_rng(1).integers(1, 100, 12)
    members = [[key for key in range(12) if bucket_by_hand(str(key), 8, 0) == bucket] for bucket in range(8)]
    found = crowding(hashing, listed(range(12), count))
    together = sum(int(count[key]) for keys in members if len(keys) > 1 for key in keys)
    assert found == {"rows": 8, "ids": 12, "used": sum(bool(keys) for keys in members), "shared": pytest.approx(together / count.sum())}
    assert 0 < found["shared"] < 1, "the case has both kinds"


def test_traffic_of_a_bucket_is_that_of_its_ids():
    first, last = (
        [f"2026-01-{day:02d}" for day in np.random.default_rng(seed).integers(low, low + 9, 12)] for seed, low in ((2, 1), (3, 11))
    )
    ids = listed(range(12), 2**53 + np.arange(12), first, last)
    vocabulary = HashedVocabulary.of(HashFunction(rows=8), ids)
    assert vocabulary.rows == 10
    for bucket in range(8):
        members = [key for key in range(12) if bucket_by_hand(str(key), 8, 0) == bucket]
        assert vocabulary.count_V[bucket] == sum(int(ids.count_V[key]) for key in members), "exact beyond 2^53"
        assert vocabulary.first_seen[bucket].as_py() == min((first[key] for key in members), default=None)
        assert vocabulary.last_seen[bucket].as_py() == max((last[key] for key in members), default=None)


def test_no_ids_leave_every_bucket_empty():
    vocabulary = HashedVocabulary.of(HashFunction(rows=4), listed(pa.array([], pa.string())))
    assert vocabulary.count_V.tolist() == [0] * 4 and vocabulary.first_seen.to_pylist() == [None] * 4


def test_same_ids_in_another_order_give_the_same_bytes(tmp_path):
    order = np.random.default_rng(0).permutation(50)
    for name, keys in (("a", np.arange(50)), ("b", order)):
        HashedVocabulary.of(HashFunction(rows=16), listed(keys, keys + 1)).write(tmp_path / name / "author.parquet")
    assert (tmp_path / "a" / "author.parquet").read_bytes() == (tmp_path / "b" / "author.parquet").read_bytes()


def test_a_file_is_read_as_it_was_written(tmp_path):
    written = HashedVocabulary.of(HashFunction(rows=16, seed=4), listed(range(5)))
    written.write(tmp_path / "author.parquet")
    read = read_vocabulary(tmp_path / "author.parquet", written.hash)
    assert isinstance(read, HashedVocabulary) and read.name == "author" and read.hash == written.hash
    assert np.array_equal(read.count_V, written.count_V)
    assert read.first_seen.equals(written.first_seen) and read.last_seen.equals(written.last_seen)


def test_a_file_that_does_not_fit_its_hash_is_refused(tmp_path):
    HashedVocabulary.of(HashFunction(rows=16), listed(range(5))).write(tmp_path / "hashed.parquet")
    listed(range(5)).write(tmp_path / "listed.parquet")
    for name, hashing, told in (
        ("hashed", HashFunction(rows=15), "does not have the rows of its hash"),
        ("listed", HashFunction(rows=5), "lists ids"),
        ("hashed", None, "cannot read a vocabulary"),
        ("absent", HashFunction(rows=5), "cannot read a hashed vocabulary"),
    ):
        with pytest.raises(CheckpointError, match=told):
            read_vocabulary(tmp_path / f"{name}.parquet", hashing)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"function": "murmur3", "rows": 5}, "does not know"),
        ({"rows": 0}, "impossible rows"),
        ({"rows": 2**31}, "impossible rows"),
        ({"rows": "5"}, "impossible rows"),
        ({"rows": True}, "impossible rows"),
        ({"rows": 5, "seed": -1}, "impossible seed"),
        ({"rows": 5, "seed": 2**63}, "impossible seed"),
    ],
)
def test_a_hash_that_cannot_be_computed_is_refused(values, told):
    with pytest.raises(CheckpointError, match=told) as error:
        HashFunction(**values).check("manifest.json: hashes.author")
    assert error.value.where == "manifest.json: hashes.author"


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_traffic_is_kept_under_more_and_fewer_rows(factor):
    ids = listed(range(100), np.random.default_rng(0).integers(0, 9, 100))
    small, large = HashFunction(rows=8), HashFunction(rows=8 * factor)
    grown = HashedVocabulary.of(small, ids).under(large)
    assert grown.rows == 8 * factor + 2
    assert np.array_equal(grown.count_V.reshape(factor, 8).sum(0), HashedVocabulary.of(small, ids).count_V), "nothing is lost in dividing"
    assert np.ptp(grown.count_V.reshape(factor, 8), axis=0).max() <= 1, "evenly"
    shrunk, direct = HashedVocabulary.of(large, ids).under(small), HashedVocabulary.of(small, ids)
    assert np.array_equal(shrunk.count_V, direct.count_V)
    assert shrunk.first_seen.equals(direct.first_seen) and shrunk.last_seen.equals(direct.last_seen)


@pytest.mark.parametrize("other", [HashFunction(rows=12), HashFunction(rows=8, seed=1), HashFunction(rows=16, seed=1)])
def test_traffic_under_another_hash_is_forgotten(other):
    counted = HashedVocabulary.of(HashFunction(rows=8), listed(range(100)))
    assert not counted.under(other).count_V.any() and counted.under(other).rows == other.rows + 2
    assert counted.under(counted.hash) is counted
    with pytest.raises(CheckpointError, match="cannot be added"):
        counted.plus(counted.under(other))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"hashed": {"item": 100}}, "model.hashed"),
        ({"hashed": {"user": 100}}, "model.hashed.user"),
        ({"hashed": {"author": 0}}, "model.hashed.author"),
        ({"hashed": {"author": 2**31}}, "model.hashed.author"),
        ({"hash_seed": 3}, "model.hash_seed"),
        ({"hashed": {"author": 9}, "hash_seed": -1}, "model.hash_seed"),
        ({"hashed": {"author": 9}, "hash_seed": 2**63}, "model.hash_seed"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, where):
    with pytest.raises(ConfigError) as error:
        ModelConfig(name="sasrec", **settings)
    assert error.value.where == where


def test_settings_name_the_hash_of_a_vocabulary():
    model = ModelConfig(name="sasrec", hashed={"author": 9, "user": 50}, hash_seed=3, user_id=True)
    assert model.hash_of("author") == HashFunction(rows=9, seed=3) and model.hash_of("item") is None
    assert not {"hashed", "hash_seed"} & set(model.shape_values())
