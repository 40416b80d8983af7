"""Bins, bands and quantiles: what the charts are drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.errors import DataError
from trainer.report.scores import QUANTILES_Q, ActionScores, distributions, read_scores, reliability, weighted_quantiles


def action(p_N: np.ndarray, label_N: np.ndarray, user_N: np.ndarray | None = None, **scores: np.ndarray) -> ActionScores:
    user_N = np.arange(len(p_N)) if user_N is None else user_N
    return ActionScores("click", "binary", label_N, user_N, np.ones(len(p_N)), {"challenger": p_N, **scores})


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    p_N = rng.beta(2, 8, 40_000)
    return p_N, (rng.random(len(p_N)) < p_N).astype(float)


def test_calibrated_scores_lie_on_the_diagonal_and_scaled_ones_do_not(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    right, wrong = (reliability(action(score_N, label_N), "challenger") for score_N in (p_N, p_N * 0.7))
    assert right is not None and wrong is not None
    inside = (right.low_B <= right.predicted_B) & (right.predicted_B <= right.high_B)
    assert len(inside) == 12 and inside.sum() >= 10
    assert (wrong.low_B > wrong.predicted_B).all()


def test_bins_hold_equal_mass_and_rise(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    found = reliability(action(p_N, label_N), "challenger")
    assert found is not None and (np.diff(found.predicted_B) > 0).all()
    assert found.predicted_B.mean() == pytest.approx(p_N.mean(), rel=1e-3)  # a mean of bin means is the mean only if bins are equal


@pytest.mark.parametrize(("positives", "bins"), [(5, 3), (90, 6), (5_000, 12)])
def test_rare_positives_make_fewer_bins(positives: int, bins: int) -> None:
    p_N = np.random.default_rng(4).random(20_000)
    label_N = np.zeros(len(p_N))
    label_N[:positives] = 1
    found = reliability(action(p_N, label_N), "challenger")
    assert found is not None and len(found.predicted_B) == bins


def test_bands_count_users_not_rows(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    once = reliability(action(p_N, label_N), "challenger")
    again = reliability(action(np.tile(p_N, 4), np.tile(label_N, 4), np.tile(np.arange(len(p_N)), 4)), "challenger")
    assert once is not None and again is not None
    np.testing.assert_allclose(again.high_B - again.low_B, once.high_B - once.low_B, rtol=0.02)  # four copies tell nothing new


def test_unripe_rows_and_null_scores_are_left_out(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    holes = label_N.copy()
    holes[::3] = np.nan
    score_N = p_N.copy()
    score_N[1::3] = np.nan
    found, wanted = reliability(action(score_N, holes), "challenger"), reliability(action(p_N[2::3], label_N[2::3]), "challenger")
    assert found is not None and wanted is not None
    np.testing.assert_allclose(found.observed_B, wanted.observed_B)


@pytest.mark.parametrize("p_N", [np.full(50, 0.3), np.full(50, np.nan), np.zeros(0)])
def test_nothing_to_draw_is_none(p_N: np.ndarray) -> None:
    assert reliability(action(p_N, np.ones(len(p_N))), "challenger") is None


def test_weighted_quantiles_are_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(2)
    x_N, weight_N = rng.normal(size=500), rng.integers(1, 6, 500)
    wanted = np.quantile(np.repeat(x_N, weight_N), QUANTILES_Q, method="inverted_cdf")
    np.testing.assert_array_equal(weighted_quantiles(x_N, weight_N.astype(float), QUANTILES_Q), wanted)


def test_equal_scores_lie_on_the_diagonal_and_shares_add_up(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    found = distributions(action(p_N, label_N, production=p_N))
    assert found is not None
    np.testing.assert_array_equal(found.quantiles["production"], found.quantiles["challenger"])
    assert found.density["challenger"].sum() == pytest.approx(1.0, abs=0.003)  # but for a thousandth at either end


def test_odds_twice_as_high_shift_every_quantile_by_log_two(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    p_N, label_N = drawn
    odds_N = 2 * p_N / (1 - p_N)
    found = distributions(action(odds_N / (1 + odds_N), label_N, production=p_N))
    assert found is not None
    np.testing.assert_allclose(found.quantiles["challenger"] - found.quantiles["production"], np.log10(2), rtol=1e-6)


def test_certain_scores_can_be_drawn() -> None:
    found = distributions(action(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 1.0])))
    assert found is not None and np.isfinite(found.edges_B).all()


def test_kinds_follow_labels_and_scores(tmp_path: Path) -> None:
    labels = {"label_click": [True, False], "label_watch": [3.0, None], "label_odd": [1, 0], "label_unscored": [1.0, 0.0]}
    scores = {"challenger_click": [0.2, 0.4], "challenger_watch": [2.0, 9.0], "challenger_odd": [1.7, 0.2]}
    columns = {"user": ["a", "b"], **labels, **scores}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = {one.name: one.kind for one in read_scores(tmp_path / "p.parquet")}
    assert found == {"click": "binary", "watch": "count", "odd": "count"}


def test_a_table_without_users_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label_click": [1.0], "challenger_click": [0.5]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="cannot read the predictions"):
        read_scores(tmp_path / "p.parquet")
