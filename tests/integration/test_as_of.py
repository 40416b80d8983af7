"""Features of past days come from weights that had not seen them; the final model trains on these and is judged on the holdout."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.checkpoint import read_bundle
from trainer.downstream import final_scores, read_final
from trainer.errors import ConfigError, ExportError
from trainer.export import read_manifest
from trainer.export.as_of import read_as_of, read_records
from trainer.release import Registry
from trainer.schema.bundle import SERVING, seen_until

pytestmark = pytest.mark.integration

HOLDOUT, PAST, NEXT = "2026-03-06", ["2026-03-04", "2026-03-05"], "2026-03-07"


def run(root: Path, log: Path, *overrides: str, name: str = "run", as_of: str = HOLDOUT) -> Path:
    out = root / name
    config = configure(
        "data=simulated", f"data.root={log}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}",
        f"run_dir={out}", f"as_of={as_of}", "gate.first=promote", "fit.day_weights=true", "downstream.enabled=true", *overrides,
    )  # fmt: skip
    pipeline.retrain(config)
    return out


def released(out: Path) -> Path:
    live = Registry(out.parent / "registry").production_path()
    assert live is not None
    return live


def final_checks(out: Path) -> dict[str, dict]:
    checks = json.loads((out / "verdict.json").read_text())["checks"]
    return {check["name"]: check for check in checks if check["family"] == "downstream"}


@pytest.fixture(scope="module")
def history(simulated, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("as_of"), simulated, f"export.as_of=[{','.join(PAST)}]")


def test_every_day_is_scored_by_weights_from_before_it(history: Path):
    bundle = read_bundle(history / "challenger")
    until = seen_until(bundle.manifest)
    trained = sorted(bundle.manifest.trained)
    assert until == {SERVING: trained[-1]} | {f"days/{day}.safetensors": day for day in trained}
    records = read_records(history / "embeddings")
    assert [record.day for record in records] == PAST
    for record in records:
        assert record.seen_until < record.day
        assert record.producer == f"{bundle.sha256}/days/{record.seen_until}.safetensors"
        assert not record.in_sample
    last = bundle.tensors(f"days/{trained[-1]}.safetensors")
    for name, tensor in bundle.tensors(SERVING).items():
        assert np.array_equal(tensor, last[name]), "the last day's weights are the served ones"
    assert any(not np.array_equal(tensor, last[name]) for name, tensor in bundle.tensors(f"days/{trained[0]}.safetensors").items())


def test_the_history_has_every_row_with_finite_features_in_one_space(history: Path):
    table = read_as_of(history / "embeddings")
    assert table.num_rows == sum(record.rows for record in read_records(history / "embeddings")) > 0
    dim = read_manifest(history / "embeddings").dim
    for name in ("user_vector", "item_vector"):
        assert table.schema.field(name).type.list_size == dim
        assert np.isfinite(table[name].combine_chunks().flatten().to_numpy()).all()
    assert set(table["day"].unique().to_pylist()) == set(PAST)


def test_the_final_model_is_trained_on_the_history_and_judged_on_the_holdout(history: Path):
    report = json.loads((history / "downstream.json").read_text())
    assert report["status"] == "ok"
    assert report["trained_on"].startswith("earlier days")
    assert {"without", "with"} <= set(report["arms"])


def test_the_judged_final_model_is_released_and_is_the_live_one_of_the_next_night(history: Path, simulated):
    report, sealed = json.loads((history / "downstream.json").read_text()), released(history) / "downstream"
    about = read_final(sealed)
    assert about == read_final(history / "downstream") and about.sha256 == report["final_sha256"]
    assert (about.days, about.feature_space) == (PAST, read_manifest(history / "embeddings").feature_space)
    assert len(about.features) == report["arms"]["with"]["features"]
    assert report["final"] in (history / "report.html").read_text()
    table = read_as_of(history / "embeddings")
    assert np.isfinite(final_scores(sealed, [table])[0]).all()
    night = run(history.parent, simulated, "release.auto=false", name="night", as_of=NEXT)
    assert read_manifest(night / "embeddings").feature_space == about.feature_space, "the same space, as a warm start keeps it"
    checks = final_checks(night)
    assert set(checks) == {"replay_mean", "replay_ne", "replay_auc"}
    assert checks["replay_auc"]["n"] > 0
    assert read_final(night / "downstream") == about, "it moves on with the new embeddings"


def test_without_earlier_weights_a_day_is_refused_or_marked(simulated, tmp_path: Path):
    first = "2026-03-02"
    with pytest.raises(ExportError, match="have seen this day"):
        run(tmp_path, simulated, f"export.as_of=[{first}]")
    out = run(tmp_path, simulated, f"export.as_of=[{first}]", "export.as_of_in_sample=true")
    assert [record.in_sample for record in read_records(out / "embeddings")] == [True]
    assert pa.compute.all(read_as_of(out / "embeddings")["in_sample"]).as_py()
    assert not json.loads((out / "downstream.json").read_text())["trained_on"].startswith("earlier days"), "in-sample rows train nothing"
    with pytest.raises(ConfigError, match="no day of the log before the holdout"):
        run(tmp_path / "x", simulated, f"export.as_of=[{HOLDOUT}]")
    assert not (tmp_path / "x" / "run" / "challenger").exists(), "a wrong day is told before training"
