"""Scoring any rows with a release repeats what the gate judged, and copes with what the release has never seen."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.config import ScoreConfig, load
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.release import Registry
from trainer.schema.predictions import CHALLENGER
from trainer.stages.scoring import score

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def released(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("score")
    config = configure(
        "data=simulated", f"data.root={simulated}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}",
        f"run_dir={root / 'run'}", "as_of=2026-03-07", "gate.first=promote", "model.max_history=512", "export.enabled=false",
    )  # fmt: skip
    pipeline.retrain(config)
    return root


def asked(released, simulated, rows: pa.Table, *overrides):
    path, out = released / "rows.parquet", released / "scores.parquet"
    pq.write_table(rows, path)
    values = [f"input={path}", f"out={out}", "data=simulated", f"++data.root={simulated}", f"++rebuild.root={released / 'rebuild'}"]
    values += ["++rebuild.user_buckets=2", "++rebuild.workers=1", "++scan.workers=1", f"++registry.root={released / 'registry'}"]
    with initialize_config_module("trainer.conf", version_base="1.3"):
        config = load(ScoreConfig, OmegaConf.to_container(compose("score", [*values, *overrides]), resolve=True))
    count = score(config)
    written = pq.read_table(out)
    assert len(written) == count
    assert written.select(rows.column_names).equals(rows), "rows come out in their order, with all their columns"
    assert not list(released.glob(".scores*")), "nothing is left beside the output"
    return written


@pytest.fixture(scope="module")
def judged(released, simulated):
    """The judged rows with what the log's own columns held, in an order of our own."""
    from trainer.schema.examples import FEATURE, read_manifest, read_partition

    root = released / "rebuild"
    manifest = read_manifest(root)
    day = max(record.day for record in manifest.partitions)
    parts = [read_partition(root, manifest, day, bucket) for bucket in range(manifest.user_buckets)]
    table = pa.concat_tables(parts, promote_options="default")
    spec = configure("data=simulated", f"data.root={simulated}", "run_dir=x", "registry.root=x").data
    own = {name: table[FEATURE + name] for name in spec.features}
    rows = pa.table({"user": table["user"], "item": table["item"], "time": table["request_time"], **own})
    return rows.take(pa.array(np.random.default_rng(0).permutation(len(rows))))


def keyed(table: pa.Table, name: str) -> dict:
    return dict(zip(zip(*(table[key].to_pylist() for key in ("user", "item", "time")), strict=True), table[name].to_pylist(), strict=True))


def test_the_judged_rows_get_the_scores_that_were_judged(released, simulated, judged):
    written = asked(released, simulated, judged)
    predictions = pq.read_table(released / "run" / "predictions.parquet")
    names = [name.removeprefix(CHALLENGER) for name in predictions.column_names if name.startswith(CHALLENGER)]
    assert names and len(written) == len(predictions)
    for name in names:
        got, expected = keyed(written, f"score_{name}"), keyed(predictions, CHALLENGER + name)
        assert got.keys() == expected.keys()
        assert max(abs(got[key] - expected[key]) / max(1, abs(expected[key])) for key in expected) < 1e-5
    values = keyed(predictions, "value_challenger")
    assert max(abs(value - values[key]) / max(1, abs(values[key])) for key, value in keyed(written, "value").items()) < 1e-5


def test_a_row_scores_alike_in_any_company_and_other_columns_come_through(released, simulated, judged):
    whole = keyed(asked(released, simulated, judged), "score_click")
    some = judged.slice(0, 40).append_column("note", pa.array([str(place) for place in range(40)]))
    part = asked(released, simulated, some)
    assert part["note"].equals(some["note"])
    worst = max(abs(whole[key] - value) for key, value in keyed(part, "score_click").items())
    assert worst < 1e-6, worst


