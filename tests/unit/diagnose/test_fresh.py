"""Slices, drift, cohorts, ablation: each finds what was planted and nothing where nothing was."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.diagnose import ablate, cohorts, drift, odd_cohorts, worst_slices
from trainer.schema.repair import from_scale

DAY_MS = 86_400_000


def _predictions(seed=0, rows=30_000, worse=None):
    rng = np.random.default_rng(seed)
    z_N = rng.normal(-1.5, 1, rows)
    country_N, device_N = rng.integers(0, 10, rows), rng.integers(0, 3, rows)
    ours_N = z_N + rng.normal(0, 0.1, rows)
    if worse is not None:
        there_N = (country_N == worse[0]) & (device_N == worse[1])
        ours_N = np.where(there_N, z_N + rng.normal(0, 1.0, rows), ours_N)
    return pa.table(
        {
            "user": rng.integers(0, rows // 10, rows), "item": rng.integers(0, 100, rows), "country": country_N, "device": device_N,
            "age": rng.random(rows), "label_click": (rng.random(rows) < from_scale(z_N, "logit")).astype(float),
            "production_click": from_scale(z_N, "logit"), "challenger_click": from_scale(ours_N, "logit"), "value_production": z_N,
        }
    )  # fmt: skip


def test_the_worst_cross_is_found_and_confirmed():
    found = worst_slices(_predictions(worse=(3, 1)))
    planted = next(worst for worst in found if worst.slice == "country=3, device=1")
    assert planted.confirmed and planted.harm > planted.low > 0
    assert planted.harm == max(worst.harm for worst in found if worst.confirmed)


def test_what_was_only_searched_for_is_not_confirmed():
    confirmed = [
        worst for seed in range(12) for worst in worst_slices(_predictions(seed, rows=20_000)) if worst.harm > 0.02 and worst.confirmed
    ]
    assert len(confirmed) <= 1


def test_a_slice_without_positives_proves_nothing():
    table = _predictions(rows=10_000)
    label_N, country_N = table["label_click"].to_numpy().copy(), table["country"].to_numpy()
    label_N[country_N == 2] = 0
    table = table.set_column(table.column_names.index("label_click"), "label_click", pa.array(label_N))
    assert not any(worst.slice == "country=2" for worst in worst_slices(table, kept=100))


def test_nothing_to_compare_is_no_slice():
    assert worst_slices(_predictions().drop_columns("production_click")) == []


def _examples(rng, rows=5_000, shift=0.0, nulls=0.0, day=0, rate=0.1, late=0.0):
    known = day * DAY_MS + rng.integers(0, DAY_MS // 2, rows)
    label_N = rng.random(rows) < rate
    known = np.where(label_N & (rng.random(rows) < late), (day + 3) * DAY_MS, known)
    return pa.table(
        {
            "feature_age": pa.array(np.where(rng.random(rows) < nulls, np.nan, rng.normal(shift, 1, rows)), from_pandas=True),
            "feature_tab": pa.array(rng.choice(["a", "b", "c"], rows)), "feature_count": pa.array(rng.integers(0, 40, rows)),
            "label_click": label_N.astype(np.float32), "known_at": known,
        }
    )  # fmt: skip


def test_drift_names_what_moved_and_what_went_missing():
    rng = np.random.default_rng(0)
    same = drift(_examples(rng), _examples(rng))
    assert max(entry["shift"] for entry in same) < 0.02
    moved = drift(_examples(rng), _examples(rng, shift=1.0))[0]
    assert moved["feature"] == "age" and moved["shift"] > 0.3
    gone = drift(_examples(rng), _examples(rng, nulls=0.4))[0]
    assert gone["feature"] == "age" and gone["nulls_after"] == pytest.approx(0.4, abs=0.03) and gone["shift"] < 0.03


def test_the_weekday_of_the_judged_day_is_no_drift():
    rng = np.random.default_rng(0)
    week, day = (_examples(rng).append_column("feature_weekday", pa.array(rng.choice(days, 5_000))) for days in (range(7), [3]))
    assert max(entry["shift"] for entry in drift(week, day)) < 0.02


def _days(rng, **last):
    days = {f"1970-01-0{day + 1}": _examples(rng, day=day, late=0.3) for day in range(5)}
    return {**days, "1970-01-06": _examples(rng, day=5, **{"late": 0.3, **last})}


def test_cohorts_are_compared_at_equal_label_age():
    """A third of the positives come three days late: the last day lacks them, and so must the earlier ones."""
    rng = np.random.default_rng(0)
    found = cohorts(_days(rng), ["click"], 6 * DAY_MS, "UTC")
    rates = [found[day]["click"]["rate"] for day in sorted(found)]
    assert max(rates) - min(rates) < 0.02 and odd_cohorts(found, ["1970-01-06"]) == []
    waited = cohorts(_days(rng), ["click"], 60 * DAY_MS, "UTC")
    assert waited["1970-01-01"]["click"]["rate"] > rates[0] + 0.02


def test_a_judged_day_whose_labels_are_off_is_told():
    found = cohorts(_days(np.random.default_rng(0), rate=0.16), ["click"], 6 * DAY_MS, "UTC")
    [told] = odd_cohorts(found, ["1970-01-06"])
    assert "click on 1970-01-06" in told and "equal label age" in told


def test_ablation_names_the_feature_that_one_model_leans_on():
    rng = np.random.default_rng(0)
    age_N, rate_N = rng.normal(0, 1, 20_000), rng.normal(0, 1, 20_000)
    label_N = rng.random(20_000) < from_scale(-1 + age_N + rate_N, "logit")
    examples = pa.table({"feature_age": age_N, "feature_rate": rate_N, "label_click": label_N.astype(float)})

    def model(age, rate):
        def score(table):
            features = [np.nan_to_num(table[f"feature_{name}"].to_numpy().astype(float)) for name in ("age", "rate")]
            return {"click": from_scale(-1 + age * features[0] + rate * features[1], "logit")}

        return score

    found = ablate(examples, {"production": model(1, 1), "challenger": model(1, 0.05)}, {"click": "binary"}, ["age", "rate"])
    assert found[0]["feature"] == "rate" and found[0]["production"] > 0.05 > abs(found[0]["challenger"])
