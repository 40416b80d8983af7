"""What slates are made of: a gain that is bought with popular or long items is named."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.gate import judge
from trainer.gate.contents import content_columns
from trainer.schema.policy import RuleSet, TopKRule


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _slate(verdict):
    return {check.name: check for check in verdict.checks if check.family == "slate"}


@pytest.fixture
def gaining():
    """Labels follow a property of the item that only the challenger knows: it is calibrated and gains NE."""

    def make(strength=0.5, rows=40_000, seed=0):
        rng = np.random.default_rng(seed)
        popularity_I, length_I = rng.pareto(1.2, 1_000) + 1, rng.lognormal(3, 0.7, 1_000)
        item_N = rng.choice(1_000, rows, p=popularity_I / popularity_I.sum())
        user_N = rng.integers(0, rows // 10, rows)
        base_N = -2.5 + rng.normal(0, 0.7, rows)
        columns = {"user": user_N, "item": item_N, "request": user_N * 10 + rng.integers(0, 2, rows), "time": np.zeros(rows, np.int64)}

        def push(x_I):
            x_N = np.log(x_I)[item_N]
            logit_N = base_N + strength * (x_N - x_N.mean()) / x_N.std()
            label_N = (rng.random(rows) < _sigmoid(logit_N)).astype(float)
            flat_N = _sigmoid(base_N)
            scores = {"production_click": flat_N * _sigmoid(logit_N).mean() / flat_N.mean(), "challenger_click": _sigmoid(logit_N)}
            return columns | {"label_click": label_N} | scores

        return push, popularity_I, length_I, item_N

    return make


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_a_gain_from_popular_items_is_named(gaining, policy, no_rules, strength):
    push, popularity_I, _, item_N = gaining(strength)
    columns = push(popularity_I)
    for table in (columns, columns | {"item_popularity": popularity_I[item_N]}):
        verdict = judge(pa.table(table), policy(slices=[]), no_rules)
        assert next(c for c in verdict.checks if c.name == "ne").estimate < 0, "the challenger does gain NE"
        assert verdict.verdict == "REJECT" and "slate_popularity/value/all" in verdict.failed
    assert "column item_popularity" in _slate(verdict)["slate_popularity"].sentence
    assert "shown items" in _slate(verdict)["slate_popularity"].sentence


@pytest.mark.parametrize("whole", [False, True])
def test_a_gain_from_long_items_is_named(gaining, policy, no_rules, whole):
    push, _, length_I, item_N = gaining()
    length_N = np.round(length_I[item_N]).astype(int) if whole else length_I[item_N]
    verdict = judge(pa.table(push(length_I) | {"video_duration": length_N}), policy(slices=[]), no_rules)
    assert {"slate_duration/value/all", "slate_long/value/all"} <= set(verdict.failed)
    assert not {"slate_popularity/value/all", "slate_head_items/value/all"} & set(verdict.failed)


def test_a_gain_that_has_nothing_to_do_with_the_items_changes_no_slate(gaining, policy, no_rules):
    push, _, length_I, item_N = gaining()
    private_I = np.random.default_rng(5).lognormal(0, 1, 1_000)
    columns = push(private_I) | {"duration": length_I[item_N], "author_id": item_N % 50, "category": item_N % 7}
    found = _slate(judge(pa.table(columns), policy(slices=[]), no_rules))
    assert {"slate_duration", "slate_long", "slate_author", "slate_topic", "slate_popularity", "slate_repeats"} <= set(found)
    assert [c.name for c in found.values() if c.name != "slate_repeats" and c.outcome == "fail"] == []


def test_removing_new_items_altogether_is_no_blind_spot(world, policy, no_rules, table, revalued):
    columns = world(noise=0.0)
    columns["new_item"] = np.random.default_rng(0).random(len(columns["user"])) < 0.1
    for action in ("click", "like"):
        columns[f"challenger_{action}"] = np.where(columns["new_item"], 0.0, columns[f"production_{action}"])
    found = _slate(judge(table(revalued(columns)), policy(slices=[]), no_rules))["slate_new_item"]
    assert found.outcome == "fail" and found.estimate < -0.9


def test_few_authors_on_top_are_named_by_concentration(world, policy, no_rules, table, revalued):
    columns = world(noise=0.0)
    columns["author"] = np.char.add("a", np.random.default_rng(9).integers(0, 5, len(columns["user"])).astype(str))
    pushed_N = columns["author"] == "a1"
    for action in ("click", "like"):
        columns[f"challenger_{action}"] = np.where(
            pushed_N, np.minimum(1, 6 * columns[f"production_{action}"]), columns[f"production_{action}"]
        )
    verdict = judge(table(revalued(columns)), policy(), no_rules)
    assert "slate_author/value/all" in verdict.failed
    assert not any(check.slice.startswith("author=") for check in verdict.checks), "authors are no slices unless declared"


def test_repeats_are_counted_within_a_user(world, policy, no_rules, table, revalued):
    columns = world(noise=0.0)
    rng = np.random.default_rng(0)
    again_N = rng.random(len(columns["user"])) < 0.3
    columns["item"] = np.where(again_N, 10_000 + columns["user"], np.arange(len(columns["user"])) + 100_000)
    columns["challenger_like"] = np.where(again_N, np.minimum(1, 5 * columns["production_like"]), columns["production_like"])
    found = _slate(judge(table(revalued(columns)), policy(slices=[]), no_rules))["slate_repeats"]
    assert found.outcome == "fail" and found.estimate > 0.3


def test_declared_columns_must_be_there(world, policy, no_rules, table):
    columns = world(rows=5_000) | {"len": np.random.default_rng(0).gamma(2, 20, 5_000)}
    verdict = judge(table(columns), policy(slices=[], composition={"duration": "len"}), no_rules)
    assert "column len" in _slate(verdict)["slate_duration"].sentence
    verdict = judge(table(columns), policy(slices=[], composition={"duration": "lenght"}), no_rules)
    assert verdict.failed == ["composition/all/all"] and "did you mean 'len'" in verdict.reason


def test_usual_names_are_found_and_types_must_fit():
    table = pa.table(
        {"is_new_item": [True], "video_length_s": [3], "creator_id": ["x"], "genre": ["y"], "popular": ["very"], "new_user": [True]}
    )
    from trainer.schema.policy import GatePolicy

    found, missing = content_columns(table, GatePolicy(name="refresh"))
    assert found == {"new_item": "is_new_item", "duration": "video_length_s", "author": "creator_id", "topic": "genre"}
    assert missing == []


def test_an_only_action_is_its_own_value(gaining, policy, no_rules):
    push, popularity_I, *_ = gaining()
    columns = push(popularity_I)
    assert "slate_popularity" in _slate(judge(pa.table(columns), policy(slices=[]), no_rules))
    two = columns | {name.replace("click", "like"): x for name, x in columns.items() if "click" in name}
    assert _slate(judge(pa.table(two), policy(slices=[]), no_rules))["slate"].outcome == "not_applicable"


def test_identical_scores_leave_every_slate_as_it_is(world, policy, table, revalued):
    columns = world(noise=0.0) | {"duration": np.random.default_rng(0).gamma(2, 20, 40_000), "author": np.arange(40_000) % 30}
    rules = RuleSet(top_k={"screen": TopKRule(score="value", k=3)})
    verdict = judge(table(revalued(columns)), policy(slices=[]), rules)
    found = [check for check in verdict.checks if check.family == "slate" or check.name in ("overlap", "churn_screen")]
    assert len(found) > 7 and {check.estimate for check in found} == {0.0} and {check.outcome for check in found} == {"pass"}