def test_however_the_rows_are_cut_they_score_alike(released, simulated, judged, monkeypatch):
    whole = asked(released, simulated, judged)
    monkeypatch.setattr("trainer.stages.scoring._BATCH_ROWS", 97)
    monkeypatch.setattr("trainer.rebuild.spill.GROUP_ROWS", 50)
    cut = asked(released, simulated, judged)
    for name in set(whole.column_names) - set(judged.column_names):
        np.testing.assert_allclose(cut[name].to_numpy(), whole[name].to_numpy(), rtol=1e-5, atol=1e-6)


def test_rows_that_cannot_be_written_leave_the_old_scores(released, simulated, judged, monkeypatch):
    rows, out = judged.slice(0, 5), released / "scores.parquet"
    asked(released, simulated, rows)
    before = out.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("trainer.stages.scoring.os.posix_fallocate", "trainer.stages.scoring.sync", "trainer.rebuild.spill.pa.OSFile"):
        with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left"):
            patch.setattr(place, full)
            asked(released, simulated, rows)
        assert out.read_bytes() == before
        assert not list(released.glob(".scores*"))


def test_unknown_users_and_items_and_days_after_the_log_are_scored(released, simulated, judged):
    first = judged.slice(0, 3).select(["user", "item", "time"])
    later = first["time"].to_numpy() + 3 * 86_400_000
    strange = pa.table({"user": first["user"], "item": first["item"], "time": later})
    unknown = pa.table({"user": pa.array([10**12] * 3), "item": pa.array([10**12, 10**12 + 1, 10**12 + 2]), "time": first["time"]})
    written = asked(released, simulated, pa.concat_tables([strange, unknown.cast(strange.schema)]))
    for name in ("score_click", "value", "dot"):
        assert np.isfinite(written[name].to_numpy()).all()


def test_history_and_counters_move_with_the_time_of_the_row(released, simulated, judged, capsys):
    row = judged.slice(0, 1).select(["user", "item"])
    times = pa.array(judged["time"].slice(0, 1).to_numpy() - np.array([5, 0]) * 86_400_000)
    rows = pa.table({name: pa.concat_arrays([row[name].combine_chunks()] * 2) for name in ("user", "item")} | {"time": times})
    early, late = asked(released, simulated, rows)["score_click"].to_pylist()
    assert early != late
    own = [name for name in judged.column_names if name not in ("user", "item", "time")]
    assert f"has no column {', '.join(own)}: scored as missing" in capsys.readouterr().out
    asked(released, simulated, judged.slice(0, 2))
    assert "missing" not in capsys.readouterr().out


def test_a_file_that_cannot_be_scored_gets_one_clear_error(released, simulated, judged):
    rows = judged.slice(0, 2).select(["user", "item", "time"])
    with pytest.raises(ConfigError, match="lack a column"):
        asked(released, simulated, rows.drop_columns("time"))
    with pytest.raises(ConfigError, match="no instant"):
        asked(released, simulated, rows.set_column(2, "time", pa.array(["x", "y"])))
    with pytest.raises(DataError, match="a key is null"):
        asked(released, simulated, rows.set_column(0, "user", pa.array([None, 1], rows["user"].type)))
    with pytest.raises(ConfigError, match="scoring writes"):
        asked(released, simulated, rows.append_column("value", pa.array([0.0, 0.0])))
    with pytest.raises(DataError, match="no row to score"):
        asked(released, simulated, rows.slice(0, 0))
    with pytest.raises(ConfigError, match="no such release"):
        asked(released, simulated, rows, "version=nothing")
    with pytest.raises(CheckpointError, match="nothing is live"):
        asked(released, simulated, rows, f"++registry.root={released / 'empty'}")


def test_a_bundle_inside_a_release_scores_as_the_release(released, simulated, judged):
    rows = judged.slice(0, 20)
    bundle = Registry(released / "registry").production_path() / "bundle"
    assert asked(released, simulated, rows).equals(asked(released, simulated, rows, f"bundle={bundle}"))
