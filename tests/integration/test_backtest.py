"""A small backtest: two nights, production frozen and continued, grown, from scratch, and distilled."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss

from tests.integration.conftest import configure_backtest
from trainer.backtest import backtest
from trainer.checkpoint import read_bundle
from trainer.errors import DataError

pytestmark = pytest.mark.integration
NIGHTS = ["2026-03-06", "2026-03-07"]
COLD = ("arms.last_1.start=none", "arms.last_1.days=1", "arms.last_1.settings.model.layers=3")
TAUGHT = (*(option.replace("last_1", "distilled") for option in COLD), "arms.distilled.settings.distill.source=production")


def overrides(simulated, folder, *more):
    return (f"data.root={simulated}", f"run_dir={folder}/run", f"rebuild.root={folder}/examples", "nights=2", "checkpoints=3",
            "model.layers=2", "fit.batch_targets=128", "fit.ema_decay=0.0", *COLD, *TAUGHT, *more)  # fmt: skip


@pytest.fixture(scope="module")
def done(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backtest")
    return folder / "run", backtest(configure_backtest(*overrides(simulated, folder)))


def results(done, action="click"):
    return {result.arm: result for result in done[1].results if result.action == action}


def bundle(done, arm, day):
    return read_bundle(done[0] / f"{arm}-seed0" / day / "challenger")


def curve(done, arm, day=NIGHTS[0], action="click"):
    rows = pq.read_table(done[0] / "succession.parquet").to_pylist()
    return [row for row in rows if (row["arm"], row["day"], row["action"]) == (arm, day, action)]


def test_every_night_trains_on_what_was_there_and_new(done):
    new = {arm: [sorted(bundle(done, arm, day).manifest.trained) for day in NIGHTS]
           for arm in ("production_continued", "warm_grown", "scratch_all", "last_1")}  # fmt: skip
    days = [f"2026-03-0{day}" for day in range(2, 7)]
    assert new["production_continued"] == new["warm_grown"] == new["scratch_all"] == [days[:4], days]
    assert new["last_1"] == [["2026-03-05"], ["2026-03-05", "2026-03-06"]], "days before the window stay out"
    rows = {
        day: json.loads((done[0] / "warm_grown-seed0" / day / "challenger-fit" / "train.json").read_text())["targets"] for day in NIGHTS
    }
    cold = json.loads((done[0] / "scratch_all-seed0" / NIGHTS[0] / "challenger-fit" / "train.json").read_text())["targets"]
    assert all(3 * count < cold for count in rows.values()), "a warm night learns one day, a cold one four"


def test_a_grown_arm_begins_exactly_where_production_stands(done):
    begin = curve(done, "warm_grown")[0]
    assert begin["step"] == 0 and begin["flops"] == 0
    assert begin["ne"] == pytest.approx(results(done)["production_frozen"].nights[NIGHTS[0]], rel=1e-6)
    assert curve(done, "scratch_all")[0]["ne"] != pytest.approx(begin["ne"], rel=1e-3)


def test_metrics_are_those_of_an_outside_implementation_on_the_written_scores(done):
    tables = [pq.read_table(done[0] / "scratch_all-seed0" / day / "scores.parquet") for day in NIGHTS]
    label_N, score_N = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("label_click", "score_click"))
    background = log_loss(label_N, np.full(len(label_N), label_N.mean()))
    result = results(done)["scratch_all"]
    assert result.ne.value == pytest.approx(log_loss(label_N, score_N) / background, rel=1e-9)
    baseline = results(done)["production_continued"]
    assert result.gap.value == pytest.approx(result.ne.value / baseline.ne.value - 1, rel=1e-9)
    assert result.gap.low < result.gap.value < result.gap.high and result.ne.low < result.ne.value < result.ne.high
    assert baseline.gap.value == 0 and done[1].rows == len(label_N)


def test_compute_adds_up_over_nights(done):
    for arm, result in results(done).items():
        ends = [[row for row in curve(done, arm, day) if row["last"]] for day in NIGHTS]
        assert [len(end) for end in ends] == [1, 1], arm
        assert ends[1][0]["flops"] == result.flops and ends[1][0]["seconds"] == pytest.approx(result.seconds)
        if arm == "production_frozen":
            assert result.flops == 0
        else:
            spent = [row["flops"] for day in NIGHTS for row in curve(done, arm, day)]
            assert spent == sorted(spent) and 0 < ends[0][0]["flops"] < ends[1][0]["flops"]
    reference = curve(done, "scratch_all")[-1]["flops"]
    assert all(math.isclose(r.level.share, r.level.flops / reference) for r in results(done).values())


def test_a_teacher_has_to_be_paid_for(done):
    """Same rows, same shape: what distilling adds is production's forward pass, below a third of a training step of its shape."""
    plain, taught = (curve(done, arm)[-1]["flops"] for arm in ("last_1", "distilled"))
    assert plain < taught < plain * 4 / 3
    transfer = json.loads((done[0] / "distilled-seed0" / NIGHTS[0] / "transfer.json").read_text())
    assert transfer["distilled"]


def test_the_same_command_goes_on_from_what_is_there(done, simulated, capsys):
    capsys.readouterr()
    again = backtest(configure_backtest(*overrides(simulated, done[0].parent)))
    lines = capsys.readouterr().out.splitlines()
    assert again == done[1]
    assert all(line.endswith("(kept)") for line in lines if line.startswith(("train", "judge")))


@pytest.mark.parametrize("many", [("nights=5",), ("nights=2", "behind=3")], ids="+".join)
def test_too_few_days_are_refused(simulated, tmp_path, many):
    with pytest.raises(DataError, match="too few days"):
        backtest(configure_backtest(*overrides(simulated, tmp_path, *many)))
