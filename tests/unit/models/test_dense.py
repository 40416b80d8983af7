"""The dense twin scores padded requests as the ranker scores packed ones."""

import pytest
import torch

from models.dense import DenseRanker, dense_inputs
from models.losses import expectations
from trainer.serving.judge import reference
from trainer.serving.requests import edge_requests, packed, random_requests

OPTIONS = [
    ("sasrec", {}), ("hstu", {}), ("sasrec", {"rotary": False, "positions": 9, "padding": 9, "norm": "layer", "biases": True}),
    ("sasrec", {"padding": 12, "normed_layers": 1, "activation": "relu"}),
]  # fmt: skip


def dense(kit, architecture, changes, bare=False):
    shape = (kit.bare if bare else kit.shape)(architecture, **changes)
    return kit.model(shape, dtype=torch.float64)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("architecture", "changes"), OPTIONS)
def test_padded_requests_score_as_packed_ones_on_every_edge(kit, architecture, changes, bare):
    ranker = dense(kit, architecture, changes, bare)
    twin = DenseRanker(ranker).eval()
    for name, requests in edge_requests(ranker.shape, 9, 5).items():
        with torch.inference_mode():
            scores, dot = twin(requests)
        expected, product = reference(ranker, requests)
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(dot, product, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_what_padding_holds_and_how_much_there_is_never_matters(kit, architecture):
    ranker = dense(kit, architecture, {})
    twin = DenseRanker(ranker).eval()
    requests = random_requests(ranker.shape, [0, 2, 5], tokens=9, candidates=4, seed=0)
    other = random_requests(ranker.shape, [0, 2, 5], tokens=9, candidates=4, seed=1)
    mask = requests["token_mask"]
    filled = {
        name: torch.where(mask.view(*mask.shape, *[1] * (value.ndim - 2)), value, other[name]) if name.startswith("token_") else value
        for name, value in requests.items()
    }
    shorter = {name: value[:, :5] if name.startswith("token_") else value for name, value in requests.items()}
    with torch.inference_mode():
        scores, _ = twin(requests)
        torch.testing.assert_close(twin(filled)[0], scores, rtol=0, atol=0)
        torch.testing.assert_close(twin(shorter)[0], scores, rtol=1e-12, atol=1e-12)


def test_scores_are_expectations_by_request_and_candidate(kit):
    ranker = dense(kit, "sasrec", {})
    requests = random_requests(ranker.shape, [3, 1], tokens=3, candidates=4, seed=0)
    with torch.inference_mode():
        flat = expectations(ranker(packed(requests, ranker.shape)).output_NO, ranker.shape.actions)
        scores, _ = DenseRanker(ranker)(requests)
    assert scores.shape == (2, 4, 3)
    torch.testing.assert_close(scores[1, 2], flat[6])


def test_only_what_a_ranker_reads_is_an_input(kit):
    assert "event_features" in dense_inputs(kit.shape("hstu")) and "event_features" not in dense_inputs(kit.shape("sasrec"))
    assert set(dense_inputs(kit.bare("sasrec"))) == {"token_mask", "token_item", "token_time", "request_time", "item"}


def test_a_ranker_without_actions_has_no_twin(kit):
    with pytest.raises(ValueError, match="nothing to serve"):
        DenseRanker(kit.model(kit.shape("sasrec", actions=())))
