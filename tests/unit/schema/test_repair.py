"""A curve keeps every order, or it is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import CheckpointError
from trainer.gate.fitting import fit_map
from trainer.schema.repair import FILE, Curve, Repair, from_scale, read_repair, to_scale, write_repair

STRAIGHT = {"method": "map", "scale": "logit", "x": [-2.0, 0.0, 1.0], "y": [-1.0, 0.5, 2.0], "slope": [0.7, 0.9, 1.2]}


@pytest.mark.parametrize("scale", ["logit", "log", "linear"])
def test_scales_come_back(scale):
    score_N = np.array([1e-9, 0.01, 0.3, 0.999])
    np.testing.assert_allclose(from_scale(to_scale(score_N, scale), scale), score_N, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.2, 3.0), shift=st.floats(-3.0, 3.0), ties=st.booleans())
def test_a_map_keeps_every_order_and_makes_no_tie(seed, spread, shift, ties):
    rng = np.random.default_rng(seed)
    z_N = rng.normal(0, 1, 2_000)
    theirs_N = from_scale(np.round(z_N, 1) if ties else z_N, "logit")  # production may give one score to many rows
    ours_N = from_scale(spread * (z_N + rng.normal(0, 0.3, 2_000)) + shift, "logit")
    curve = fit_map(ours_N, theirs_N, np.ones(2_000), "logit")
    probe_N = np.unique(np.concatenate([ours_N, rng.random(2_000), np.logspace(-12, -1, 200), 1 - np.logspace(-12, -1, 200)]))
    probe_N = probe_N[np.r_[True, np.diff(to_scale(probe_N, "logit")) > 1e-6]]
    assert (np.diff(to_scale(curve(probe_N), "logit")) > 0).all()


def test_a_curve_goes_on_in_a_straight_line_beyond_its_knots():
    curve = Curve(**STRAIGHT, below=0.5, above=2.0)
    z_N = to_scale(curve(from_scale(np.array([-6.0, -2.0, 1.0, 3.0]), "logit")), "logit")
    np.testing.assert_allclose(z_N, [-3.0, -1.0, 2.0, 6.0], atol=1e-9)
    assert np.isnan(curve(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"y": [-1.0, -1.0, 2.0]}, {"x": [0.0, -2.0, 1.0]}, {"slope": [9.0, 0.9, 1.2]}, {"slope": [-0.1, 0.9, 1.2]}, {"below": 0.0},
        {"y": [-1.0, float("nan"), 2.0]}, {"x": [-2.0, 0.0]}, {"method": "pickle"}, {"scale": "cubic"}, {"above": float("inf")},
    ],
)  # fmt: skip
def test_what_is_not_strictly_increasing_is_refused(change):
    with pytest.raises(CheckpointError, match="not strictly increasing"):
        Curve(**{**STRAIGHT, **change})


def test_a_repair_comes_back_from_disk_as_it_was(tmp_path):
    repair = Repair(curves={"click": Curve(**STRAIGHT)}, weights={"click": 1.0}, rows=7)
    write_repair(repair, tmp_path)
    again = read_repair(tmp_path)
    assert again == repair and again.sha256 == repair.sha256
    scores = again.scores({"click": np.array([0.2]), "like": np.array([0.4])})
    assert scores["like"] == 0.4 and scores["click"] != 0.2
    assert read_repair(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 9}', '{"stuff": 1}', '{"curves": {"click": {"method": "map"}}}', '{"curves": {"click": 3}}']
)
def test_a_damaged_repair_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError):
        read_repair(tmp_path)


def test_an_altered_knot_is_refused(tmp_path):
    path = write_repair(Repair(curves={"click": Curve(**STRAIGHT)}), tmp_path)
    values = json.loads(path.read_text())
    values["curves"]["click"]["y"][1] = 7.0
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not strictly increasing"):
        read_repair(tmp_path)
