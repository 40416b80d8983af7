"""Ranks the held-out item among the whole catalogue, seen items removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.ranker import Ranker
from trainer.data import Shard, take
from trainer.data.plan import cut
from trainer.next_item.sequences import Sequences
from trainer.next_item.units import questions, seen_before
from trainer.schema.vocabulary import RESERVED_ROWS

BATCH_QUESTIONS = 512
BATCH_TOKENS = 32_768

Scorer = Callable[[Shard, np.ndarray], Tensor]


def judge(score: Scorer, sequences: Sequences, which: int, max_history: int, top_k: int) -> dict[str, float | int]:
    """Asks every judged user for a held-out item.

    Args:
        score: Scores of all items ([B, V], higher is better) for the questions of a shard with the given numbers.
        sequences: All events.
        which: `units.VALIDATION` or `units.TEST`.
        max_history: L.
        top_k: Length of the list that is judged.

    Returns:
        ``hr@k``: share of users whose item is in the list. ``ndcg@k``: mean of 1 / log2(rank + 2). ``n``: users.
    """
    asked = questions(sequences, which, max_history)
    rank_N = np.empty(asked.units, np.int64)
    tokens_N = np.diff(asked.token_offsets_U1)
    for units in cut(tokens_N, np.ones_like(tokens_N), BATCH_QUESTIONS, BATCH_TOKENS, np.random.default_rng(0)):
        seen = seen_before(sequences, asked.row_N[units], which)
        rank_N[units] = pessimistic_rank(score(asked, units), asked.target_item_N[units] - RESERVED_ROWS, *seen)
    return list_metrics(rank_N, top_k)


def pessimistic_rank(score_BV: Tensor, target_B: np.ndarray, seen_row: np.ndarray, seen_item: np.ndarray) -> np.ndarray:
    """Returns int64 [B]: how many unseen items are not strictly below the target.

    A tie counts against the target, and so does every NaN: no order of the catalogue, and no broken score, can help. A target
    that was itself seen before cannot be recommended; its rank is the size of the catalogue.

    Args:
        score_BV: Scores of all items.
        target_B: Item that came next.
        seen_row: Row of `score_BV` of each seen event.
        seen_item: Its item.
    """
    rows = torch.arange(len(target_B))
    target = torch.from_numpy(target_B)
    score_BV = score_BV.cpu()
    own_B1 = score_BV[rows, target][:, None].clone()
    ahead_BV = ~(score_BV < own_B1)
    ahead_BV[rows, target] = False
    ahead_BV[torch.from_numpy(seen_row), torch.from_numpy(seen_item)] = False
    rank_B = ahead_BV.sum(1).numpy()
    repeated = seen_row[seen_item == target_B[seen_row]]
    rank_B[repeated] = score_BV.shape[1]
    return rank_B


def list_metrics(rank_N: np.ndarray, top_k: int) -> dict[str, float | int]:
    """Returns hit rate and NDCG of lists of length `top_k` with one relevant item, at ranks from 0."""
    gain_N = np.where(rank_N < top_k, 1 / np.log2(rank_N + 2.0), 0.0)
    return {f"hr@{top_k}": float((rank_N < top_k).mean()), f"ndcg@{top_k}": float(gain_N.mean()), "n": len(rank_N)}


def ranker_scorer(ranker: Ranker) -> Scorer:
    """Returns the scorer of a ranker: the product of user and item vectors. The ranker must be in eval mode."""
    device = next(ranker.parameters()).device
    with torch.no_grad():
        item_VD = catalogue(ranker)

    @torch.no_grad()
    def score(asked: Shard, units: np.ndarray) -> Tensor:
        return (ranker.user_vectors(take(asked, units).to(device)) @ item_VD.T).float()

    return score


def catalogue(ranker: Ranker) -> Tensor:
    """Returns [V, D]: vectors of all items, reserved rows left out: nobody can be served padding."""
    rows = ranker.shape.vocabularies[ranker.shape.item_vocabulary]
    row_V = torch.arange(RESERVED_ROWS, rows, device=next(ranker.parameters()).device)
    return ranker.item_vectors(row_V, row_V.new_zeros(len(row_V), 0))


def popularity_scorer(units: Shard, items: int) -> Scorer:
    """Returns the scorer that counts: every user gets the items with the most training events."""
    count_V = torch.bincount(torch.from_numpy(units.target_item_N - RESERVED_ROWS), minlength=items).float()

    def score(asked: Shard, units: np.ndarray) -> Tensor:
        return count_V.repeat(len(units), 1)

    return score
