"""Training curves and the steps behind them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.report.artefacts import STEPS, Artefacts, read_artefacts
from trainer.report.training import MOST_POINTS, binned, smoothed, training
from trainer.schema.plain import as_plain
from trainer.schema.summary import Summary


def run_with(folder: Path, entries: list[dict]) -> Artefacts:
    (folder / STEPS).parent.mkdir(parents=True)
    (folder / STEPS).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "summary.json").write_text(json.dumps(as_plain(Summary(verdict=None, as_of="2022-05-04", status="done"))))
    return read_artefacts(folder)


def entry(step: int, loss: float, skipped: bool = False) -> dict:
    return {"step": step, "loss": loss, "lr": 1.0, "grad_norm": 0.5, "skipped": skipped}


def test_steps_done_again_after_a_stop_count_once(tmp_path: Path) -> None:
    run = run_with(tmp_path, [entry(0, 1.0), entry(1, 9.0), entry(2, 9.0), entry(1, 0.8), entry(2, 0.6)])
    assert [(line["step"], line["loss"]) for line in run.steps] == [(0, 1.0), (1, 0.8), (2, 0.6)]


def test_skipped_steps_are_marked_and_do_not_bend_the_curve(tmp_path: Path) -> None:
    run = run_with(tmp_path, [entry(i, float("nan") if i in (5, 6) else 1.0, i in (5, 6)) for i in range(20)])
    found = training(run)
    assert found is not None and "2 skipped as not finite; smoothed loss from 1.0000 to 1.0000" in found.sentence
    assert found.panels[0].count("v-9") == 2 and "nan" not in "".join(found.panels)


def test_a_run_of_nothing_but_skipped_steps_says_so(tmp_path: Path) -> None:
    found = training(run_with(tmp_path, [entry(i, float("nan"), True) for i in range(3)]))
    assert found is not None and "all skipped" in found.sentence and not found.panels


def test_smoothing_is_unbiased_at_the_start_and_passes_over_gaps() -> None:
    np.testing.assert_allclose(smoothed(np.full(100, 3.0)), 3.0)
    with_gap = smoothed(np.array([2.0, np.nan, 2.0]))
    np.testing.assert_allclose(with_gap, 2.0)


def test_bins_keep_spikes() -> None:
    y_N = np.zeros(10_000)
    y_N[4_321] = 7.0
    x_B, mean_B, low_B, high_B = binned(np.arange(10_000.0), y_N)
    assert len(x_B) == MOST_POINTS and high_B.max() == 7.0 and low_B.max() == 0.0 and mean_B.max() < 1.0


@pytest.mark.parametrize("steps", [1, 2])
def test_a_very_short_run_can_be_drawn(steps: int, tmp_path: Path) -> None:
    found = training(run_with(tmp_path, [entry(i, 0.7) for i in range(steps)]))
    assert found is not None and len(found.panels) == 2 and "nan" not in "".join(found.panels)


def test_a_short_run_is_told_from_its_beginning(tmp_path: Path) -> None:
    found = training(run_with(tmp_path, [entry(i, 2.0 - 0.2 * i) for i in range(6)]))
    assert found is not None and "smoothed loss from 1." in found.sentence
    begin, end = found.sentence.split("smoothed loss from ")[1].split(";")[0].split(" to ")
    assert float(begin) > float(end) + 0.3
