"""The arithmetic below the detectors: states, links, history, counts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.logs.hashing import hash_ids
from trainer.scan.history import History, share_noise, share_scale
from trainer.scan.labels import Counts
from trainer.scan.links import ITEM, USER, binned, key, links
from trainer.scan.states import column_state, match_rate, merged, overlap
from trainer.scan.summary import FileState, Ranking, rank
from trainer.schema.time import days_between

RNG = np.random.default_rng(3)


def hashes(values):
    return hash_ids(pa.array(values))


def state(values, users=None, ids=True):
    column = values if isinstance(values, pa.Array) else pa.array(values)
    return column_state(column, hashes(np.zeros(len(column), np.int64) if users is None else users), ids)


@given(
    st.lists(st.one_of(st.none(), st.floats(width=32, allow_nan=True, allow_infinity=True)), min_size=1, max_size=60), st.integers(1, 59)
)
@settings(max_examples=60, deadline=None)
def test_parts_merge_to_the_whole(values, cut):
    column = pa.array(values, pa.float64())
    whole = state(column)
    parts = merged([state(column.slice(0, cut)), state(column.slice(cut))]) if 0 < cut < len(values) else whole
    assert (parts.rows, parts.nulls, parts.valid, parts.negatives) == (whole.rows, whole.nulls, whole.valid, whole.negatives)
    assert parts.cell_C.tolist() == whole.cell_C.tolist() and parts.count_C.tolist() == whole.count_C.tolist()
    assert parts.id_K.tolist() == whole.id_K.tolist() and parts.id_rows_K.tolist() == whole.id_rows_K.tolist()
    assert parts.pair_P.tolist() == whole.pair_P.tolist() and parts.pair_rows_P.tolist() == whole.pair_rows_P.tolist()


def test_quantiles_are_right_to_an_eighth():
    values = np.exp(RNG.normal(2, 1.5, 20_000)) * np.where(RNG.random(20_000) < 0.5, -1, 1)
    found = state(values, ids=False).log_quantiles((0.1, 0.5, 0.9))
    assert np.allclose(found, np.quantile(np.log2(np.abs(values)), (0.1, 0.5, 0.9)), atol=0.13)
    assert np.isnan(state([0.0, 0.0], ids=False).log_quantiles((0.5,))).all()


def test_frequent_values_are_counted_exactly_also_where_the_sample_is_thin():
    values = np.where(RNG.random(100_000) < 0.03, -1.0, RNG.random(100_000))
    assert state(values, ids=False).top["-1"] == (values == -1).sum()
    words = pa.array(["a"] * 70 + ["b"] * 30 + [None] * 10)
    found = state(words)
    assert found.top == {"a": 70, "b": 30} and (found.nulls, found.valid) == (10, 100) and found.share_of("a") == 0.7


@pytest.mark.parametrize("name", [int, str])
def test_the_item_that_brings_a_value_is_found_in_parts_and_in_the_whole(name):
    value = np.r_[np.full(60, 7.5), np.full(30, 2.0), np.arange(110)]
    items = pa.array([*map(name, [4] * 54 + [5] * 6), *map(name, [1, 2, 3] * 10), *map(name, range(110))])
    column = pa.array(value, mask=np.arange(200) == 0)

    def owned(part):
        return column_state(column[part], hashes(np.zeros(len(column[part]), np.int64)), False, items[part])

    assert owned(slice(None)).owners == {"7.5": ("4", 53)}, "of the value 2 nobody has most rows"
    assert merged([owned(slice(0, 30)), owned(slice(30, 200))]).owners == {"7.5": ("4", 53)}
    assert not state(column, ids=True).owners


def test_sliced_and_null_columns_are_read_where_they_lie():
    column = pa.array([9, 9, 1, None, 3, 3, 9]).slice(2, 4)
    found = state(column)
    assert (found.rows, found.nulls, found.minimum, found.maximum) == (4, 1, 1.0, 3.0) and found.top == {"3": 2}
    assert state(pa.array([True, False, True])).top == {"1": 2}
    empty = state(pa.array([], pa.float64()))
    assert (empty.rows, empty.valid, empty.top) == (0, 0, {})


def test_overlap_is_measured_on_the_same_ids_at_any_size():
    small, large = np.arange(1_000), np.arange(500, 200_500)
    one, other = state(small), state(large)
    assert one.level == 0 and other.level > 0 and len(other.id_K) <= 4_096
    share, rows = overlap(one, [other])
    assert rows > 0 and abs(share - 0.5) < 0.25
    assert overlap(state(np.arange(10**6, 10**6 + 5000)), [other])[0] == 0.0
    exact, rows = overlap(one, [state(np.arange(250))])
    assert (exact, rows) == (0.25, 1_000)


def test_match_rate_is_by_user():
    users = np.repeat(np.arange(50), 2)
    yesterday = state(users * 10.0, users)
    assert match_rate(state(users * 10.0, users), yesterday) == (1.0, 100)
    assert match_rate(state(np.roll(users * 10.0, 2), users), yesterday)[0] == 0.0
    assert match_rate(state(users * 10.0, users + 1000), yesterday) == (0.0, 0)


def test_links_see_dependence_and_only_dependence():
    rows = 5_000
    user, item = RNG.integers(0, 400, rows), RNG.integers(0, 300, rows)
    length = item % 17 * 1.0
    columns = {"length": length, "noise": RNG.random(rows), "copy": np.exp(length), "country": np.array(list("abcd"))[user % 4]}
    found = links({name: pa.array(values) for name, values in columns.items()}, hashes(user), hashes(item))
    assert found[key("length", "copy")].strength > 0.95 and found[key("copy", ITEM)].strength == pytest.approx(1.0)
    assert found[key("country", USER)].strength == pytest.approx(1.0) and found[key("country", ITEM)].strength < 0.05
    assert found[key("noise", "length")].strength < 0.05 and found[key("noise", USER)].strength < 0.05
    assert key("a", "b") == key("b", "a")


def test_bins_of_odd_columns():
    assert set(binned(pa.array([None, None], pa.float64()))) == {0}
    assert set(binned(pa.array([1.0] * 90 + [7.0] * 10))) == {0, 1} or len(set(binned(pa.array([1.0] * 90 + [7.0] * 10)))) == 1
    assert len(set(binned(pa.array([0.0] * 80 + [1.0] * 20)))) == 2
    assert binned(pa.array(["x", None, "x"])).dtype == np.uint8


def test_false_alarms_stay_within_the_budget():
    """Values drawn like the days before them: three alarms allowed in 30 days of one test are one in ten."""
    history, draws = History(28, 3, 3.0), 600
    alarms = 0
    for _ in range(draws):
        *past, today = RNG.normal(0.5, 0.01, 13)
        alarms += history.strange(
            "2024-05-20", today, [(f"2024-05-{day + 1:02d}", value) for day, value in enumerate(past)], prior=0.01, noise=0.0, tests=1
        )
    assert 0.03 * draws < alarms < 0.13 * draws


def test_far_values_are_strange_and_too_little_history_tells_nothing():
    past = [(f"2024-05-{day:02d}", share_scale(0.3 + 0.01 * (-1) ** day)) for day in range(1, 13)]
    for days, expected in ((past, True), (past[:2], False)):
        found = History(28, 3, 0.05).strange("2024-05-20", share_scale(0.5), days, prior=0.01, noise=share_noise(2_000), tests=500)
        assert found is expected


def test_a_standard_error_that_is_known_needs_no_long_history():
    """An AUC .07 below four days, standard error .014: five of them. Where days differ more than chance explains, history decides."""

    def strange(past, noise, known):
        series = list(zip(days_between("2024-05-06", "2024-05-09"), past, strict=True))
        return History(28, 3, 0.05).strange("2024-05-10", 0.62, series, prior=0.006, noise=noise, tests=12, noise_known=known)

    steady, wild = (0.695, 0.685, 0.69, 0.69), (0.72, 0.66, 0.69, 0.69)
    assert strange(steady, 0.014, known=True) and not strange(steady, 0.014, known=False)
    assert not strange(wild, 0.014, known=True), "what is usual here, nobody knows after four days"
    assert strange(steady, 0.001, known=True) == strange(steady, 0.001, known=False), "nothing is known of what is not sampling error"


def test_more_tests_ask_for_more_evidence():
    past = [(f"2024-05-{day:02d}", 0.5 + 0.01 * (-1) ** day) for day in range(1, 11)]
    history = History(28, 3, 0.05)
    values = np.linspace(0.5, 0.7, 400)
    first = [
        next(value for value in values if history.strange("2024-06-02", value, past, prior=0.01, noise=0.01, tests=t)) for t in (1, 1000)
    ]
    assert first[0] < first[1]


def test_rank_is_the_auc():
    score, label = np.array([0.1, 0.4, 0.4, 0.8, np.nan]), np.array([0, 0, 1, 1, 1], np.int8)
    found = rank(score, label)
    assert found == Ranking(auc=0.875, positives=2, negatives=2)
    assert rank(score, np.array([1, 1, 1, 1, 0], np.int8)) is None
    big = rank(RNG.random(4000) + 0.3 * (np.arange(4000) % 2), (np.arange(4000) % 2).astype(np.int8))
    resampled = [rank(RNG.random(4000) + 0.3 * (np.arange(4000) % 2), (np.arange(4000) % 2).astype(np.int8)).auc for _ in range(60)]
    assert big.error == pytest.approx(np.std(resampled), rel=0.4)


def test_counts_rank_what_they_have_seen_and_forget():
    user = np.arange(3000) % 100
    bins = np.stack([user, user * 7]).astype(np.uint16)
    label = (RNG.random(3000) < np.where(user < 50, 0.8, 0.2)).astype(np.int8)
    day = FileState(rows=3000, entity_bins=bins, labels={"click": label})
    counts = Counts()
    assert counts.rankings(day) == {}
    counts.learn(day, skip=())
    assert counts.rankings(day)["click"].auc > 0.75
    flipped = FileState(rows=3000, entity_bins=bins, labels={"click": 1 - label})
    assert counts.rankings(flipped)["click"].auc < 0.25
    counts.learn(flipped, skip=("click",))
    assert counts.rankings(day)["click"].auc > 0.75, "labels that are not believed are not counted"
