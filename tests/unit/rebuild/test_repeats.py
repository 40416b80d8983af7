"""Repeated deliveries that say something else: counted, because the first one counts and a log may mean the last."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.schema.features import FeatureSpec


def deliver_again(folder, source, rows, flip):
    """Adds a file with rows of another day folder or the same, their clicks turned over where `flip`."""
    again = pq.read_table(source / "part-0.parquet", partitioning=None)
    healthy = pa.array(np.flatnonzero(np.asarray(again["uid"].is_valid()) & np.asarray(again["clicked"].is_valid()))[:rows])
    again = again.take(healthy)
    clicked_N = again["clicked"].to_numpy()
    again = again.set_column(again.column_names.index("clicked"), "clicked", pa.array(1 - clicked_N if flip else clicked_N))
    pq.write_table(again, folder / f"part-{rows}.parquet", write_page_checksum=True)


def test_repeats_with_other_labels_are_counted_on_the_day_that_repeats(lab, tmp_path):
    log = lab.spec(tmp_path / "log")
    days = lab.write_log(tmp_path / "log", days=3)
    plain = lab.build(log, tmp_path / "plain", days, FeatureSpec())
    assert sum(plain.duplicates.values()) > 50 and not any(plain.other_labels.values())
    first, second, _ = (tmp_path / "log" / f"dt={day}" for day in days)
    deliver_again(first, first, 20, flip=True)  # an update in the same folder
    deliver_again(second, second, 30, flip=False)
    found = lab.build(log, tmp_path / "found", days, FeatureSpec())
    assert found.other_labels[days[0]] == 20 and found.other_labels[days[1]] == 0
    assert found.duplicates[days[0]] == plain.duplicates[days[0]] + 20 and found.duplicates[days[1]] == plain.duplicates[days[1]] + 30


def test_an_update_in_the_next_days_folder_is_counted_there(lab, tmp_path):
    log = lab.spec(tmp_path / "log")
    days = lab.write_log(tmp_path / "log", days=3)
    early = tmp_path / "log" / f"dt={days[0]}"
    table = pq.read_table(early / "part-0.parquet", partitioning=None)
    last = pa.array(np.argsort(-table["ts"].to_numpy())[:40])  # of the evening, so that the next folder may hold them too
    pq.write_table(table.take(last), early / "part-1.parquet", write_page_checksum=True)
    evening = tmp_path / "evening"
    evening.mkdir()
    pq.write_table(table.take(last), evening / "part-0.parquet")
    deliver_again(tmp_path / "log" / f"dt={days[1]}", evening, 15, flip=True)
    found = lab.build(log, tmp_path / "found", days, FeatureSpec())
    assert found.other_labels[days[1]] == 15
