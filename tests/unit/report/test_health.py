"""The health map: levels, rows, roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.report.artefacts import Artefacts, read_artefacts
from trainer.report.health import MOST_DAYS, Health, health, status_line
from trainer.schema.heat import HEAVY, MASKED, NOTED, OK, REFUSED, WHOLE
from trainer.schema.summary import Summary
from trainer.schema.time import add_days


def fault(kind: str, feature: str | None, rows: int) -> dict[str, Any]:
    return {"kind": kind, "feature": feature, "file": "part-0.parquet", "rows": rows, "evidence": "seen"}


def day(status: str, *faults: dict[str, Any], masked: tuple[str, ...] = ()) -> dict[str, Any]:
    rows = {"rows": 1_000, "used": 900, "dropped": 60, "duplicates": 40, "late": 7}
    return {"status": status, "faults": list(faults), "masked_columns": list(masked), "rows": rows}


def of(
    days: dict[str, Any], data: dict[str, Any] | None = None, features: list[str] | None = None, notices: list[dict[str, Any]] | None = None
) -> Health:
    run = Artefacts(
        run_dir=Path(), summary=Summary(verdict=None, as_of="2022-05-04", status="done", data=data or {}),
        scan={"days": days, "notices": notices or []},
        config={"data": {"features": {name: {} for name in features or []}}},
    )  # fmt: skip
    found = health(run)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "found", "level"),
    [
        ("ok", fault("duplicate_rows", None, 900), NOTED),
        ("ok", fault("late_rows", None, 900), NOTED),
        ("masked", fault("schema_drift", None, 0), NOTED),
        ("masked", fault("non_finite", "tab", 50), MASKED),
        ("masked", fault("non_finite", "tab", 51), HEAVY),
        ("refused", fault("truncated_file", None, 10), REFUSED),
    ],
)
def test_levels(status: str, found: dict[str, Any], level: str) -> None:
    [(_, [cell])] = of({"2022-05-01": day(status, found)}).features
    assert cell.level == level and "seen" in cell.words


def test_the_worst_fault_of_a_cell_decides_and_all_are_told() -> None:
    [(name, [cell])] = of({"2022-05-01": day("masked", fault("late_rows", "tab", 1), fault("out_of_range", "tab", 100))}).features
    assert (name, cell.level) == ("tab", HEAVY) and "late_rows" in cell.words and "out_of_range" in cell.words


def test_a_column_masked_for_a_day_is_on_the_map_without_a_fault() -> None:
    found = of({"2022-05-01": day("masked", masked=("hour",)), "2022-05-02": day("ok")})
    assert [(name, [cell.level for cell in cells]) for name, cells in found.features] == [("hour", [HEAVY, OK])]


def test_a_notice_is_told_and_accuses_nobody() -> None:
    notice = {"day": "2022-05-02", "kind": "missing_hours", "what": "no rows in hours 6, 7", "evidence": "4 days of history"}
    found = of({"2022-05-01": day("ok"), "2022-05-02": day("ok", fault("late_rows", None, 1))}, notices=[notice])
    assert found.notices == ["2022-05-02: missing_hours: no rows in hours 6, 7 (4 days of history)"] and found.sentence.endswith("2 ok.")
    [(name, [before, cell])] = found.features
    assert (name, before.level, cell.level) == (WHOLE, OK, NOTED) and "late_rows" in cell.words and "hours 6, 7" in cell.words


def test_whole_days_come_first_then_the_columns_hit_most() -> None:
    days = {
        "2022-05-01": day("masked", fault("late_rows", None, 1), fault("non_finite", "a", 9)),
        "2022-05-02": day("masked", fault("non_finite", "b", 9)), "2022-05-03": day("masked", fault("non_finite", "b", 9)),
    }  # fmt: skip
    assert [name for name, _ in of(days).features] == [WHOLE, "b", "a"]


def test_rows_add_up_and_roles_follow_the_plan() -> None:
    days = {"2022-05-01": day("ok"), "2022-05-02": day("ok")}
    found = of(days, {"holdout": ["2022-05-02"], "train": ["2022-05-01"], "read": 5}, ["tab", "hour"])
    assert found.totals[:3] == [("read", "2,000"), ("used", "1,800"), ("set aside", "120")]
    assert [one.role for one in found.days] == ["trained on", "judged"]
    assert found.months == [("2022-05", 2)] and found.healthy == "2\u00a0other declared features: nothing found."


def test_years_of_days_are_cut_to_the_last_quarter() -> None:
    found = of({add_days("2020-01-01", index): day("ok") for index in range(400)})
    assert len(found.days) == MOST_DAYS and found.days[-1].day == "2021-02-03" and sum(days for _, days in found.months) == MOST_DAYS
    assert "308\u00a0earlier days" in found.left_out and found.sentence.startswith("400\u00a0days scanned, 2020-01-01 to 2021-02-03")
    assert found.totals[0] == ("read", "400,000")


def test_first_screen_tells_what_was_lost(runs: dict[str, Path]) -> None:
    well, sentence = status_line(read_artefacts(runs["promote"]))
    assert not well and "1 refused" in sentence and "rows set aside" in sentence
