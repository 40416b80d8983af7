"""Directions: nothing may look better or worse than was shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.report.artefacts import read_artefacts
from trainer.report.comparison import (
    BETTER,
    EVEN,
    METRICS,
    UNKNOWN,
    WORSE,
    Reference,
    _apart,
    compare,
    direction_of,
    measured,
    paired_difference,
)
from trainer.report.scores import ActionScores, read_scores
from trainer.schema.verdict import Check

METRIC = {metric.name: metric for metric in METRICS}


def check(estimate: float, low: float | None, high: float | None) -> Check:
    return Check(name="auc", family="ranking", estimate=estimate, low=low, high=high, outcome="pass", sentence="")


def cells(folder: Path, action: str, metric: str) -> dict[str, Reference]:
    table = compare(read_artefacts(folder), [])
    assert table is not None
    [part] = [part for part in table.actions if part.action == action]
    [row] = [row for row in part.rows if row.metric.name == metric]
    return dict(zip([model for model, _ in table.references], row.references, strict=True))


@pytest.mark.parametrize(
    ("low", "high", "direction"), [(0.1, 0.2, WORSE), (-0.2, -0.1, BETTER), (-0.1, 0.1, EVEN), (0.0, 0.0, EVEN), (None, 1.0, UNKNOWN)]
)
def test_direction_is_shown_only_where_the_interval_of_the_harm_excludes_zero(
    low: float | None, high: float | None, direction: str
) -> None:
    assert direction_of(check(0.0, low, high)) == direction


def test_difference_is_challenger_minus_reference() -> None:
    harm = check(0.01, 0.004, 0.016)  # production's AUC is higher
    assert paired_difference(harm, better=1, relative=False) == ("−0.0100", "[−0.0160, −0.0040]")
    harm = check(np.log(1.02), np.log(1.01), np.log(1.03))  # the challenger's NE is 2 % higher
    assert paired_difference(harm, better=-1, relative=True) == ("+2.00\u00a0%", "[+1.00\u00a0%, +3.00\u00a0%]")


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "direction"),
    [
        ("auc", [0.75, 0.76], [0.70, 0.74], BETTER),
        ("auc", [0.70, 0.74], [0.75, 0.76], WORSE),
        ("auc", [0.70, 0.75], [0.74, 0.76], EVEN),
        ("ne", [0.80, 0.82], [0.83, 0.85], BETTER),
        ("ne", [0.83, 0.85], [0.80, 0.82], WORSE),
        ("ratio", [0.98, 1.02], [1.10, 1.20], BETTER),
        ("ratio", [0.80, 0.85], [1.01, 1.05], WORSE),
        ("ratio", [0.90, 0.95], [1.06, 1.10], EVEN),  # as far below 1 as the other is above
        ("auc", None, [0.7, 0.8], UNKNOWN),
    ],
)
def test_separate_intervals_must_lie_apart(metric: str, ours: list[float], theirs: list[float], direction: str) -> None:
    assert _apart(METRIC[metric], ours, theirs) == direction


def test_reject_shows_harm_and_promote_benefit_by_paired_intervals(runs: dict[str, Path]) -> None:
    worse, better = (cells(runs[kind], "is_click", "ne")["production"] for kind in ("reject", "promote"))
    assert (worse.direction, worse.paired, worse.spread != "") == (WORSE, True, True)
    assert (better.direction, better.paired) == (BETTER, True)
    assert worse.difference.startswith("+") and better.difference.startswith("−")


def test_unpaired_comparisons_are_marked_as_such(runs: dict[str, Path]) -> None:
    against = cells(runs["promote"], "is_click", "auc")
    assert against["production"].paired and against["counting"].paired and not against["lightgbm"].paired
    assert not any(cell.paired for cell in cells(runs["train"], "is_click", "auc").values())


def test_ungated_actions_stand_apart(runs: dict[str, Path]) -> None:
    table = compare(read_artefacts(runs["promote"]), [])
    assert table is not None
    assert [part.action for part in table.actions] == ["is_click", "long_view"] and [part.action for part in table.left_out] == ["watch_s"]


def test_measuring_the_predictions_agrees_with_evaluate(runs: dict[str, Path]) -> None:
    found = measured(read_scores(runs["promote"] / "predictions.parquet"))
    wanted = json.loads((runs["promote"] / "eval.json").read_text())
    for model in ("challenger", "production", "counting", "lightgbm"):
        for action in ("is_click", "long_view"):
            for metric in ("auc", "gauc", "ne", "ratio"):
                assert found[model][action][metric] == pytest.approx(wanted[model][action][metric])


def test_a_score_that_is_null_is_left_out_of_the_measurement() -> None:
    score_N = np.array([0.2, np.nan, 0.7, 0.4])
    action = ActionScores("click", "binary", np.array([0.0, 1.0, 1.0, 0.0]), np.arange(4), np.ones(4), {"challenger": score_N})
    assert measured([action])["challenger"]["click"]["n"] == 3


def test_an_action_that_production_does_not_score_has_an_empty_cell(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["train"], tmp_path / "run")
    report = json.loads((copy / "eval.json").read_text())
    del report["production"]["long_view"]
    (copy / "eval.json").write_text(json.dumps(report))
    cell = cells(copy, "long_view", "auc")["production"]
    assert (cell.value, cell.direction) == ("–", UNKNOWN)
