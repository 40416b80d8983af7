"""True probabilities of judged rows: the right ones, in order, and an expected NE that the luck of outcomes does not move."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import configure_backtest
from trainer.backtest.holdout import ne_of
from trainer.backtest.truth import TRUE, with_truth
from trainer.errors import ConfigError, DataError
from trainer.metrics import row_loss
from trainer.schema.simulation import SimulationSpec
from trainer.simulate import simulate

DAY = "2026-03-03"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(SimulationSpec(days=3, users=60, items=80, seed=3), folder)
    return folder


def read(folder, kind, day=DAY):
    return pq.read_table(folder / kind / f"dt={day}" / "part-0.parquet")


def judged(folder):
    """Rows as a backtest has them: each event once, in an order of its own."""
    events = read(folder, "events").group_by(["event_id", "user_id", "item_id", "request_time_ms"]).aggregate([("click", "max")])
    order = np.random.default_rng(0).permutation(len(events))
    renamed = {"user": "user_id", "item": "item_id", "time": "request_time_ms", "event": "event_id", "label_click": "click_max"}
    rows = pa.table({name: events[column] for name, column in renamed.items()}).take(order)
    return rows.append_column("weight", pa.array(np.ones(len(rows), np.float32)))


def test_every_row_gets_its_own_probability(log):
    rows = judged(log)
    found = with_truth(rows, log, [DAY], ["click", "like"])
    truth = pa.concat_tables([read(log, "truth", day) for day in ("2026-03-02", DAY, "2026-03-04")])
    place = pc.index_in(rows["event"], value_set=truth["event_id"])
    for action in ("click", "like"):
        assert np.array_equal(found[TRUE + action].to_numpy(), truth[action].take(place).to_numpy().astype(np.float64))
    assert found["event"].equals(rows["event"]), "rows keep their order"


def test_rows_of_another_log_and_actions_without_a_truth_are_refused(log, tmp_path):
    rows = judged(log)
    moved = rows.set_column(0, "user", pc.add(rows["user"], 1))
    with pytest.raises(DataError, match=f"of {len(rows)} rows have no truth"):
        with_truth(moved, log, [DAY], ["click"])
    with pytest.raises(DataError, match="cannot read what was simulated"):
        with_truth(rows, tmp_path, [DAY], ["click"])
    with pytest.raises(ConfigError, match="knows no probability") as error:
        with_truth(rows, log, [DAY], ["watch_time"])
    assert error.value.where == "truth"


def test_ne_is_expected_over_outcomes_and_the_truth_is_the_best_score(log):
    rows = with_truth(judged(log), log, [DAY], ["click"])
    p = rows[TRUE + "click"].to_numpy()

    def ne(logit, outcome=None):
        scored = rows.append_column("score_click", pa.array(1 / (1 + np.exp(-logit))))
        if outcome is not None:
            scored = scored.drop_columns([TRUE + "click", "label_click"]).append_column("label_click", pa.array(outcome.astype(np.float64)))
        return float(ne_of(scored, "click", "binary")[0].value_G[0])

    truth = np.log(p / (1 - p))
    drawn = [ne(truth + 0.3, outcome) for outcome in np.random.default_rng(0).random((400, len(p))) < p]
    assert np.std(drawn) > 1e-3, "what outcomes alone move it by"
    assert abs(ne(truth + 0.3) - np.mean(drawn)) < 4 * np.std(drawn) / 20 + 1e-3, "up to a mean of ratios being no ratio of means"
    assert ne(truth) < min(ne(truth + 0.1), ne(truth - 0.1), ne(0.9 * truth))


def test_the_loss_of_a_probability_is_the_mean_loss_of_its_outcomes():
    score, p = np.array([0.2, 0.9, 0.5]), np.array([0.3, 0.8, 0.0])
    one, zero = row_loss("binary", score, np.ones(3)), row_loss("binary", score, np.zeros(3))
    assert np.array_equal(one, -np.log(score)) and np.array_equal(zero, -np.log1p(-score))
    assert np.allclose(row_loss("binary", score, p), p * one + (1 - p) * zero, rtol=0, atol=1e-15)


def test_the_key_reaches_the_configuration(log):
    assert configure_backtest(f"truth={log}").truth == str(log) and configure_backtest().truth is None
