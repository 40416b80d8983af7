from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.schema.simulation import IncidentSpec, SimulationSpec

DAY = "2026-03-02"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"kind": "drop_row", "share": 0.1}, "did you mean 'drop_rows'"),
        ({"kind": "drop_rows"}, "expected: share"),
        ({"kind": "drop_rows", "share": 0.1, "hour": 3}, "expected: share"),
        ({"kind": "scale_feature", "feature": "duration_s"}, "expected: factor, feature, [share]"),
        ({"kind": "zero_feature", "feature": "duration"}, "did you mean 'duration_s'"),
        ({"kind": "zero_feature", "feature": "tab"}, "cannot damage this column"),
        ({"kind": "null_feature", "feature": "user_id"}, "cannot damage this column"),
        ({"kind": "flip_labels", "feature": "watch_time_s"}, "cannot damage this column"),
        ({"kind": "missing_hour", "hour": 24}, "0..23"),
        ({"kind": "truncate_file", "share": 0.0}, "(0, 1]"),
        ({"kind": "bit_flip", "bits": 0}, "positive"),
    ],
)
def test_an_incident_that_makes_no_sense_is_refused(settings, part):
    with pytest.raises(ConfigError) as error:
        IncidentSpec(day=DAY, **settings)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"days": 0}, "simulation.days"),
        ({"seed": -1}, "simulation.seed"),
        ({"late_share": 1.0}, "simulation.late_share"),
        ({"slate": 30}, "simulation.slate"),
        ({"slate": 101, "candidates": 200}, "simulation.slate"),
        ({"topics": 2}, "simulation.topics"),
        ({"first_day": "2026-02-30"}, "simulation.first_day"),
        ({"timezone": "Asia/Nowhere"}, "data.timezone"),
        ({"days": 3, "incidents": [IncidentSpec(kind="bit_flip", day="2026-03-05")]}, "simulation.incidents"),
        ({"days": 3, "incidents": [IncidentSpec(kind="bit_flip", day="2026-03-01")]}, "simulation.incidents"),
    ],
)
def test_a_simulation_that_makes_no_sense_is_refused(settings, where):
    with pytest.raises(ConfigError) as error:
        SimulationSpec(**settings)
    assert f"where: {where}" in str(error.value)


def test_days_are_counted_from_the_first():
    assert SimulationSpec(days=3, first_day="2026-02-27").dates == ["2026-02-27", "2026-02-28", "2026-03-01"]
