"""What decodes and lies: found by history, siblings and rankings; and what only looks like it is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.scan.conftest import DAYS, LAST, ROWS, events, found, only, scan_run, specification, with_column, write
from trainer.config import ScanConfig
from trainer.config.inputs import ReleaseRule, RepairRule
from trainer.errors import ConfigError, DataError
from trainer.logs import treat
from trainer.logs.deliver import delivered
from trainer.rebuild.plan import content_hash
from trainer.scan import check_budget
from trainer.scan.history import History, share_noise, share_scale
from trainer.schema.health import CellRule
from trainer.schema.logs import ActionSpec, ColumnSpec
from trainer.schema.time import add_days, days_between, parse_day

RNG = np.random.default_rng(0)


def column(name, change):
    return lambda table: with_column(table, name, change(table[name].to_numpy()))


def read(root, health, day=LAST, **changes):
    spec = specification(root, **changes)
    state = health.days[day]
    return pa.concat_tables([delivered(spec, file, state, health.types) for file in state.files if not file.quarantined])


def test_clean_days_are_left_alone(judge):
    health = judge()
    assert all(state.status == "ok" and not found(health, day) for day, state in health.days.items())


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("zero_filled", "price", lambda x: 0 * x),
        ("zero_filled", "age", lambda x: np.where(RNG.random(len(x)) < 0.4, 0, x)),
        ("constant", "length", lambda x: 0 * x + 30.0),
        ("constant", "country", lambda x: np.full(len(x), "CN")),
        ("unit_change", "price", lambda x: 1000 * x),
        ("unit_change", "length", lambda x: x / 60),
        ("shuffled_column", "length", RNG.permutation),
        ("shuffled_column", "country", RNG.permutation),
        ("shuffled_column", "age", RNG.permutation),
        ("null_spike", "age", lambda x: pa.array(x, mask=RNG.random(len(x)) < 0.5)),
    ],
)
def test_a_lying_feature_is_masked_for_its_day_and_nothing_else_is(judge, root, kind, name, change):
    health = judge({LAST: column(name, change)})
    fault, state = only(health, kind, name), health.days[LAST]
    told = kind == "null_spike"  # nulls are masked as they are
    assert (state.status, state.masked_columns, state.used) == ("ok" if told else "masked", [] if told else [name], ROWS)
    assert fault.action == ("count" if told else "mask")
    if not told:
        rows = read(root, health)
        assert rows[name].null_count == len(rows) and rows["user"].null_count == 0


def test_a_sentinel_costs_its_own_cells(judge, root):
    hit = RNG.random(ROWS) < 0.1
    health = judge({LAST: column("price", lambda x: np.where(hit, -1.0, x))})
    fault = only(health, "sentinel_spike", "price")
    rows = read(root, health)
    assert fault.rows == hit.sum() == rows["price"].null_count and not health.days[LAST].masked_columns


@pytest.mark.parametrize("value", [-999.123456789123, -0.1, float(np.float32(-0.1))])
def test_a_sentinel_is_found_again_to_its_last_digit(judge, root, value):
    hit = RNG.random(ROWS) < 0.1
    health = judge({LAST: column("price", lambda x: np.where(hit, value, x))})
    assert only(health, "sentinel_spike", "price").rows == hit.sum() == read(root, health)["price"].null_count


def test_a_hit_item_in_another_unit_is_no_sentinel(judge):
    """A quarter of the rows have one price, which the change of unit makes a frequent value that no day had."""
    hit = {day: np.random.default_rng([3, *map(ord, day)]).random(ROWS) < 0.26 for day in DAYS}
    days = {day: column("price", lambda x, day=day: np.where(hit[day], 30.2254054123, x)) for day in DAYS}
    assert not any(found(judge(days), day) for day in DAYS)
    health = judge({LAST: column("price", lambda x: 1000 * x)})
    assert only(health, "unit_change", "price") and health.days[LAST].masked_columns == ["price"]


def a_hit(share=0.12, item=999, whole=1.0, **values):
    """An item of the day in so many of the rows, and what its features are in so many of these."""
    hit = np.random.default_rng(8).random(ROWS) < share
    there = hit & (np.random.default_rng(9).random(ROWS) < whole)

    def change(table):
        table = with_column(table, "item", np.where(hit, item, table["item"].to_numpy()))
        for name, value in values.items():
            table = with_column(table, name, np.where(there, value, table[name].to_numpy()))
        return table

    return change


def test_a_new_hit_brings_its_own_values_and_none_of_them_is_a_sentinel(judge, root):
    health = judge({LAST: a_hit(length=777.0, price=123.25)})
    assert not found(health) and health.days[LAST].status == "ok" and not health.days[LAST].rules
    assert read(root, health)["length"].to_pylist().count(777.0) > 0.1 * ROWS


def test_a_new_hit_hides_no_sentinel(judge, root):
    """Beside a hit with a price of its own, a tenth of the other rows lost theirs."""
    lost = RNG.random(ROWS) < 0.1
    hit = a_hit(length=777.0, price=123.25)
    health = judge({LAST: lambda table: column("price", lambda x: np.where(lost, 555.5, x))(hit(table))})
    assert only(health, "sentinel_spike", "price").rows == lost.sum() == read(root, health)["price"].null_count


@pytest.mark.parametrize(
    "change",
    [
        a_hit(item=7, price=123.25),  # an item of every day: it had prices
        a_hit(price=-1.0),  # as new as the item, but no price: its features were not there yet
        a_hit(share=0.2, whole=0.6, price=123.25),  # not the item's: it has others too
        lambda table: a_hit(share=0.06, price=123.25)(column("price", lambda x: np.where(RNG.random(ROWS) < 0.06, 123.25, x))(table)),
    ],
)
def test_what_does_not_belong_to_one_new_item_is_a_sentinel(judge, change):
    usual = {day: a_hit(item=7) for day in DAYS[:-1]}
    assert ("sentinel_spike", "price") in found(judge({**usual, LAST: change}))


def test_two_files_of_a_hit_are_one_hit(judge, root):
    """The first file has a tenth of the hit, the second the rest."""
    table = a_hit(length=777.0)(events(LAST))
    write(root, LAST, table.slice(0, 600))
    write(root, LAST, table.slice(600), "part-1.parquet")
    assert not found(judge())


def test_swapped_columns_are_both_masked(judge):
    def swap(table):
        return with_column(with_column(table, "price", table["age"].to_numpy()), "age", table["price"].to_numpy())

    health = judge({LAST: swap})
    assert found(health) == {("swapped_columns", "age"), ("swapped_columns", "price"), ("too_many_masked_features", None)}
    assert health.days[LAST].masked_columns == ["age", "price"] and health.days[LAST].status == "refused", "two of four features"
    health = judge(config=ScanConfig(max_masked_features_share=0.5))
    assert health.days[LAST].status == "masked"


def test_yesterdays_values_by_user(judge):
    yesterday = events(DAYS[-2])
    had = {}
    for user, value in zip(yesterday["user"].to_pylist(), yesterday["price"].to_pylist(), strict=True):
        had.setdefault(user, []).append(value)

    def stale(table):
        return with_column(table, "price", [RNG.choice(had.get(user, [3.0])) for user in table["user"].to_pylist()])

    only(judge({LAST: stale}), "stale_copy", "price")


def test_copies_of_copies_are_told_every_day_and_the_first_fresh_day_is_not(judge, root):
    """A job that hangs for three days delivers the same values three times over."""
    first = pq.read_table(root / f"dt={DAYS[-5]}" / "part-0.parquet", partitioning=None)
    had = dict(zip(first["user"].to_pylist(), first["price"].to_pylist(), strict=True))

    def stuck(table):
        return with_column(table, "price", [had.get(user, 3.0 + user / 7) for user in table["user"].to_pylist()])

    health = judge(dict.fromkeys(DAYS[-4:-1], stuck))
    told = {day for day in DAYS if found(health, day)}
    assert all(found(health, day) == {("stale_copy", "price")} for day in DAYS[-3:-1]), "what all the users had the day before"
    assert told <= set(DAYS[-4:-1]) and not found(health, LAST)


def test_a_feature_that_knows_the_label_stops_the_run(judge):
    def leak(table):
        return with_column(table, "price", table["click"].to_numpy() + 0.01 * RNG.random(ROWS) + 1)

    health = judge({LAST: leak})
    assert only(health, "label_leak", "price").action == "stop" and health.days[LAST].status == "refused"
    with pytest.raises(DataError, match=r"stops the run[\s\S]*label_leak[\s\S]*scan.actions.label_leak"):
        check_budget(health, ScanConfig())
    let = judge(config=ScanConfig(actions={"label_leak": "mask"}))
    assert let.days[LAST].masked_columns == ["price"]
    check_budget(let, ScanConfig())


@pytest.mark.parametrize("scores", [True, False], ids=["logged", "counting"])
def test_a_flip_at_a_base_rate_of_one_half_is_refused_although_no_mean_moves(root, judge, scores):
    for day in DAYS:
        write(root, day, events(day, base=-0.17))
    before = events(LAST, base=-0.17)["click"].to_numpy().mean()
    health = judge({LAST: column("click", lambda y: (1 - y).astype(np.int8))}, logged_scores={"click": "score"} if scores else {})
    after = pq.read_table(root / f"dt={LAST}", partitioning=None)["click"].to_numpy().mean()
    assert abs(before - after) < 0.03
    fault = only(health, "label_flip", "click")
    assert ("production" if scores else "counting") in fault.evidence and health.days[LAST].status == "refused"
    assert (health.days[LAST].used, health.days[LAST].dropped) == (0, ROWS)


def test_injected_scores_find_what_the_log_cannot_tell(root, inline):
    """No logged scores, and nothing to count: every user and item is new every day. Production itself still knows."""

    def alone(day, flip=False):
        table = events(day, base=-0.17)
        fresh = np.arange(ROWS) + 10_000 * DAYS.index(day)
        table = with_column(with_column(table, "user", fresh), "item", fresh)
        return with_column(table, "click", (1 - table["click"].to_numpy()).astype(np.int8)) if flip else table

    for day in DAYS:
        write(root, day, alone(day, flip=day == LAST))
    spec = specification(root, logged_scores={}, features={"price": ColumnSpec(kind="numeric")})
    scores = {day: alone(day)["score"].to_numpy() for day in DAYS}
    blind = scan_run.scan(spec, DAYS, ScanConfig())
    assert blind.days[LAST].status == "ok"
    health = scan_run.scan(spec, DAYS, ScanConfig(), scorer=lambda day, rows: {"click": scores[day][rows["row"].to_numpy()]})
    assert only(health, "label_flip", "click").action == "refuse_day"
    with pytest.raises(DataError, match="do not fit the rows"):
        scan_run.scan(spec, DAYS, ScanConfig(), scorer=lambda day, rows: {"click": np.zeros(3)})


def test_noise_in_labels_is_refused_and_damaged_scores_are_not(judge, root):
    noisy = judge({LAST: column("click", lambda y: np.where(RNG.random(len(y)) < 0.2, 1 - y, y).astype(np.int8))})
    assert only(noisy, "label_noise", "click").action == "refuse_day"
    write(root, LAST, events(LAST))
    scores = judge({LAST: column("score", lambda s: RNG.permutation(s))})
    assert scores.days[LAST].status != "refused" and not any(kind.startswith("label") for kind, _ in found(scores))
    write(root, LAST, events(LAST))
    worse = judge({LAST: column("score", lambda s: np.where(RNG.random(len(s)) < 0.3, RNG.permutation(s), s))})
    assert not found(worse), "a worse release of production: the counts still rank the labels"


def test_labels_all_zero_and_labels_that_are_not_ripe(judge, root):
    health = judge({LAST: column("click", lambda y: 0 * y)})
    assert only(health, "labels_all_zero", "click").action == "refuse_day"
    write(root, LAST, events(LAST))

    def cut(table):
        late = (table["ts"].to_numpy() // 3_600_000) % 24 >= 16
        return with_column(table, "click", np.where(late, 0, table["click"].to_numpy()).astype(np.int8))

    health = judge({LAST: cut})
    fault, rows = only(health, "unripe_labels", "click"), read(root, health)
    late = (rows["ts"].to_numpy() // 3_600_000) % 24 >= 16
    assert np.array_equal(~np.asarray(rows["click"].is_valid()), late), "exactly the unripe labels are unknown"
    assert fault.rows == late.sum() and health.days[LAST].used == ROWS


def test_a_world_that_moved_is_not_refused_while_production_still_ranks(judge, root):
    def moved(table):
        for name in ("price", "length", "age"):
            table = with_column(table, name, 8 * table[name].to_numpy() + 1)
        return table

    health = judge({LAST: moved})
    state = health.days[LAST]
    assert {kind for kind, _ in found(health)} == {"moved_together"} and (state.status, state.masked_columns, state.used) == (
        "ok",
        [],
        ROWS,
    )
    broken = judge({LAST: column("click", lambda y: (1 - y).astype(np.int8))})
    assert broken.days[LAST].status == "refused" and "moved_together" not in {kind for kind, _ in found(broken)}, (
        "production no longer ranks"
    )


def test_three_emptied_features_are_no_moved_world(judge):
    def emptied(table):
        for name in ("price", "length", "age"):
            table = with_column(table, name, 0 * table[name].to_numpy())
        return table

    health = judge({LAST: emptied})
    assert found(health) == {("too_many_masked_features", None), *(("zero_filled", name) for name in ("price", "length", "age"))}
    assert health.days[LAST].status == "refused"


def test_ids(judge, root):
    salted = judge({LAST: column("user", lambda x: (x * 7919 + 13) % 2900 + 500)})
    assert only(salted, "resalted_ids", "user").action == "count" and salted.days[LAST].used == ROWS, "strangers are no lie"
    write(root, LAST, events(LAST))
    assert only(judge({LAST: column("item", lambda x: 0 * x)}), "id_collapse", "item").action == "refuse_day"
    write(root, LAST, events(LAST))
    foreign = np.arange(ROWS) % 300 == 0
    health = judge({LAST: column("item", lambda x: np.where(foreign, np.where(np.arange(ROWS) % 600 == 0, 2**40 + x, -5), x))})
    fault = only(health, "out_of_range_id", "item")
    assert fault.rows == foreign.sum() == health.days[LAST].dropped and fault.action == "quarantine_row"
    assert len(read(root, health)) == ROWS - foreign.sum()


def test_users_under_one_name_become_strangers_and_their_rows_are_kept(judge, root):
    health = judge({LAST: column("user", lambda x: np.where(np.arange(ROWS) % 10 == 0, x, 0))})
    fault, state, table = only(health, "id_collapse", "user"), health.days[LAST], read(root, health)
    assert (fault.action, fault.rows, state.status, state.used) == ("mask", ROWS - ROWS // 10, "masked", ROWS)
    before, after = events(LAST), table["user"].to_numpy()
    kept = np.arange(ROWS) % 10 == 0
    assert np.array_equal(after[kept], before["user"].to_numpy()[kept]), "the users that are there stay"
    assert (after[~kept] < 0).all() and len(np.unique(after[~kept])) > 0.99 * (~kept).sum(), "nobody meets a stranger twice"
    for name in set(table.column_names) - {"user"}:
        assert table[name].to_pylist() == before[name].to_pylist(), name
    refusing = judge(config=ScanConfig(actions={"id_collapse": "refuse_day"}))
    assert refusing.days[LAST].status == "refused", "whoever wants it otherwise says so"


def test_a_bot_is_left_out_and_not_held_against_the_day(judge, root):
    def bot(table):
        busy = table.slice(0, 400)
        busy = with_column(with_column(busy, "user", np.full(400, 77)), "ts", busy["ts"].to_numpy() + np.arange(400) * 7 + 1)
        return pa.concat_tables([table, busy.cast(table.schema)]).sort_by("ts")

    health = judge({LAST: bot})
    fault, state = only(health, "bot_user", "user"), health.days[LAST]
    mine = 400 + int((events(LAST)["user"].to_numpy() == 77).sum())
    assert (fault.rows, state.dropped, state.used, state.status) == (mine, mine, ROWS + 400 - mine, "masked")
    assert 77 not in read(root, health)["user"].to_pylist()


def test_an_item_that_everybody_meets_is_no_bot(judge):
    health = judge({LAST: column("item", lambda x: np.where(np.arange(ROWS) % 20 == 0, x[0], x))})
    assert not found(health), "a hit: one row in twenty"


def test_lost_hours_and_disorder(judge, root):
    def gap(table):
        hour = (table["ts"].to_numpy() // 3_600_000) % 24
        return table.filter(pa.array((hour < 9) | (hour >= 12)))

    health = judge({LAST: gap})
    fault = only(health, "missing_hours", None)
    assert "9, 10, 11" in fault.evidence and abs(fault.rows - (ROWS - health.days[LAST].used)) < 60 and health.days[LAST].status == "masked"
    write(root, LAST, events(LAST))
    health = judge({LAST: lambda table: table.take(pa.array(RNG.permutation(len(table))))})
    assert only(health, "out_of_order", None).action == "count" and health.days[LAST].status == "ok"


def test_two_producers_in_one_day(judge, root):
    table = events(LAST)
    write(root, LAST, table.slice(0, ROWS // 2))
    write(root, LAST, with_column(table.slice(ROWS // 2), "price", 1000 * table["price"].to_numpy()[ROWS // 2 :]), "part-1.parquet")
    health = judge()
    fault = only(health, "mixed_version", "price")
    assert fault.file == f"dt={LAST}/part-1.parquet" and fault.rows == ROWS // 2 == read(root, health)["price"].null_count


def in_parts(root, table, cuts):
    """Writes the last day in files that end at these rows."""
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(table)], strict=True)):
        write(root, LAST, table.slice(begin, end - begin), f"part-{number}.parquet")


HOURLY = [*range(250, ROWS - 250, 250), ROWS - 150]  # the last file is too small to be judged alone


@pytest.mark.parametrize("share", [0.08, 0.15])
def test_a_sentinel_in_every_hourly_file_costs_its_cells_although_some_files_alone_show_nothing(judge, root, share):
    hit = RNG.random(ROWS) < share
    in_parts(root, column("price", lambda x: np.where(hit, 555.5, x))(events(LAST)), HOURLY)
    health = judge()
    assert found(health) == {("sentinel_spike", "price")}
    assert sum(fault.rows for fault in health.days[LAST].faults) == hit.sum() == read(root, health)["price"].null_count


def test_a_sentinel_of_one_producer_costs_its_cells(judge, root):
    hit = (RNG.random(ROWS) < 0.2) & (np.arange(ROWS) < 1000)
    in_parts(root, column("price", lambda x: np.where(hit, 555.5, x))(events(LAST)), [1000, 2000])
    health = judge()
    fault = only(health, "mixed_version", "price")
    assert fault.file == f"dt={LAST}/part-0.parquet" and fault.rows == hit.sum() == read(root, health)["price"].null_count


def test_another_unit_in_every_hourly_file_leaves_no_file_out(judge, root):
    in_parts(root, column("price", lambda x: 1000 * x)(events(LAST)), HOURLY)
    health = judge()
    assert only(health, "unit_change", "price") and health.days[LAST].masked_columns == ["price"]


def test_a_strange_day_does_not_become_usual(judge):
    days = DAYS[4:]
    health = judge({day: column("price", lambda x: 0 * x) for day in days})
    for day in days:
        assert found(health, day) == {("zero_filled", "price")}, f"{day}: earlier zero-filled days were believed"


def test_too_little_history_accuses_nobody(judge):
    health = judge({DAYS[1]: column("price", lambda x: 1000 * x)})
    assert not found(health, DAYS[1])


def test_weekends_may_differ(root, inline):
    """A feature that doubles every Saturday and Sunday: strange against the last days, usual for the weekday."""
    days = days_between("2024-05-06", add_days("2024-05-06", 5 * 7 - 1))
    for day in days:
        factor = 40.0 if parse_day(day).weekday() >= 5 else 1.0
        write(root, day, with_column(events(day, 1000), "price", factor * events(day, 1000)["price"].to_numpy()))
    health = scan_run.scan(
        specification(root), days, ScanConfig(history_days=6 * 7, actions={"unit_change": "count"}, max_bad_rows_share=1.0)
    )
    accused = [day for day in days if any(fault.kind == "unit_change" for fault in health.days[day].faults)]
    assert all(parse_day(day).weekday() >= 5 for day in accused)
    past = [(day, 40.0 if parse_day(day).weekday() >= 5 else 1.0) for day in days[:-1]]
    history = History(100, 3, 0.05)
    assert not history.strange(days[-1], 40.0, past, prior=0.1, noise=0.01, tests=100)
    assert history.strange(days[-1], 300.0, past, prior=0.1, noise=0.01, tests=100)


def test_criticality_and_policy(judge):
    required = {"price": ColumnSpec(kind="numeric", criticality="required"), "age": ColumnSpec(kind="numeric")}
    health = judge({LAST: column("price", lambda x: 0 * x)}, features=required)
    assert health.days[LAST].status == "refused"
    health = judge(config=ScanConfig(actions={"zero_filled": "count"}))
    assert (health.days[LAST].status, health.days[LAST].masked_columns) == ("ok", [])
    health = judge(config=ScanConfig(actions={"zero_filled": "refuse_day"}))
    assert health.days[LAST].status == "refused"
    with pytest.raises(ConfigError, match="did you mean 'zero_filled'"):
        ScanConfig(actions={"zero_fill": "mask"})
    with pytest.raises(ConfigError):
        ScanConfig(actions={"zero_filled": "ignore"})


def test_a_label_nobody_trains_on_is_masked(judge):
    actions = {
        "click": ActionSpec(expression="click"),
        "spent": ActionSpec(expression="price", kind="duration", gated=False, history=False),
    }
    health = judge({LAST: column("price", lambda x: 1000 * x)}, actions=actions, features={"age": ColumnSpec(kind="numeric")})
    assert health.days[LAST].status == "masked" and health.days[LAST].masked_columns == ["price"]
    gated = {**actions, "spent": ActionSpec(expression="price", kind="duration")}
    assert judge(actions=gated, features={"age": ColumnSpec(kind="numeric")}).days[LAST].status == "refused"


def test_a_release_brings_back_exactly_its_day(judge, root):
    edits = {DAYS[6]: column("price", lambda x: 0 * x), LAST: column("age", lambda x: 0 * x)}
    health = judge(edits)
    release = ReleaseRule(day=DAYS[6], kind="zero_filled")
    after = judge(config=ScanConfig(releases=[release]))
    assert after.days[DAYS[6]].status == "ok" and not after.days[DAYS[6]].masked_columns
    fault = next(fault for fault in after.days[DAYS[6]].faults if fault.kind == "zero_filled")
    assert fault.action == "count" and fault.evidence.startswith("released")
    assert read(root, after, DAYS[6])["price"].null_count == 0
    changed = [day for day in DAYS if content_hash(day, health.days[day]) != content_hash(day, after.days[day])]
    assert changed == [DAYS[6]]
    assert after.days[LAST].masked_columns == ["age"], "the released values are no part of the history"
    with pytest.raises(ConfigError, match=r"fits no fault[\s\S]*zero_filled"):
        judge(config=ScanConfig(releases=[ReleaseRule(day=DAYS[6], kind="constant")]))
    with pytest.raises(ConfigError, match="unknown choice"):
        ReleaseRule(day=LAST, kind="truncated")


def test_a_declared_repair_repairs_its_days_only(judge, root):
    edits = {DAYS[6]: column("price", lambda x: 1000 * x), LAST: column("price", lambda x: 1000 * x)}
    repair = RepairRule(feature="price", first_day=DAYS[6], last_day=DAYS[6], multiply=0.001)
    health = judge(edits, config=ScanConfig(repairs=[repair]))
    assert found(health, DAYS[6]) == {("repaired", "price")}
    assert found(health) == {("unit_change", "price")} and health.days[DAYS[6]].status == "ok"
    assert np.allclose(read(root, health, DAYS[6])["price"].to_numpy(), events(DAYS[6])["price"].to_numpy())
    plain = judge()
    changed = [day for day in DAYS if content_hash(day, plain.days[day]) != content_hash(day, health.days[day])]
    assert changed == [DAYS[6]]
    state = health.days[DAYS[6]]
    assert content_hash(DAYS[6], state) != content_hash(DAYS[6], replace(state, rules=[])), "what is done to cells is part of the content"
    wrong = judge(config=ScanConfig(repairs=[RepairRule(feature="price", first_day=DAYS[6], last_day=DAYS[7], multiply=0.001)]))
    assert found(wrong, DAYS[7]) == {("repaired", "price"), ("unit_change", "price")}, "a repair of a sound day is damage"
    with pytest.raises(ConfigError, match="not mapped"):
        judge(config=ScanConfig(repairs=[RepairRule(feature="prize", first_day=LAST, last_day=LAST, multiply=2.0)]))
    with pytest.raises(ConfigError, match="ends before"):
        RepairRule(feature="price", first_day=DAYS[1], last_day=DAYS[0], multiply=2.0)


def test_a_night_reads_only_new_files(judge, inline, root, tmp_path):
    config = ScanConfig(root=str(tmp_path / "store"))
    first = judge(config=config)
    assert inline.calls.count("verify") == inline.calls.count("inspect") == len(DAYS)
    inline.calls.clear()
    assert judge(config=config) == first and not inline.calls
    again = judge({LAST: column("price", lambda x: 0 * x)}, config=config)
    assert inline.calls == ["inspect", "verify"] and found(again) == {("zero_filled", "price")}
    for path in (tmp_path / "store" / "reports").iterdir():
        data = bytearray(path.read_bytes())
        data[-500] ^= 1  # in an array: the text before it still parses
        path.write_bytes(data)
    inline.calls.clear()
    assert judge(config=config) == again and inline.calls.count("verify") == len(DAYS), "a damaged memory is not believed"
    inline.calls.clear()
    stricter = judge(config=ScanConfig(root=config.root, actions={"zero_filled": "refuse_day"}))
    assert not inline.calls and stricter.days[LAST].status == "refused", "policy is applied to what is remembered"


def test_rows_that_are_missing_without_a_reason_refuse_the_day_and_lost_hours_are_a_reason(judge, root):
    write(root, LAST, events(LAST).slice(0, 1800))
    health = judge()
    assert found(health) == {("missing_hours", None)} and health.days[LAST].status == "masked", "the rest of the hours is whole"
    write(root, LAST, events(LAST).take(pa.array(np.arange(0, ROWS, 2))))
    health = judge()
    assert found(health) == {("too_few_rows", None)} and health.days[LAST].status == "refused", "every hour is half empty"
    write(root, LAST, events(LAST).take(pa.array(np.arange(0, 1800, 2))))
    assert ("too_few_rows", None) in found(judge()), "lost hours do not excuse the others"


def test_a_day_is_refused_when_most_of_its_rows_are_bad(judge):
    def broken(share):
        return column("ts", lambda x: np.where(np.arange(ROWS) % 100 < share, 1000 * x, x))

    some = judge({LAST: broken(30)})
    assert only(some, "time_unit", "ts").rows == some.days[LAST].dropped == 0.3 * ROWS and some.days[LAST].status == "masked"
    most = judge({LAST: broken(60)})
    assert ("too_many_bad_rows", None) in found(most) and most.days[LAST].status == "refused"


def test_unverified_files(judge, root):
    for day in DAYS:
        pq.write_table(events(day), Path(root) / f"dt={day}" / "part-0.parquet")
    assert not found(judge())
    warned = judge(config=ScanConfig(unverified="warn"))
    assert found(warned) == {("unverified_bytes", None)} and warned.days[LAST].status == "ok"
    assert judge(config=ScanConfig(unverified="refuse")).days[LAST].status == "refused"


def test_three_quiet_days_of_a_weekday_excuse_nothing():
    """What is strange against all days is strange on a Monday too, although three Mondays alone could not tell."""
    days = days_between("2026-03-01", "2026-03-23")
    past = [(day, share_scale(0.0)) for day in days[:-1]]
    strange = History(28, 3, 0.05).strange(days[-1], share_scale(0.15), past, prior=0.02, noise=share_noise(2500), tests=300)
    assert strange and sum(parse_day(day).weekday() == 0 for day, _ in past) == 3


def test_large_ids_are_told_apart_by_a_rule():
    """Two users whose ids are one float64: rows of one of them are left out."""
    near = 2**60 + 1
    table = pa.table({"user": pa.array([near, near + 1, near + 2], pa.int64())})
    rule = CellRule(kind="bot_user", feature="user", evidence="", drop=True, values=[str(near + 1)])
    assert treat._hit(table, specification(Path()), rule).tolist() == [False, True, False]
