"""Scores and vectors of a partition come from one pass through the trunk."""

import numpy as np
import pytest
import torch

from tests import small, warm
from tests.unit.fit.test_begin import bundle_of
from trainer.errors import CheckpointError
from trainer.evaluate.scorer import RankerScorer, expected
from trainer.schema.release import RECORD
from trainer.schema.repair import Curve, Repair, write_repair


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


def test_a_release_is_scored_behind_its_own_repair_and_no_other(tmp_path):
    """What a consumer was promised lies beside the bundle: whoever hands in other curves is told, and not silently ignored."""
    encoder = small.encoder()
    bundle = bundle_of(tmp_path / "bundle", warm.build(encoder), encoder)[0]
    flatter = Repair(curves={"click": Curve(method="platt", scale="logit", x=[-1.0, 1.0], y=[-0.5, 0.5], slope=[0.5, 0.5])})
    assert RankerScorer(bundle, repair=flatter).repair == flatter, "a run's own bundle goes behind what it is about to be released with"
    for own in (None, Repair(rows=5)):
        if own is not None:
            write_repair(own, tmp_path)
        (tmp_path / RECORD).write_text("{}")
        assert RankerScorer(bundle).repair == own
        with pytest.raises(CheckpointError, match="behind its release's own repair"):
            RankerScorer(bundle, repair=flatter)
