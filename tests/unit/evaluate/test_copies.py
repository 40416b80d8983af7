"""An absorbed copy may be served only if it stays where the judged one was; each bound fails alone."""

import dataclasses

import numpy as np
import pytest

from trainer.config import ReleaseConfig
from trainer.evaluate import compare_copies
from trainer.schema.absorb import AbsorbReport

WIDE = ReleaseConfig(absorb_mean=9, absorb_quantile=99, absorb_ratio=9, absorb_traffic=99)
N = 4000


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, N)
    return logit, (rng.random(N) < sigmoid(logit)).astype(float), sigmoid(logit + rng.normal(0, 0.3, N))


def compare(logit, label, production, moved, bounds=WIDE, weight=None):
    production = {} if production is None else {"click": production}
    weight = np.ones(N) if weight is None else weight
    found = compare_copies({"click": sigmoid(logit)}, {"click": moved}, {"click": label}, production, weight, {"click": "binary"}, bounds)
    return {check.name: check for check in found}


def test_the_same_copy_passes_the_narrowest_bounds(rows):
    logit, label, production = rows
    tight = ReleaseConfig(absorb_mean=1e-9, absorb_quantile=1e-9, absorb_ratio=1e-9, absorb_traffic=1e-9)
    assert all(check.passed for check in compare(logit, label, production, sigmoid(logit), tight).values())


@pytest.mark.parametrize(
    "name,bound", [("mean", "absorb_mean"), ("quantiles", "absorb_quantile"), ("ratio", "absorb_ratio"), ("traffic", "absorb_traffic")]
)
def test_each_bound_fails_alone(rows, name, bound):
    logit, label, production = rows
    moved = sigmoid(logit + 0.5)
    assert all(check.passed for check in compare(logit, label, production, moved).values())
    found = compare(logit, label, production, moved, dataclasses.replace(WIDE, **{bound: 0.01}))
    assert [check.name for check in found.values() if not check.passed] == [name]


def test_a_shift_is_measured_in_logits(rows):
    logit, label, production = rows
    found = compare(logit, label, production, sigmoid(logit + 0.5))
    assert found["mean"].got == pytest.approx(0.5, abs=1e-6) and found["quantiles"].got == pytest.approx(0.5, abs=1e-6)


def test_a_stretched_scale_keeps_its_mean_and_fails_by_its_quantiles(rows):
    logit, label, production = rows
    stretched = sigmoid(logit.mean() + 1.3 * (logit - logit.mean()))
    found = compare(logit, label, production, stretched, ReleaseConfig())
    assert found["mean"].passed and not found["quantiles"].passed


def test_traffic_counts_the_rows_above_productions_quantiles_by_weight(rows):
    logit, label, production = rows
    threshold = np.quantile(production, 0.9)
    above = sigmoid(logit) > threshold
    weight = np.where(np.arange(N) % 2, 3.0, 1.0)
    gone = np.flatnonzero(above)[: int(above.sum() / 2)]
    moved = sigmoid(logit)
    moved[gone] = threshold - 1e-9
    got = compare(logit, label, np.where(np.arange(N) % 7 == 0, np.nan, production), moved, weight=weight)["traffic"].got
    assert got >= 0.35 and got == pytest.approx(compare(logit, label, production, moved, weight=weight)["traffic"].got, abs=0.3)
    other_scale = compare(logit, label, production * 1e-4, moved)["traffic"].got
    assert other_scale > 0.3, "on another scale the judged copy's own quantiles stand in"


def test_the_ratio_may_stay_as_bad_as_the_judged_copys(rows):
    logit, label, production = rows
    biased = logit + 0.4
    found = compare(biased, label, production, sigmoid(logit + 0.3), ReleaseConfig())
    assert found["ratio"].passed and found["ratio"].got > 0.05


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails(rows, bad):
    logit, label, production = rows
    moved = sigmoid(logit)
    moved[3] = bad
    found = compare(logit, label, production, moved)
    assert not found["finite"].passed and not found["mean"].passed
    report = AbsorbReport.of({"2026-03-05": "x"}, 3, "a", "b", list(found.values()))
    assert not report.served and "the judged copy is served" in report.sentence
