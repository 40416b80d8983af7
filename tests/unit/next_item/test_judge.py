import math

import numpy as np
import pytest
import torch

from tests.unit.next_item.small import sequences
from trainer.next_item.judge import judge, list_metrics, pessimistic_rank, popularity_scorer
from trainer.next_item.units import TEST, VALIDATION, training_units


def brute_force(scores, target, seen):
    """Rank of the target in the list sorted by score, unseen items only, the target last among its ties."""
    unseen = [item for item in range(len(scores)) if item not in seen or item == target]
    order = sorted(unseen, key=lambda item: (-scores[item], item == target))
    return len(scores) if target in seen else order.index(target)


def test_ranks_equal_a_sorted_list():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (200, 25)).astype(np.float32)  # many ties
    target = rng.integers(0, 25, 200)
    seen = [set(rng.choice(25, rng.integers(0, 12), replace=False).tolist()) for _ in range(200)]
    row = np.repeat(np.arange(200), [len(items) for items in seen])
    item = np.array([one for items in seen for one in items], np.int64)
    found = pessimistic_rank(torch.from_numpy(scores), target, row, item)
    assert found.tolist() == [brute_force(*one) for one in zip(scores.tolist(), target.tolist(), seen, strict=True)]
    assert (found == 25).any() and (found < 25).any()


NOTHING = np.zeros(0, np.int64)


def test_a_constant_scorer_is_last():
    assert pessimistic_rank(torch.zeros(1, 50), np.array([7]), NOTHING, NOTHING).tolist() == [49]


@pytest.mark.parametrize("broken", [3, 7])
def test_a_nan_never_helps(broken):
    scores = torch.arange(50.0)[None] * -1
    scores[0, 7] = 10.0
    scores[0, broken] = math.nan
    assert pessimistic_rank(scores, np.array([7]), NOTHING, NOTHING).tolist() == [49 if broken == 7 else 1]


def test_metrics_by_hand():
    found = list_metrics(np.array([0, 2, 9, 10]), 10)
    assert found["hr@10"] == 0.75 and found["n"] == 4
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(11)) / 4)


def test_judge_asks_for_the_right_event_with_seen_items_removed():
    users = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 3, 4, 2]]
    data = sequences(*users)
    asked_histories = []

    def score(asked, units):
        asked_histories.extend(np.diff(asked.token_offsets_U1)[units].tolist())
        return torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(len(units), 1)

    # Unseen before the validation item: {3, 4}, {1, 0}, {4, 2}; the scorer prefers 3 (right), 0 (wrong: 1), 2 (wrong: 4).
    assert judge(score, data, VALIDATION, 10, 1)["hr@1"] == pytest.approx(1 / 3)
    # Before the test item only the test item itself is unseen.
    assert judge(score, data, TEST, 10, 1)["hr@1"] == 1.0
    assert asked_histories == [3, 3, 3, 4, 4, 4]


def test_the_whole_history_is_removed_although_the_ranker_reads_its_end():
    def likes_the_first(asked, units):
        return torch.tensor([[9.0, 0.0, 0.0, 0.0, 5.0, 0.0]]).repeat(len(units), 1)

    assert judge(likes_the_first, sequences([0, 1, 2, 3, 4], items=6), TEST, 1, 1)["hr@1"] == 1.0


def test_popularity_counts_training_events_only():
    data = sequences([2, 0, 1, 1], [2, 1, 1], [2, 1, 1])
    scores = popularity_scorer(training_units(data, 5), data.items)(None, np.arange(1))
    assert scores.tolist() == [[1.0, 0.0, 3.0]]
