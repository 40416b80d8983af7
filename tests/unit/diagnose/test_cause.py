"""The table of causes: production as the control."""

import json

import pytest

from trainer.diagnose import diagnose
from trainer.diagnose.cause import CAUSES, most_likely
from trainer.diagnose.signals import BETTER, SAME, UNKNOWN, WORSE, Signals, findings, read_signals
from trainer.errors import DataError
from trainer.schema.plain import as_plain
from trainer.schema.verdict import Check, Verdict


def _signals(**changes):
    known = {
        "production_on_fresh": SAME, "challenger_on_fresh": SAME, "challenger_on_golden": SAME, "scale": False, "skew": False,
        "corrupt": (), "unsound": False,
    }  # fmt: skip
    return Signals(**{**known, **changes})


@pytest.mark.parametrize(
    ("control", "fresh", "golden", "other", "cause"),
    [
        (SAME, WORSE, WORSE, {}, "training fault"),
        (SAME, WORSE, UNKNOWN, {}, "training fault"),
        (SAME, BETTER, WORSE, {}, "forgetting"),
        (SAME, WORSE, SAME, {}, "fresh days not fitted"),
        (WORSE, SAME, SAME, {}, "labels or world"),
        (WORSE, SAME, SAME, {"scale": True}, "labels or world"),
        (WORSE, WORSE, SAME, {}, "fresh data corrupt"),
        (SAME, WORSE, SAME, {"corrupt": ("2026-03-05",)}, "fresh data corrupt"),
        (WORSE, WORSE, WORSE, {"skew": True}, "feature skew"),
        (SAME, SAME, SAME, {"scale": True}, "scale"),
        (SAME, SAME, SAME, {"scale": True, "unfit": True}, "scale, and too few rows to mend it"),
        (SAME, SAME, SAME, {"unsound": True}, "unsound scores"),
    ],
)
def test_each_row_of_the_table(control, fresh, golden, other, cause):
    signals = _signals(production_on_fresh=control, challenger_on_fresh=fresh, challenger_on_golden=golden, **other)
    assert most_likely(signals, "REJECT", first=False).name == cause


def test_no_failure_is_no_cause_and_want_of_rows_is_one():
    assert most_likely(_signals(), "PROMOTE", first=False).name == "nothing"
    assert most_likely(_signals(), "HOLD", first=False).name == "too little data"
    assert most_likely(_signals(production_on_fresh=UNKNOWN), "HOLD", first=True).name == "no production"


def _check(name, family, outcome, **changes):
    return Check(name=name, family=family, action="click", outcome=outcome, sentence=f"{name} {outcome}", **changes)


def test_signals_are_read_from_the_checks():
    checks = [
        _check("label_sanity", "data", "pass"), _check("auc", "ranking", "pass", high=-0.001), _check("ne", "loss", "fail"),
        _check("share_top_1%", "scores", "fail"), _check("suite_turkey", "suite", "fail"), _check("rescoring", "data", "hold"),
    ]  # fmt: skip
    scan = {"days": {"2026-03-05": {"status": "masked"}, "2026-03-04": {"status": "refused"}}}
    found = read_signals(checks, scan, ["2026-03-05"])
    assert found == Signals(SAME, BETTER, WORSE, True, True, ("2026-03-05",), False)


def test_a_loss_that_rose_while_the_scale_stood_is_worse():
    assert read_signals([_check("auc", "ranking", "pass"), _check("ne", "loss", "fail")], {}, []).challenger_on_fresh == WORSE
    assert read_signals([_check("auc", "ranking", "fail"), _check("share", "scores", "fail")], {}, []).challenger_on_fresh == WORSE


def _run(tmp_path, checks, verdict, **summary):
    failed = [check.path for check in checks if check.outcome == "fail"]
    written = Verdict(verdict=verdict, reason="because", policy="refresh", checks=checks, failed=failed)
    (tmp_path / "verdict.json").write_text(json.dumps(as_plain(written)))
    if summary:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_one_paragraph_says_verdict_cause_evidence_and_next_command(tmp_path):
    held = _check("label_sanity", "data", "hold")
    changes = {"config": {"optimizer.lr": [0.1, 0.2]}, "labels": {"click": ["a", "b"]}, "value": {}, "days_repaired": []}
    found = diagnose(_run(tmp_path, [held], "HOLD", changes=changes, data={"holdout": ["2026-03-05"]}))
    assert found.cause == "labels or world"
    for words in ("HOLD. ", "labels or world", "label_sanity hold", "label expressions changed", "Next: python scripts/scan.py"):
        assert words in found.paragraph
    assert found.changes == {"config": changes["config"], "labels": changes["labels"]}
    assert json.loads((tmp_path / "diagnosis.json").read_text())["paragraph"] == found.paragraph


def test_a_folder_without_a_verdict_is_refused(tmp_path):
    with pytest.raises(DataError, match="no verdict to explain"):
        diagnose(tmp_path)
    _run(tmp_path, [], "PROMOTE")
    (tmp_path / "scan.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        diagnose(tmp_path)


def test_every_cause_says_what_to_do():
    assert all(cause.meaning.endswith(".") and cause.remedy.endswith((".", "promote.")) for cause in CAUSES.values())


def test_churn_is_no_matter_of_scale():
    """Other rows above the same thresholds: a promoted run with that warning must not be sent to the map."""

    def told(name):
        check = Check(name=name, family="scores", action="click", outcome="fail", severity="warn", sentence="moved")
        signals = read_signals([check], {}, [])
        return most_likely(signals, "PROMOTE", first=False).name, [finding.supports for finding in findings([check], signals)]

    assert told("churn_top_1%") == ("nothing", [False])
    assert told("share_top_1%") == ("scale", [False])  # a warning is no evidence of what decided
