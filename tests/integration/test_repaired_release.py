"""A repaired release is served repaired; what production logged is repeated exactly, or the run holds."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import configure
from trainer.checkpoint import read_bundle
from trainer.config import DiagnoseRunConfig
from trainer.diagnose import diagnose
from trainer.evaluate import RankerScorer, rescoring_checks
from trainer.pipeline import retrain, train
from trainer.release import Registry
from trainer.schema.examples import read_manifest, read_partition, read_tail
from trainer.schema.repair import Curve, Repair, write_repair
from trainer.schema.simulation import PART_FILE
from trainer.schema.verdict import PROMOTE
from trainer.simulate.delivery import write_manifest, write_table
from trainer.stages.diagnosing import explain

pytestmark = pytest.mark.integration
CURVE = Curve(method="platt", scale="logit", x=[0.0], y=[0.4], slope=[0.8], below=0.8, above=0.8)


def arguments(log, folder, run, *overrides):
    paths = (f"registry.root={folder}/registry", f"rebuild.root={folder}/examples", f"run_dir={folder}/{run}")
    return (f"data.root={log}", *paths, *overrides)


@pytest.fixture(scope="module")
def live(simulated, tmp_path_factory):
    """A first release on the log up to 2026-03-06."""
    folder = tmp_path_factory.mktemp("repaired")
    summary = retrain(configure(*arguments(simulated, folder, "first", "as_of=2026-03-06", "gate.first=promote")))
    assert summary.verdict == PROMOTE
    return folder


def test_a_sealed_repair_is_part_of_what_production_says(live, tmp_path):
    registry = Registry(live / "registry")
    staged = tmp_path / "staged"
    shutil.copytree(registry.production_path(), staged, ignore=shutil.ignore_patterns("release.json"))
    write_repair(Repair(curves={"click": CURVE}), staged)
    fresh = Registry(tmp_path / "registry")
    fresh.seal("repaired", staged, as_of="2026-03-06", verdict=PROMOTE, parent=None, inputs_sha256="0")
    fresh.promote("repaired", fresh.aliases().revision)
    root = live / "examples"
    manifest = read_manifest(root)
    day = manifest.partitions[-1].day
    part = read_partition(root, manifest, day, 0), read_tail(root, manifest, day, 0), 2**62
    raw, served = (RankerScorer(read_bundle(path)).score(*part).score_N for path in (staged / "bundle", fresh.production_path() / "bundle"))
    np.testing.assert_allclose(served["click"], CURVE(raw["click"]), rtol=1e-12)
    np.testing.assert_array_equal(served["like"], raw["like"])
    assert np.abs(served["click"] - raw["click"]).max() > 0.01


def _patched(log, out, predictions):
    """The log again, its last day's logged scores replaced by what the bundle says of the same rows."""
    shutil.copytree(log, out)
    folder = out / "events" / "dt=2026-03-07"
    table = pq.read_table(folder / PART_FILE)
    keys = zip(*(predictions[name].to_pylist() for name in ("user", "item", "time")), strict=True)
    place = {key: row for row, key in enumerate(keys)}
    rows = [place.get(key) for key in zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "request_time_ms")), strict=True)]
    for action in ("click", "long_view", "like", "follow", "watch_time"):
        said, column = predictions[f"production_{action}"].to_pylist(), f"score_{action}"
        logged = table[column].to_pylist()
        values = pa.array([logged[i] if row is None else said[row] for i, row in enumerate(rows)], table.schema.field(column).type)
        table = table.set_column(table.column_names.index(column), column, values)
    write_table(table, folder / PART_FILE)
    write_manifest(folder, len(table))
    return out


def test_logged_scores_are_repeated_where_they_are_the_bundles_and_hold_where_not(live, simulated, tmp_path):
    for name in ("registry", "examples"):
        shutil.copytree(live / name, tmp_path / name)
    asked = ("as_of=2026-03-07", "evaluation.served_as=production-1")
    summary = train(configure(*arguments(simulated, tmp_path, "other", *asked)))
    config = configure(*arguments(simulated, tmp_path, "other", *asked)).evaluation
    assert {check.outcome for check in rescoring_checks(summary.rescoring, config)} == {"hold"}, "the log's scores are another model's"
    log = _patched(simulated, tmp_path / "log", pq.read_table(tmp_path / "other" / "predictions.parquet"))
    summary = train(configure(*arguments(log, tmp_path, "same", *asked)))
    checks = rescoring_checks(summary.rescoring, config)
    assert len(checks) == 5 and {check.outcome for check in checks} == {"pass"}, [check.sentence for check in checks]
    assert summary.rescoring["rows"] > 1_000


def test_a_run_of_the_main_job_is_explained(live):
    assert (live / "first" / "diagnosis.json").is_file()
    assert diagnose(live / "first").cause == "no production"
    found = explain(DiagnoseRunConfig(run_dir=str(live / "first"), ablation=True, rows=500))
    assert found.ablation and {"feature", "action", "challenger"} <= set(found.ablation[0])
    assert len(found.cohorts) > 1 and found.drift
