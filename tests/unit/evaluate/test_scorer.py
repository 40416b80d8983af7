"""Scores and vectors of a partition come from one pass through the trunk."""

import numpy as np
import pytest
import torch

from tests import small, warm
from tests.unit.fit.test_begin import bundle_of
from trainer.evaluate.scorer import RankerScorer, expected


@pytest.mark.parametrize("architecture", ["sasrec", "hstu"])
def test_one_pass_gives_scores_and_vectors(tmp_path, monkeypatch, architecture):
    encoder, part = small.encoder(), (*small.tables(), warm.LATE)
    scorer = RankerScorer(bundle_of(tmp_path / "bundle", warm.build(encoder, name=architecture), encoder)[0])
    passes, trunk = [], type(scorer.ranker)._trunk
    monkeypatch.setattr(type(scorer.ranker), "_trunk", lambda *of: passes.append(1) or trunk(*of))
    monkeypatch.setattr("trainer.evaluate.scorer._TARGETS", 64)  # several batches
    scored = scorer.score(*part, items=True)
    once = len(passes)
    plain = expected(scorer.ranker, scorer.encoder.encode(*part))
    assert once > 1 and len(passes) == 2 * once, "scores with vectors cost as many passes as scores alone"
    user_ND, item_ND = scorer.vectors(*part)
    assert {name: score_N.tolist() for name, score_N in scored.score_N.items()} == {
        name: score_N.tolist() for name, score_N in plain.items()
    }
    for ours, apart in ((scored.user_ND, user_ND), (scored.item_ND, item_ND), (scored.dot_N, (user_ND * item_ND).sum(1))):
        np.testing.assert_allclose(ours, apart, rtol=0, atol=1e-5 * np.abs(apart).max())
    assert np.isfinite(scored.dot_N).all() and scored.dot_N.std() > 0 and scorer.score(*part).item_ND is None
    assert not torch.is_inference_mode_enabled()
