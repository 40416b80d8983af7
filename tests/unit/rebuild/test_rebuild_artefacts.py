"""Same inputs, same bytes; resume after a kill; tails, cut-offs, negatives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.rebuild_lab import bytes_of
from trainer.config import RebuildConfig
from trainer.errors import ConfigError, DataError
from trainer.rebuild import engines, rebuild, run, store, targets
from trainer.schema.examples import SORT_ORDER, examples_path, read_manifest, read_partition, read_tail
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.logs import ColumnSpec, PriorHistorySpec, SideTableSpec, TimeSpec
from trainer.schema.time import day_end_ms, day_start_ms
from trainer.schema.vocabulary import Vocabulary


def test_same_bytes_for_any_number_of_workers_and_any_cut_of_the_work(lab, tmp_path, monkeypatch):
    lab.write_log(tmp_path / "log", days=3, rows=120)
    log = lab.click_only(tmp_path / "log")
    lab.build(log, tmp_path / "one")
    monkeypatch.setattr(engines, "ROWS_A_WORKER", 0)
    lab.build(log, tmp_path / "two", workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(run.plan, "RUN_ROWS", 1)  # every day its own task
    monkeypatch.setattr(run, "engine_of", lambda name, workers: _Backwards(workers))
    lab.build(log, tmp_path / "cut")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "cut")


class _Backwards(engines.LocalEngine):
    """Makes the last task first."""

    def results(self, tasks):
        return reversed([task.function(*task.arguments) for task in reversed(tasks)])


def test_going_on_from_an_earlier_rebuild_gives_the_same_bytes(lab, tmp_path, monkeypatch):
    """A night adds a day: it reads the state of the night before, rebuilds nothing old, and agrees with a rebuild of all."""
    days = lab.write_log(tmp_path / "log", days=4, rows=120)
    log = lab.spec(tmp_path / "log")
    lab.build(log, tmp_path / "nights", days=days[:3], as_of_day=days[-1])
    written = _spy(monkeypatch, run, "write_examples")
    walked = _spy(monkeypatch, run, "write_tails")
    nightly = lab.build(log, tmp_path / "nights", days=days)
    assert {day for call in written for day in call[2]} == {days[3]}
    assert {call[2].state_day for call in walked} == {days[3]} and all(call[2].source_days == [days[3]] for call in walked)
    monkeypatch.undo()
    whole = lab.build(log, tmp_path / "whole", days=days)
    assert nightly == whole


def test_a_repaired_day_rebuilds_only_what_depends_on_it(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=4, rows=120)
    log = lab.spec(tmp_path / "log")
    features = FeatureSpec(counters={"item_views_6h": CounterSpec(kind="count", entity=["item"], window="6h")}, coverage=False)
    lab.build(log, tmp_path / "out", features=features)
    path = tmp_path / "log" / f"dt={days[2]}" / "part-0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    names = ("ingest", "mark_repeats", "write_answers", "write_examples", "write_tails")
    calls = {name: _spy(monkeypatch, run, name) for name in names}
    lab.build(log, tmp_path / "out", features=features)
    assert [call[1] for call in calls["ingest"]] == [days[2]]
    assert {call[1] for call in calls["mark_repeats"]} == {days[2], days[3]}, "a later day may repeat its deliveries"
    for name, buckets in (("write_answers", 2), ("write_examples", 3)):
        assert [call[1:3] for call in calls[name]] == [(bucket, days[2:]) for bucket in range(buckets)], name
    assert [sorted(call[2].wanted) for call in calls["write_tails"]] == [days[2:]] * 3, "a tail holds the users of its day"
    for made in calls.values():
        made.clear()
    lab.build(log, tmp_path / "out", features=features)
    assert not any(calls.values()), "nothing changed, nothing is made"


def test_a_damaged_output_is_built_again(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2, rows=120)
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    path = examples_path(tmp_path / "out", days[1], 1)
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(DataError, match="not what was written"):
        read_partition(tmp_path / "out", manifest, days[1], 1)
    lab.build(log, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before


def test_killed_at_any_write_it_goes_on_to_the_same_bytes(lab, tmp_path):
    """Torn in the middle of a file, and killed between a file, its name, its record and the manifest."""
    lab.write_log(tmp_path / "log", days=2, rows=80)
    lab.build(lab.spec(tmp_path / "log"), tmp_path / "whole")
    renames = _renamed(tmp_path / "whole")
    for kind, count in (("torn", 3), ("rename", 9), ("torn", 5), ("rename", 14)):  # each goes on where the one before was killed
        assert _killed(kind, count, tmp_path / "log", tmp_path / "killed") == -signal.SIGKILL, (kind, count)
        assert not (tmp_path / "killed" / "manifest.json").exists()
    left = renames - _renamed(tmp_path / "killed")
    assert _killed("rename", left, tmp_path / "log", tmp_path / "killed") == -signal.SIGKILL, "at the manifest, the last of all"
    assert list((tmp_path / "killed").rglob(".*.tmp")) or list((tmp_path / "killed").glob(".manifest.json.*"))
    lab.build(lab.spec(tmp_path / "log"), tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*.tmp")), "what killed runs were writing is gone"


def _renamed(root):
    """Counts the files that got their names by renaming; vocabularies, which are never gone on from, are written in place."""
    paths = [path for path in root.rglob("*") if path.suffix in (".parquet", ".json")]
    return sum(1 for path in paths if path.parent.name != "vocabularies")


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests import rebuild_lab as lab
kind, left = sys.argv[1], [int(sys.argv[2])]
root = sys.argv[4]
def now():
    left[0] -= 1
    return not left[0]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
honest = Path.write_bytes
def torn(path, data):
    if root in str(path) and now():
        honest(path, bytes(data)[: len(data) // 2])
        die()
    return honest(path, data)
def hook(event, arguments):
    if event == "os.rename" and root in str(arguments[1]) and now():
        die()
if __name__ == "__main__":
    if kind == "torn":
        Path.write_bytes = torn
    else:
        sys.addaudithook(hook)
    lab.build(lab.spec(Path(sys.argv[3])), Path(root))
"""


