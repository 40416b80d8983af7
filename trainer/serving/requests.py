"""Requests that a serving artefact is tried on: the edges on which runtimes differ, and one of the usual size.

Shape suffixes as in `models.dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.batch import Batch
from models.dense import dense_inputs, padded_batch
from models.layers import OOV_ROW
from models.ranker import RankerShape

_START_MS = 1_650_000_000_000
_DAY_MS = 86_400_000
_TOKEN_FIELDS = ("token_item_T", "token_item_features_TI", "token_features_TK", "token_action_TH", "token_action_known_TH", "token_time_T")


def random_requests(shape: RankerShape, lengths: Sequence[int], *, tokens: int, candidates: int, seed: int) -> dict[str, Tensor]:
    """Makes requests with random content.

    Args:
        shape: Of the ranker.
        lengths: History tokens of each request.
        tokens: L, to which all are padded.
        candidates: N.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"request": len(lengths), "token": tokens, "candidate": candidates}
    vocabularies = _vocabularies(shape)
    made: dict[str, Tensor] = {}
    for name, (dtype, varying, width) in dense_inputs(shape).items():
        size = tuple(sizes[word] for word in varying)
        if name in vocabularies:
            columns = [torch.randint(OOV_ROW, shape.vocabularies[v], size, generator=generator) for v in vocabularies[name]]
            made[name] = columns[0] if width is None else torch.stack(columns, -1)
        elif dtype == torch.int64:
            made[name] = _START_MS + torch.randint(0, 30 * _DAY_MS, size, generator=generator)
        else:
            full = size if width is None else (*size, width)
            drawn = torch.rand(full, generator=generator)
            made[name] = drawn < 0.7 if dtype == torch.bool else drawn
    made["token_time"] = made["token_time"].sort(1).values
    made["request_time"] = made["request_time"] + 30 * _DAY_MS
    made["token_mask"] = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
    return made


def edge_requests(shape: RankerShape, max_tokens: int, candidates: int) -> dict[str, dict[str, Tensor]]:
    """Returns the edge set by name: empty history, one token, the longest, nothing known of the ids, nothing known of the features, one
    candidate of one request, and a mixed batch.
    """

    def made(lengths: Sequence[int], seed: int, count: int = candidates) -> dict[str, Tensor]:
        return random_requests(shape, lengths, tokens=max(*lengths, 1), candidates=count, seed=seed)

    half = max(1, max_tokens // 2)
    unknown, missing = made([half, half], 3), made([half, half], 4)
    for name in _vocabularies(shape):
        if name in unknown:
            unknown[name] = torch.full_like(unknown[name], OOV_ROW)
    for name in ("present", "token_action_known"):
        if name in missing:
            missing[name] = torch.zeros_like(missing[name])
    for name in ("numeric", "token_action"):
        if name in missing:
            missing[name] = torch.zeros_like(missing[name])
    missing["token_time"] = torch.full_like(missing["token_time"], -1)
    return {
        "empty history": made([0, 0], 0),
        "one token": made([1, 1], 1),
        "longest history": made([max_tokens, max_tokens], 2),
        "all ids unknown": unknown,
        "all features missing": missing,
        "one request, one candidate": made([half], 5, 1),
        "mixed lengths": made([0, 1, half, max_tokens], 6),
    }


def packed(requests: dict[str, Tensor], shape: RankerShape) -> Batch:
    """Returns padded requests as the packed batch that training and evaluation read: no padding, offsets instead."""
    mask_BL = requests["token_mask"]
    batch, kept_T = padded_batch(requests, shape), mask_BL.flatten()
    offsets_S1 = torch.cat([torch.zeros(1, dtype=torch.int64), mask_BL.sum(1).cumsum(0)])
    return replace(batch, offsets_S1=offsets_S1, **{name: getattr(batch, name)[kept_T] for name in _TOKEN_FIELDS})


def _vocabularies(shape: RankerShape) -> dict[str, list[str]]:
    """Input -> vocabulary of each of its columns."""
    items, events = list(shape.item_features.values()), list(shape.token_features.values())
    return {
        "token_item": [shape.item_vocabulary], "item": [shape.item_vocabulary], "token_item_features": items, "item_features": items,
        "token_features": events, "event_features": events, "categorical": list(shape.categorical.values()),
    }  # fmt: skip
