"""Every counter of every row equals the plain definition, on a log full of ties, duplicates, late and unripe rows."""

import numpy as np
import pytest

from trainer.errors import ConfigError, DataError
from trainer.rebuild import entities, kernels, run
from trainer.rebuild.audit import compare, coverages
from trainer.rebuild.context import Context
from trainer.rebuild.counters import resolve_counters
from trainer.rebuild.coverage import day_share
from trainer.rebuild.events import read_many
from trainer.rebuild.oracle import Oracle
from trainer.schema.features import FeatureSpec
from trainer.schema.logs import ServingSpec
from trainer.schema.time import day_end_ms


def _check_all_rows(lab, log, root, manifest, days, counters=None):
    counters = counters or lab.COUNTERS
    cut = day_end_ms(days[-1], log.timezone)
    context = Context(log, FeatureSpec(counters=counters), str(root), manifest.user_buckets, 2, "zstd", 5, cut)
    columns = ["user", "item", "event_time", "known_at", "label_click", "label_watch", "feature_tab", "feature_author"]
    everything = read_many(context, days, range(manifest.user_buckets), columns)
    shares = [day_share(log, day, state) for day, state in lab.scanned(log, days).days.items()]
    oracle = Oracle(everything, log, counters, shares, context.coverage_floor)
    for day in days:
        compare(lab.rows_of(root, manifest, day), oracle, coverages(context), day)


def test_every_counter_of_every_row_equals_brute_force(lab, tmp_path):
    days = lab.write_log(tmp_path / "log")
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out")
    _check_all_rows(lab, log, tmp_path / "out", manifest, days)
    rows = lab.rows_of(tmp_path / "out", manifest, days[-1])
    # The check above means little on empty features: every kind must take several values.
    for name in lab.COUNTERS:
        assert len(rows[f"feature_{name}"].drop_null().unique()) > 2, name


@pytest.mark.parametrize(
    "serving",
    [
        ServingSpec(delay="25m"),
        ServingSpec(mode="snapshot", period="1h", delay="10m"),
        ServingSpec(mode="snapshot", period="7h"),
        ServingSpec(mode="snapshot", period="1d"),
        ServingSpec(mode="snapshot", period="2d"),
    ],
)
def test_serving_freshness_holds_for_counters(lab, tmp_path, serving):
    days = lab.write_log(tmp_path / "log", rows=120)
    log = lab.spec(tmp_path / "log", serving=serving)
    if serving.period == "7h":
        with pytest.raises(ConfigError, match="divides a day"):
            lab.build(log, tmp_path / "out")
        return
    manifest = lab.build(log, tmp_path / "out")
    _check_all_rows(lab, log, tmp_path / "out", manifest, days)


def test_duplicates_late_rows_and_unripe_labels_are_in_the_log(lab, tmp_path):
    days = lab.write_log(tmp_path / "log")
    manifest = lab.build(lab.spec(tmp_path / "log"), tmp_path / "out")
    assert sum(manifest.duplicates.values()) > 50
    assert sum(manifest.late.values()) > 50
    last = lab.rows_of(tmp_path / "out", manifest, days[-1])
    cut = day_end_ms(days[-1], lab.ZONE)
    ripe = np.maximum(last["known_at"].to_numpy(), last["event_time"].to_numpy() + 40 * 60_000) <= cut
    assert not ripe.all() and last["label_click"].filter(~ripe).null_count == (~ripe).sum()
    assert (last["known_at"].to_numpy() <= cut).all()


def test_moving_one_row_past_t_changes_exactly_the_rows_it_should(lab, tmp_path):
    """A row that becomes known later takes its contribution from the requests in between, and from no others."""
    lab.write_log(tmp_path / "log", days=3)
    changed, expected = lab.changed_by_one_late_row(tmp_path)
    assert expected and changed == expected


def test_the_audit_refuses_events_after_the_request(lab, tmp_path, monkeypatch):
    """A kernel that looks an hour ahead is a planted leak; the audit at the end of rebuild must see it."""
    lab.write_log(tmp_path / "log", days=2)
    honest = kernels.CounterKernel.evaluate
    monkeypatch.setattr(
        kernels.CounterKernel, "evaluate", lambda self, primitives, group_Q, time_Q: honest(self, primitives, group_Q, time_Q + 3_600_000)
    )
    with pytest.raises(DataError, match="not known"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out", audit_rows=64)


def test_the_audit_refuses_a_wrong_availability(lab, tmp_path, monkeypatch):
    lab.write_log(tmp_path / "log", days=2)
    monkeypatch.setattr(entities, "ripe", lambda event_N, known_N, maturity: event_N - 7_200_000)
    with pytest.raises(DataError, match="not known"):
        lab.build(lab.spec(tmp_path / "log"), tmp_path / "out", audit_rows=64)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_audit_passes_an_honest_rebuild_and_looks_at_as_many_rows_as_asked(lab, tmp_path, monkeypatch):
    lab.write_log(tmp_path / "log", days=2)
    seen = []
    honest = run.audit
    monkeypatch.setattr(run, "audit", lambda *arguments: seen.append(honest(*arguments)))
    lab.build(lab.spec(tmp_path / "log"), tmp_path / "out", audit_rows=20)
    assert seen == [20]


def test_a_later_day_changes_nothing_of_an_earlier_one(lab, tmp_path):
    """Features, tails and negatives of a day do not depend on how many later days are loaded."""
    days = lab.write_log(tmp_path / "log", days=4)
    log = lab.click_only(tmp_path / "log")
    short = lab.build(log, tmp_path / "short", days=days[:2], as_of_day=days[-1])
    long = lab.build(log, tmp_path / "long", days=days, as_of_day=days[-1])
    for record in short.partitions:
        twin = next(other for other in long.partitions if (other.day, other.bucket) == (record.day, record.bucket))
        assert (record.examples_sha256, record.tail_sha256) == (twin.examples_sha256, twin.tail_sha256), record.day


def test_derived_counters_equal_brute_force(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=2)
    log = lab.spec(tmp_path / "log")
    manifest = lab.build(log, tmp_path / "out", features=FeatureSpec(auto=True))
    counters = resolve_counters(log, FeatureSpec(auto=True))
    assert {"auto_user_count_7d", "auto_item_click_rate_7d", "auto_tab_click_rate_7d"} <= set(counters)
    _check_all_rows(lab, log, tmp_path / "out", manifest, days, counters)
