"""Rows of the trunk are sums of what a token, or a front row, is known by."""

import pytest
import torch

from models.layers import PAD_ROW
from models.packing import NO_CLOCK, gap_bucket, pack


def by_formula(embedding, batch):
    """Row after row: a front row is `bos` without a time before it; a token is the sum of its terms."""
    rows = []
    for first, last in zip(batch.offsets_S1[:-1].tolist(), batch.offsets_S1[1:].tolist(), strict=True):
        rows.append(embedding.gap[0] if embedding.bos is None else embedding.bos + embedding.gap[0])
        before = torch.tensor(NO_CLOCK)
        for token in range(first, last):
            time = batch.token_time_T[token]
            row = embedding.items(batch.token_item_T[token : token + 1], batch.token_item_features_TI[token : token + 1])
            row = embedding.token_features.add_to(row, batch.token_features_TK[token : token + 1])[0]
            row = row + batch.token_action_TH[token].to(row.dtype) @ embedding.action_value
            row = row + batch.token_action_known_TH[token].to(row.dtype) @ embedding.action_known
            rows.append(row + embedding.gap[gap_bucket(time.clone(), before)])
            before = time
    return torch.stack(rows)


@pytest.mark.parametrize("changes", [{}, {"padding": 9}, {"history_actions": (), "token_features": {}, "item_features": {}}])
def test_rows_are_the_sums_of_their_terms_with_all_gradients(kit, changes):
    shape = kit.shape(**changes)
    model, batch = kit.model(shape, dtype=torch.float64), kit.batch(shape, [6, 0, 1, 9], [[0], [0], [1], [4]])
    embedding, packing = model.embedding, pack(batch)
    known = {name: parameter for name, parameter in embedding.named_parameters() if parameter.numel() and name != "target"}
    rows, plain = embedding.rows(batch, packing), by_formula(embedding, batch)
    torch.testing.assert_close(rows, plain, rtol=0, atol=1e-12)
    direction = torch.randn_like(rows)
    fast, slow = (torch.autograd.grad(out, list(known.values()), direction, allow_unused=True) for out in (rows, plain))
    for name, mine, theirs in zip(known, fast, slow, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert not fast[list(known).index("item.weight")][PAD_ROW].any()
