"""Rows that are in no log read the histories that the log's own rows would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config import RebuildConfig
from trainer.rebuild.asked import asked
from trainer.rebuild.store import read_columns
from trainer.schema.examples import tail_path
from trainer.schema.features import FeatureSpec
from trainer.schema.time import day_end_ms, day_start_ms

BUCKETS = 2


class Given:
    """Rows held in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def times(self):
        yield self._table["request_time"].to_numpy()

    def tables(self):
        yield self._table


def in_order(tokens: pa.Table) -> pa.Table:
    """Sorts tokens as the encoder does: ties in time stay as they come."""
    tokens = tokens.combine_chunks()
    columns = [tokens[name].to_numpy() for name in ("event_time", "available", "user")]
    return tokens.take(pa.array(np.lexsort((np.arange(len(tokens)), *columns))))


def test_events_of_one_instant_stand_in_the_order_of_the_tails(lab, tmp_path):
    days = lab.write_log(tmp_path / "log", days=3, rows=2000, users=6)
    log, day, root = lab.spec(tmp_path / "log"), days[-1], tmp_path / "examples"
    lab.build(log, root, days, FeatureSpec(), user_buckets=BUCKETS)
    config = RebuildConfig(root=str(root), user_buckets=BUCKETS, workers=1)
    start = day_start_ms(day, log.timezone)
    rows = pa.table({"user": np.arange(6), "item": ["i1"] * 6, "request_time": np.full(6, start + 1)})
    parts = asked(
        log, FeatureSpec(), lab.scanned(log, days), Given(rows), config, max_history=5, as_of_ms=day_end_ms(day, log.timezone),
        scratch=tmp_path / "rows.arrow",
    )  # fmt: skip
    seen = tied = 0
    stored = pa.concat_tables([read_columns(tail_path(root, day, bucket)) for bucket in range(BUCKETS)])
    for part in parts:
        for user in pc.unique(part.examples["user"].combine_chunks()).to_pylist():
            expected = in_order(stored.filter(pc.and_(pc.equal(stored["user"], user), pc.less(stored["available"], start))))
            ours = in_order(part.tail.filter(pc.and_(pc.equal(part.tail["user"], user), pc.less(part.tail["available"], start))))
            names = ["available", "event_time", "item"]
            assert ours.slice(len(ours) - len(expected)).select(names).to_pylist() == expected.select(names).to_pylist()
            instants = expected["available"].to_numpy()
            seen, tied = seen + len(expected), tied + int((instants[1:] == instants[:-1]).sum())
    assert seen == 30 and tied >= 3, "the log has events of one instant"
