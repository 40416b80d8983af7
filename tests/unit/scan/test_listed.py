"""Lists and vectors under the scan: what is wrong with their values, lengths and identities is told once, by the column's name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from tests.unit.scan.conftest import DAYS, LAST, events, found, only, scan_run, specification, with_column, write
from trainer.config import ScanConfig
from trainer.errors import ConfigError, DataError
from trainer.logs.deliver import delivered
from trainer.scan import check_budget
from trainer.schema.logs import ColumnSpec, LayoutSpec

RNG = np.random.default_rng(3)
WIDTH = 4
FEATURES = {"country": ColumnSpec(), "age": ColumnSpec(kind="numeric"), "tags": ColumnSpec(kind="list", width=3),
            "content": ColumnSpec(kind="vector", width=WIDTH)}  # fmt: skip


def tags_of(item):
    """One to four of sixty tags, of which each item always has the same ones."""
    return [[f"t{(one * 7 + k * k) % 60}" for k in range(1 + one % 4)] for one in item.tolist()]


def content_of(item):
    return [np.sin(one * np.arange(1, WIDTH + 1)).round(6).tolist() for one in item.tolist()]


def listed(table: pa.Table) -> pa.Table:
    item = table["item"].to_numpy()
    return table.append_column("tags", pa.array(tags_of(item))).append_column("content", pa.array(content_of(item)))


@pytest.fixture
def judged(judge):
    def run(change=None, day=LAST, **changes):
        edits = dict.fromkeys(DAYS, listed)
        if change is not None:
            edits[day] = lambda table: change(listed(table))
        edits = {day: lambda table, edit=edit, day=day: edit(events(day)) for day, edit in edits.items()}  # judged twice, spoiled once
        return judge(edits, **{"features": FEATURES, **changes})

    return run


def cells(name, change):
    return lambda table: with_column(table, name, change(table[name].to_pylist()))


def some(share, value):
    return lambda rows: [value if RNG.random() < share else row for row in rows]


def test_clean_lists_and_vectors_are_left_alone_but_overflow_is_counted(judged):
    health = judged()
    for day, state in health.days.items():
        assert state.status == "ok", state.faults
        assert found(health, day) == {("list_overflow", "tags")} and not state.notices
        fault = next(fault for fault in state.faults if fault.kind == "list_overflow")
        assert fault.action == "count" and "more than 3 distinct values, up to 4" in fault.evidence
    assert health.types["tags"] == "text[]" and health.types["content"] == f"real[{WIDTH}]"


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("zero_filled", "content", lambda rows: [[0.0] * WIDTH for _ in rows]),
        ("zero_filled", "content", some(0.4, [0.0] * WIDTH)),
        ("constant", "content", lambda rows: [[0.1, 0.2, 0.3, 0.4] for _ in rows]),
        ("unit_change", "content", lambda rows: [[10 * x for x in row] for row in rows]),
        ("resalted_ids", "content", lambda rows: [row[::-1] for row in rows]),
        ("resalted_ids", "content", lambda rows: [[1.01 * row[0], *row[1:]] for row in rows]),
        ("shuffled_column", "content", lambda rows: [rows[i] for i in RNG.permutation(len(rows))]),
        ("null_spike", "content", some(0.5, None)),
        ("resalted_ids", "tags", lambda rows: [[tag + "x" for tag in row] for row in rows]),
        ("zero_filled", "tags", lambda rows: [[] for _ in rows]),
        ("null_spike", "tags", some(0.5, None)),
        ("shuffled_column", "tags", lambda rows: [rows[i] for i in RNG.permutation(len(rows))]),
    ],
)  # fmt: skip
def test_what_lies_is_told_once_and_masked_for_its_day(judged, kind, name, change):
    health = judged(cells(name, change), features={**FEATURES, "tags": ColumnSpec(kind="list", width=4)})
    only(health, kind, name)
    assert health.days[LAST].masked_columns == ([] if kind == "null_spike" else [name])


def read(root, health, name):
    state = health.days[LAST]
    return pa.concat_tables([delivered(specification(root, features=FEATURES), f, state, health.types) for f in state.files])[
        name
    ].to_pylist()


def test_sentinels_leave_their_lists_and_null_their_vectors(judged, root):
    before = listed(events(LAST))
    health = judged(cells("tags", lambda rows: [[*row, "-1"] if place % 6 < 1 else row for place, row in enumerate(rows)]))
    assert ("sentinel_spike", "tags") in found(health) and not health.days[LAST].masked_columns
    assert read(root, health, "tags") == before["tags"].to_pylist(), "what is right in a list stays"
    health = judged(cells("content", lambda rows: [[-1.0] * WIDTH if place % 20 < 3 else row for place, row in enumerate(rows)]))
    assert ("sentinel_spike", "content") in found(health) and not health.days[LAST].masked_columns
    content = read(root, health, "content")
    assert [row is None for row in content] == [place % 20 < 3 for place in range(len(content))]
    fault = next(f for f in health.days[LAST].faults if (f.kind, f.feature) == ("sentinel_spike", "content"))
    assert fault.rows == 0.15 * len(content) and fault.action == "mask"


def test_what_was_found_once_is_found_again_the_next_day(judge):
    def salted(day):
        return lambda table: cells("tags", lambda rows: [[tag + "x" for tag in row] for row in rows])(listed(events(day)))

    health = judge({**dict.fromkeys(DAYS, listed), DAYS[-2]: salted(DAYS[-2]), LAST: salted(LAST)}, features=FEATURES)
    assert ("resalted_ids", "tags") in found(health, DAYS[-2]) & found(health, LAST), "what is accused does not become usual"


def test_lists_may_grow_without_being_accused(judged):
    health = judged(cells("tags", lambda rows: [["t1", "t2", "t3", "t4", "t5"] if RNG.random() < 0.3 else row for row in rows]))
    assert ("sentinel_spike", "tags") not in found(health) and not health.days[LAST].masked_columns
    assert any("lengths" in notice.what for notice in health.days[LAST].notices)


@pytest.mark.parametrize(
    "bad", [[0.5] * (WIDTH - 1), [0.5] * (WIDTH + 1), [0.5] * (WIDTH - 1) + [None], [0.5] * (WIDTH - 1) + [np.nan], [np.nan] * WIDTH]
)
def test_some_damaged_vectors_are_masked_cell_by_cell_and_no_row_is_lost(judged, root, bad):
    def spoil(table):
        rows = table["content"].to_pylist()
        return with_column(table, "content", [bad if place < 30 else row for place, row in enumerate(rows)])

    health = judged(spoil)
    state = health.days[LAST]
    kind = "non_finite" if bad[-1] is not None and np.isnan(bad[-1]) else "list_damage"
    assert (kind, "content") in found(health) and state.dropped == 0 and state.masked_columns == []
    fault = next(fault for fault in state.faults if fault.kind == kind)
    assert fault.rows == 30 and fault.action == "mask"
    rows = read(root, health, "content")
    assert all(row is None or len(row) == WIDTH for row in rows)


@pytest.mark.parametrize("days", [1, 2, len(DAYS)])
@pytest.mark.parametrize(
    ("spec", "says"),
    [(ColumnSpec(kind="vector", width=7), "vectors of 7 numbers"), (ColumnSpec(kind="list", expression="country"), "JSON array")],
)
def test_a_column_of_which_nothing_fits_is_one_error_of_configuration_even_on_a_young_log(judged, root, inline, days, spec, says):
    features = {**{name: one for name, one in FEATURES.items() if name != "country"}, "content": spec}
    for day in DAYS[:days]:
        write(root, day, listed(events(day, rows=300)))
    with pytest.raises(ConfigError, match="is on no day what its role says") as error:
        scan_run.scan(specification(root, features=features), DAYS[:days], ScanConfig())
    assert says in str(error.value.got) and "width" in str(error.value.remedy)


def test_json_text_is_a_list_and_files_of_both_kinds_mix(judged):
    def as_json(table):
        quoted = ["[" + ", ".join(f'"{tag}"' for tag in row) + "]" for row in table["tags"].to_pylist()]
        return with_column(with_column(table, "tags", quoted), "content", [str(row) for row in table["content"].to_pylist()])

    health = judged(as_json)
    assert found(health) == {("list_overflow", "tags")}, health.days[LAST].faults


def test_a_csv_log_has_lists_as_json(tmp_path, inline):
    for day in DAYS[:2]:
        table = listed(events(day, rows=300))
        text = pa.array(["[" + ", ".join(f'"{tag}"' for tag in row) + "]" for row in table["tags"].to_pylist()])
        table = with_column(
            with_column(table, "tags", text), "content", [str(row) if row[0] > 0 else "0.1;0.2" for row in table["content"].to_pylist()]
        )
        (tmp_path / f"dt={day}").mkdir()
        pyarrow.csv.write_csv(table, tmp_path / f"dt={day}" / "part-0.csv")
    spec = specification(tmp_path, features=FEATURES, layout=LayoutSpec(format="csv"))
    health = scan_run.scan(spec, DAYS[:2], ScanConfig(max_masked_cells_share=1.0))
    fault = next(fault for fault in health.days[DAYS[0]].faults if fault.kind == "list_damage")
    assert fault.feature == "content" and 100 < fault.rows < 200 and fault.evidence.endswith("JSON array, the first one 0.1;0.2")
    state = health.days[DAYS[0]]
    rows = delivered(spec, state.files[0], state, health.types)
    expected = listed(events(DAYS[0], rows=300))
    assert rows["tags"].to_pylist() == expected["tags"].to_pylist()
    assert rows["content"].to_pylist() == [row if row[0] > 0 else None for row in expected["content"].to_pylist()]


def test_damage_to_a_required_vector_refuses_its_day(judged):
    required = {**FEATURES, "content": ColumnSpec(kind="vector", width=WIDTH, criticality="required")}
    health = judged(cells("content", lambda rows: [[0.0] * WIDTH for _ in rows]), features=required)
    assert health.days[LAST].status == "refused"
    with pytest.raises(DataError):
        check_budget(health, ScanConfig(max_refused_days=0))