def _killed(kind, count, log, root):
    script = root.parent / "killed.py"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), kind, str(count), str(log), str(root)]
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}).returncode


def test_two_rebuilds_do_not_work_in_one_folder(lab, tmp_path, monkeypatch, capsys):
    lab.write_log(tmp_path / "log", days=1)
    monkeypatch.setattr(store, "PATIENCE_S", 0.05)
    with store.owned(tmp_path / "out"), pytest.raises(DataError, match="another rebuild works in this folder"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")
    assert "waiting for it" in capsys.readouterr().out
    lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")


def test_a_disk_that_does_not_keep_what_it_was_given_is_found_out(lab, tmp_path, monkeypatch):
    honest = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: honest(path, bytes(data)[:-9] + b"x" * 9))
    with pytest.raises(DataError, match="does not hold the bytes that were written"):
        store.write_table(tmp_path / "x.parquet", pa.table({"a": [1, 2]}), "zstd")
    assert not list(tmp_path.iterdir())


def _spy(monkeypatch, module, name):
    calls, honest = [], getattr(module, name)

    def spy(*arguments):
        calls.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr(module, name, spy)
    return calls


def test_rows_are_sorted_and_reconcile_with_the_scan(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out", as_of_day="2024-06-01")  # everything is known by then
    health = lab.scanned(log, days)
    for day in days:
        state = health.days[day]
        assert state.rows == state.used + state.dropped + state.duplicates
        assert state.used == sum(record.rows for record in manifest.partitions if record.day == day)
        assert state.duplicates == manifest.duplicates[day]
        for bucket in range(manifest.user_buckets):
            rows = read_partition(tmp_path / "out", manifest, day, bucket)
            assert rows.equals(rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in SORT_ORDER])))


def test_tails_hold_the_last_tokens_before_the_day(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=4)
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out", as_of_day="2024-06-01")
    events = [row | {"part": index} for index, day in enumerate(days) for row in lab.rows_of(tmp_path / "out", manifest, day).to_pylist()]
    for index, day in enumerate(days):
        tails = pa.concat_tables([read_tail(tmp_path / "out", manifest, day, bucket) for bucket in range(3)]).to_pylist()
        users = {row["user"] for row in events if row["part"] == index}
        assert {row["user"] for row in tails} <= users
        for user in users:
            got = [(row["available"], row["event_time"], row["item"]) for row in tails if row["user"] == user]
            assert got == _expected_tail(events, user, index, day_start_ms(day, lab.ZONE), 5)
    final = pa.concat_tables([read_tail(tmp_path / "out", manifest, manifest.final_tail_day, bucket) for bucket in range(3)]).to_pylist()
    for user in {row["user"] for row in events}:
        got = [(row["available"], row["event_time"], row["item"]) for row in final if row["user"] == user]
        assert got == _expected_tail(events, user, len(days), day_end_ms(days[-1], lab.ZONE), 5)


