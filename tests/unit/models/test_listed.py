"""A list in a ranker: one table, the sum of its values' rows; padding is nothing, and order cannot matter."""

import dataclasses

import pytest
import torch

from models.dense import DenseRanker
from models.layers import OOV_ROW, PAD_ROW, whole_name
from trainer.schema import logs
from trainer.serving.judge import reference
from trainer.serving.requests import edge_requests

SLOTS = {f"tags[{place}]": "tags" for place in range(3)}
both = pytest.mark.parametrize("architecture", ["sasrec", "hstu"])


def shape_of(kit, architecture, **changes):
    plain = kit.shape(architecture)
    return kit.shape(
        architecture, vocabularies={**plain.vocabularies, "tags": 7}, item_features={**plain.item_features, **SLOTS},
        token_features={**plain.token_features, **SLOTS}, categorical={**plain.categorical, **SLOTS}, **changes,
    )  # fmt: skip


@both
def test_one_table_serves_all_values_and_their_sum_is_the_list(kit, architecture):
    model = kit.model(shape_of(kit, architecture), dtype=torch.float64)
    tables = [name for name in model.state_dict() if "feature:tags" in name]
    assert len(tables) == 3, "items, tokens and context have one each"
    features = model.embedding.item_features
    row_MF = torch.tensor([[3, 2, 4, 6], [3, 5, 0, 0], [3, 1, 0, 0]])
    weights = {name: table.weight for name, table in features.tables.items()}
    expected = weights["feature:author"][row_MF[:, 0]] + weights["feature:tags"][row_MF[:, 1:]].sum(1)
    got = features.add_to(torch.zeros(3, model.shape.dim, dtype=torch.float64), row_MF)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    got.sum().backward()
    grad = weights["feature:tags"].grad
    assert not grad[PAD_ROW].any() and grad[[1, 2, 4, 5, 6]].abs().min() > 0 and not grad[3].any()


@both
def test_the_order_of_a_list_does_not_matter_and_its_values_do(kit, architecture):
    shape = shape_of(kit, architecture)
    model, batch = kit.model(shape, dtype=torch.float64), kit.batch(shape, [5, 0, 3], [[5], [0], [1, 3]])

    def turned(order):
        columns = {
            "token_item_features_TI": 1,
            "token_features_TK": 1,
            "target_item_features_NI": 1,
            "target_token_features_NK": 1,
            "categorical_NC": 3,
        }
        kept = {name: list(range(first)) + [first + place for place in order] for name, first in columns.items()}
        return dataclasses.replace(batch, **{name: getattr(batch, name)[:, column] for name, column in kept.items()})

    with torch.inference_mode():
        same, base = model(turned([2, 0, 1])).output_NO, model(batch).output_NO
        torch.testing.assert_close(same, base, rtol=1e-12, atol=1e-12)
        without = turned([0, 1, 2])
        for name in ("token_item_features_TI", "token_features_TK", "target_item_features_NI", "categorical_NC"):
            getattr(without, name)[:, -3:] = PAD_ROW
        assert (model(without).output_NO - base).abs().min() > 1e-6


def test_dropout_takes_whole_lists(kit):
    model = kit.model(shape_of(kit, "sasrec", feature_dropout=0.5))
    row_MF = torch.tensor([[3, 2, 1, 4, 5, 6]]).repeat(4000, 1)
    torch.manual_seed(0)
    dropped = model.context.categorical.dropped(row_MF, 0.3)
    lists = {tuple(row) for row in dropped[:, 3:].tolist()}
    assert lists == {(4, 5, 6), (OOV_ROW, PAD_ROW, PAD_ROW)}
    share = (dropped != row_MF).float().mean(0)
    assert (share[[0, 1, 3]] - 0.3).abs().max() < 0.03 and torch.equal(share[3:4].expand(3), share[3:])


@both
def test_the_dense_twin_agrees(kit, architecture):
    ranker = kit.model(shape_of(kit, architecture), dtype=torch.float64)
    twin = DenseRanker(ranker).eval()
    for name, requests in edge_requests(ranker.shape, 6, 3).items():
        with torch.inference_mode():
            scores, _ = twin(requests)
        torch.testing.assert_close(
            scores, reference(ranker, requests)[0], rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_names_of_lists_are_taken_apart_as_in_log_specifications():
    for name in ("tags[0]", "tags[12]", "tags", "a[x]", "[3]", "a[1]b", "a[1][2]", "a[]", "a[-1]", "a [1]", ""):
        assert whole_name(name) == logs.whole_name(name), name


def test_names_of_lists():
    assert [whole_name(name) for name in ("tags[0]", "tags[12]", "tags", "a[x]", "[3]")] == ["tags", "tags", "tags", "a[x]", "[3]"]


def test_sparse_gradients_of_a_list_are_those_of_the_whole_table(kit):
    model = kit.model(kit.shape(vocabularies={**kit.shape().vocabularies, "tags": 50}, item_features=SLOTS), dtype=torch.float64)
    features, row_MF = model.embedding.item_features, torch.tensor([[4, 5, 0], [5, 1, 4]])
    (table,) = features.tables.values()
    direction = torch.randn(2, model.shape.dim, dtype=torch.float64)
    grads = []
    for sparse in (False, True):
        table.sparse = sparse
        (grad,) = torch.autograd.grad((features.add_to(torch.zeros_like(direction), row_MF) * direction).sum(), [table.weight])
        assert grad.is_sparse == sparse
        grads.append(grad.to_dense())
    torch.testing.assert_close(grads[1][1:], grads[0][1:], rtol=0, atol=1e-12)
