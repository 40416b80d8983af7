"""The diagnosis on the page."""

import json
import shutil
from pathlib import Path

from trainer.report import render
from trainer.schema.diagnosis import Diagnosis, Finding
from trainer.schema.plain import as_plain

DIAGNOSIS = Diagnosis(
    verdict="REJECT", cause="training fault", paragraph="Production stands as recorded, the challenger <b>does not</b>.",
    next_command="python scripts/retrain.py optimizer.lr=1e-4",
    signals={"production_on_fresh": "same", "challenger_on_fresh": "worse"},
    findings=[Finding(topic="training", sentence="7 steps were skipped", supports=True), Finding(topic="data", sentence="no fault")],
    cohorts={"2022-05-03": {"is_click": {"rate": 0.0712, "n": 1200}}},
    drift=[{"feature": "author_rate", "nulls_before": 0.01, "nulls_after": 0.4, "shift": 0.73}],
    ablation=[{"feature": "tab", "action": "is_click", "production": 0.012, "challenger": None}],
    slices=[{"slice": f"country={n}", "action": "is_click", "n": 100 + n, "harm": 0.05, "low": 0.01, "p": 0.001, "confirmed": n == 0}
            for n in range(20)],
)  # fmt: skip


def section(html: str) -> str:
    return html.split('<section id="diagnosis">')[1].split("</section>")[0]


def copied(run: Path, to: Path, text: str | None) -> str:
    shutil.copytree(run, to)
    if text is not None:
        (to / "diagnosis.json").write_text(text)
    return section(render(to).read_text())


def test_cause_evidence_and_tables_are_shown(runs: dict[str, Path], tmp_path: Path) -> None:
    html = copied(runs["promote"], tmp_path / "run", json.dumps(as_plain(DIAGNOSIS)))
    for words in (
        "training fault", "&lt;b&gt;does not&lt;/b&gt;", "optimizer.lr=1e-4", "7 steps were skipped", "production on fresh", "country=0",
        "author_rate", "40.0\u00a0%", "+1.20\u00a0%", "7.12\u00a0%", "8 more in diagnosis.json",
    ):  # fmt: skip
        assert words in html, words


def test_an_absent_or_damaged_diagnosis_is_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "No diagnosis was made" in copied(runs["promote"], tmp_path / "absent", None)
    assert "cannot be read" in copied(runs["promote"], tmp_path / "damaged", '{"cause": 3, "unknown": 1}')