def _expected_tail(events, user, part, start, length):
    tokens = sorted((row["available"], row["event_time"], row["item"]) for row in events if row["user"] == user and row["part"] < part)
    before = [token for token in tokens if token[0] < start]
    return before[-length:] + [token for token in tokens if token[0] >= start]


def test_availability_is_known_over_and_ripe(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    manifest = lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")
    rows = lab.rows_of(tmp_path / "out", manifest, days[1])
    event, known, available = (rows[name].to_numpy() for name in ("event_time", "known_at", "available"))
    assert (available == np.maximum(known, event + 40 * 60_000)).all()


def test_prior_history_comes_first_and_carries_its_bits(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=1)
    prior = pa.table({"u": [0, 1], "seq": [[f"i{n}" for n in (3, 9, 3, 1, 2, 8, 4)], ["i5"]], "liked": [["i8"], None]})
    pq.write_table(prior, tmp_path / "log" / "prior.parquet")
    history = PriorHistorySpec(path="prior.parquet", key="u", sequence="seq", actions={"click": "liked"})
    log = lab.spec(tmp_path / "log", prior_history=history)
    manifest = lab.build(log, tmp_path / "out")
    tails = pa.concat_tables([read_tail(tmp_path / "out", manifest, days[0], bucket) for bucket in range(3)]).to_pylist()
    mine = [row for row in tails if row["user"] == 0]
    assert [row["item"] for row in mine] == ["i3", "i1", "i2", "i8", "i4"]
    assert [row["label_click"] for row in mine] == [0, 0, 0, 1, 0]
    assert all(row["event_time"] is None and row["label_watch"] is None for row in mine)
    assert mine[0]["feature_author"] == "a3"


@pytest.mark.parametrize("sampler", ["recent_popularity", "uniform"])
def test_negatives_are_distinct_live_and_known(lab, tmp_path, sampler):
    days = lab.write_log(tmp_path / "log", days=3)
    log = lab.click_only(tmp_path / "log", sampler)
    manifest = lab.build(log, tmp_path / "out")
    rows = pa.concat_tables([lab.rows_of(tmp_path / "out", manifest, day) for day in days]).to_pylist()
    events = [row for row in rows if row["is_event"]]
    seen = {}
    for row in rows:
        if row["is_event"]:
            continue
        assert (row["label_click"], row["label_watch"], row["weight"]) == (0.0, None, 1.0)
        known = [e for e in events if e["item"] == row["item"] and max(e["known_at"], e["event_time"] + 1) <= row["request_time"]]
        assert any(e["event_time"] >= row["request_time"] - 86_400_000 for e in known), "drawn from what was not there"
        seen.setdefault((row["user"], row["event_time"], row["known_at"]), []).append(row["item"])
    positives = {(e["user"], e["event_time"], e["known_at"]): e["item"] for e in events}
    for key, items in seen.items():
        assert positives[key] not in items or sum((e["user"], e["event_time"], e["known_at"]) == key for e in events) > 1
        assert len(items) % 2 == 0
    assert sum(manifest.negatives.values()) == sum(map(len, seen.values())) > 500
    bare = [e for e in events if (e["user"], e["event_time"], e["known_at"]) not in seen]
    assert bare and all(e["label_click"] is None for e in bare), "a positive without negatives is no target"


def test_popular_items_are_drawn_more_often_only_by_the_popularity_sampler(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2, rows=400)
    path = tmp_path / "log" / f"dt={days[0]}" / "part-0.parquet"
    table = pq.read_table(path)
    hot = pc.if_else(pa.array(np.arange(len(table)) % 2 == 0), pa.scalar("i1"), table["iid"])
    pq.write_table(table.set_column(table.column_names.index("iid"), "iid", hot), path)
    share = {}
    for sampler in ("recent_popularity", "uniform"):
        manifest = lab.build(lab.click_only(tmp_path / "log", sampler), tmp_path / sampler)
        rows = lab.rows_of(tmp_path / sampler, manifest, days[0])
        drawn = rows.filter(pc.invert(rows["is_event"]))["item"]
        share[sampler] = pc.mean(pc.equal(drawn, "i1").cast(pa.float64())).as_py()
    # Half of the positives are i1 themselves and can only draw others; the other half draws it half of the time, or 1 in 30.
    assert 0.15 < share["recent_popularity"] < 0.4 and share["uniform"] < 0.05


def test_vocabularies_count_events_of_training_days_only(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=3)
    log = lab.click_only(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out")
    rows = pa.concat_tables([lab.rows_of(tmp_path / "out", manifest, day) for day in days])
    events = rows.filter(rows["is_event"])
    vocabulary = Vocabulary.read(tmp_path / "out" / "vocabularies" / "item.parquet")
    counts = dict(zip(vocabulary.keys.to_pylist(), vocabulary.count_V.tolist(), strict=True))
    expected = {entry["values"]: entry["counts"] for entry in pc.value_counts(events["item"]).to_pylist()}
    assert counts == expected and vocabulary.keys.to_pylist() == sorted(expected)
    assert {"user", "item", "tab", "author", "hour", "weekday"} == {path.stem for path in (tmp_path / "out" / "vocabularies").iterdir()}


def test_side_table_history_is_joined_as_of_the_request(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    noon = (day_start_ms(days[1], lab.ZONE) + 43_200_000) // 1000
    history = pa.table({"iid": [f"i{n}" for n in range(30)] * 2, "since": [0] * 30 + [noon] * 30, "state": ["old"] * 30 + ["new"] * 30})
    pq.write_table(history, tmp_path / "log" / "history.parquet")
    since = TimeSpec(column="since", unit="s")
    table = SideTableSpec(path="history.parquet", entity="item", key="iid", columns={"state": ColumnSpec()}, valid_from=since)
    log = lab.spec(tmp_path / "log", side_tables={"history": table})
    manifest = lab.build(log, tmp_path / "out", features=FeatureSpec(coverage=False))
    rows = lab.rows_of(tmp_path / "out", manifest, days[1])
    expected = np.where(rows["request_time"].to_numpy() >= noon * 1000, "new", "old")
    assert rows["feature_state"].to_pylist() == expected.tolist() and set(expected) == {"new", "old"}
    assert manifest.item_features == []  # a fact that changes is no function of the item


def test_a_wrong_counter_is_refused_by_name(lab, tmp_path):
    lab.write_log(tmp_path / "log", days=1)
    features = FeatureSpec(counters={"x": CounterSpec(kind="count", entity=["autor"])})
    with pytest.raises(ConfigError, match=r"features\.counters\.x[\s\S]*did you mean 'author'"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out", features=features)


def test_a_full_disk_is_one_message_and_leaves_no_manifest(lab, tmp_path, monkeypatch):
    lab.write_log(tmp_path / "log", days=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_that_changed_after_the_scan_is_refused(lab, tmp_path, monkeypatch):
    days = lab.write_log(tmp_path / "log", days=1)
    log = lab.spec(tmp_path / "log")
    health = lab.scanned(log, days)
    path = tmp_path / "log" / f"dt={days[0]}" / "part-0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match="changed after it was scanned"):
        rebuild(log, FeatureSpec(), health, days, RebuildConfig(root=str(tmp_path / "out")), 5, day_end_ms(days[0], lab.ZONE), days)


def test_the_manifest_reads_back(lab, tmp_path):
    lab.write_log(tmp_path / "log", days=1)
    manifest = lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")
    assert read_manifest(tmp_path / "out") == manifest
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(DataError, match="manifest"):
        read_manifest(tmp_path / "out")


def test_targets_never_read_their_own_outcome(lab, tmp_path):
    """A request logged after its event is clamped to the event: otherwise the row would count itself."""
    days = lab.write_log(tmp_path / "log", days=1)
    log = lab.spec(tmp_path / "log", request_time=TimeSpec(column="known", unit="s"))
    manifest = lab.build(log, tmp_path / "out")
    rows = lab.rows_of(tmp_path / "out", manifest, days[0])
    assert (rows["request_time"].to_numpy() <= rows["event_time"].to_numpy()).all()
    assert targets.available(rows, log).min() > 0
