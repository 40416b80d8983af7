"""The oracle on 2,000 random users: ties, duplicates, late rows, unripe labels; and one row that becomes known later."""

import numpy as np
import pytest

from tests import rebuild_lab as lab
from trainer.rebuild.audit import compare, coverages
from trainer.rebuild.context import Context
from trainer.rebuild.coverage import day_share
from trainer.rebuild.events import read_many
from trainer.rebuild.oracle import Oracle
from trainer.schema.features import FeatureSpec
from trainer.schema.time import day_end_ms

pytestmark = pytest.mark.proof

USERS, DAYS, ROWS = 2_000, 3, 4_000
COLUMNS = ["user", "item", "event_time", "known_at", "label_click", "label_watch", "feature_tab", "feature_author"]


def test_every_counter_of_every_row_of_2000_users_equals_brute_force(tmp_path):
    days = lab.write_log(tmp_path / "log", days=DAYS, rows=ROWS, users=USERS, items=300)
    log, features = lab.spec(tmp_path / "log"), FeatureSpec(counters=lab.COUNTERS)
    manifest = lab.build(log, tmp_path / "out", features=features)
    context = Context(log, features, str(tmp_path / "out"), manifest.user_buckets, 2, "zstd", 5, day_end_ms(days[-1], lab.ZONE))
    shares = [day_share(log, day, state) for day, state in lab.scanned(log, days).days.items()]
    events = read_many(context, days, range(manifest.user_buckets), COLUMNS)
    users, minutes = events["user"].to_numpy(), events["event_time"].to_numpy()
    assert len(np.unique(users)) > 0.98 * USERS and len(np.unique(minutes)) < 0.5 * len(minutes), "nearly all users, many ties"
    assert sum(manifest.duplicates.values()) > 500 and sum(manifest.late.values()) > 500
    oracle = Oracle(events, log, lab.COUNTERS, shares, context.coverage_floor)
    for day in days:
        compare(lab.rows_of(tmp_path / "out", manifest, day), oracle, coverages(context), day)


@pytest.mark.parametrize("seed", range(5))
def test_moving_one_of_many_rows_changes_exactly_the_rows_it_should(tmp_path, seed):
    lab.write_log(tmp_path / "log", days=DAYS, rows=ROWS, users=USERS, items=300, seed=seed)
    changed, expected = lab.changed_by_one_late_row(tmp_path, seed)
    assert expected and changed == expected
