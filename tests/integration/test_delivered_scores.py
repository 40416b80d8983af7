"""Behind a repair every score that leaves the ranker is the delivered one: pairs, history, final model, replay, `scripts/score.py`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.integration.conftest import configure
from trainer import pipeline
from trainer.checkpoint import read_bundle
from trainer.config import ScoreConfig, load
from trainer.evaluate import RankerScorer
from trainer.export import read_manifest, read_pairs
from trainer.export.as_of import read_as_of, read_records
from trainer.gate import conclude
from trainer.release import Registry
from trainer.schema.examples import read_manifest as read_examples
from trainer.schema.examples import read_partition, read_tail
from trainer.schema.policy import GatePolicy
from trainer.schema.repair import Curve, Repair, read_repair
from trainer.schema.verdict import APPLIED, RepairReport
from trainer.stages.delivery import delivered_pairs
from trainer.stages.scoring import score

pytestmark = pytest.mark.integration

KEYS = ["user", "item", "time"]


def bent(offset: float, slope: float) -> Repair:
    curve = Curve(method="platt", scale="logit", x=[0.0], y=[offset], slope=[slope], below=slope, above=slope)
    return Repair(curves={"click": curve})


FIRST, SECOND = bent(-0.7, 0.9), bent(0.5, 1.2)


def night(root: Path, log: Path, name: str, repair: Repair, patch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """A run whose scores pass behind these curves, whatever a few thousand rows would say."""
    report = RepairReport(status=APPLIED, sentence="repaired", sha256=repair.sha256)
    with patch.context() as during:
        during.setattr("trainer.gate.judge_and_repair", lambda *_, **__: (conclude([], GatePolicy(name="refresh"), report), repair))
        config = configure(
            "data=simulated", f"data.root={log}", f"registry.root={root / 'registry'}", f"rebuild.root={root / 'rebuild'}",
            f"run_dir={root / name}", "gate.first=promote", "fit.day_weights=true", "downstream.enabled=true", "model.max_history=512",
            *overrides,
        )  # fmt: skip
        pipeline.retrain(config)
    return root / name


@pytest.fixture(scope="module")
def nights(simulated, tmp_path_factory):
    """Two nights with a repair each; what the second handed to the choice of its final model; production of that night."""
    root, patch, seen = tmp_path_factory.mktemp("delivered"), pytest.MonkeyPatch(), {}
    night(root, simulated, "first", FIRST, patch, "as_of=2026-03-05", "export.as_of=[2026-03-03,2026-03-04]")
    live = Registry(root / "registry").production_path()
    assert live is not None and read_repair(live) == FIRST
    from trainer.downstream import choose_final

    def spied(out, theirs, table, before, *rest, **more):
        seen.update(table=table, before=before)
        return choose_final(out, theirs, table, before, *rest, **more)

    patch.setattr("trainer.downstream.choose_final", spied)
    night(root, simulated, "second", SECOND, patch, "as_of=2026-03-07", "export.as_of=[2026-03-05,2026-03-06]")
    patch.undo()
    return root, live, seen


def without_seal(release: Path, out: Path) -> Path:
    """A copy of a release's bundle that nothing bends."""
    return Path(shutil.copytree(release / "bundle", out))


def keyed(table: pa.Table, name: str) -> dict[tuple, float]:
    return dict(zip(zip(*(table[key].to_pylist() for key in KEYS), strict=True), table[name].to_pylist(), strict=True))


def test_pairs_hold_the_delivered_scores_and_the_manifest_names_the_curves(nights):
    root, _, _ = nights
    predictions, pairs = pq.read_table(root / "second" / "predictions.parquet"), read_pairs(root / "second" / "embeddings")
    assert read_manifest(root / "second" / "embeddings").repair == SECOND.sha256 == read_repair(root / "second").sha256
    for action, expected_N in SECOND.scores({"click": predictions["challenger_click"].to_numpy()}).items():
        np.testing.assert_array_equal(pairs[f"score_{action}"], expected_N.astype(np.float32))
    np.testing.assert_array_equal(pairs["score_like"], predictions["challenger_like"].to_numpy().astype(np.float32))
    assert np.abs(pairs["score_click"].to_numpy() - predictions["challenger_click"].to_numpy()).max() > 0.01


def test_the_live_final_model_is_replayed_on_what_each_release_delivers(nights, tmp_path: Path):
    root, live, seen = nights
    pairs = read_pairs(root / "second" / "embeddings")
    for name in ("score_click", "score_like", "dot"):
        assert seen["table"][name].to_pylist() == pairs[name].to_pylist()
    examples = read_examples(root / "rebuild")
    raw = RankerScorer(read_bundle(without_seal(live, tmp_path / "bundle")))
    expected: dict[tuple, float] = {}
    for bucket in range(examples.user_buckets):
        rows, tail = (read(root / "rebuild", examples, "2026-03-07", bucket) for read in (read_partition, read_tail))
        score_N = FIRST.curves["click"](raw.score(rows, tail, 2**62).score_N["click"])
        keys = pa.table({"user": rows["user"], "item": rows["item"], "time": rows["request_time"], "score": score_N})
        expected |= keyed(keys, "score")
    before = keyed(seen["before"], "score_click")
    assert before.keys() == expected.keys() and before
    assert max(abs(before[key] - expected[key]) for key in before) < 1e-6


def test_a_past_day_is_behind_the_curves_of_the_release_that_scores_it(nights, tmp_path: Path):
    root, live, _ = nights
    folder = root / "second" / "embeddings"
    records = {record.day: record for record in read_records(folder)}
    challenger, production = read_bundle(root / "second" / "challenger"), read_bundle(live / "bundle")
    whose = {challenger.sha256: SECOND, production.sha256: FIRST}
    owners = {day: record.producer.split("/", 1) for day, record in records.items()}
    assert {day: record.repair for day, record in records.items()} == {day: whose[owner].sha256 for day, (owner, _) in owners.items()}
    assert {owner for owner, _ in owners.values()} == set(whose), "a day by each, or the test shows nothing"
    raw = {challenger.sha256: challenger, production.sha256: read_bundle(without_seal(live, tmp_path / "bundle"))}
    history, examples = read_as_of(folder), read_examples(root / "rebuild")
    for day, (owner, weights) in owners.items():
        written = keyed(history.filter(pa.compute.equal(history["day"], day)), "score_click")
        scorer, got = RankerScorer(raw[owner], weights), {}
        for bucket in range(examples.user_buckets):
            rows, tail = (read(root / "rebuild", examples, day, bucket) for read in (read_partition, read_tail))
            score_N = whose[owner].curves["click"](scorer.score(rows, tail, 2**62).score_N["click"])
            keys = pa.table({"user": rows["user"], "item": rows["item"], "time": rows["request_time"], "score": score_N})
            got |= keyed(keys, "score")
        assert max(abs(got[key] - value) for key, value in written.items()) < 1e-6


def test_score_py_delivers_the_scores_of_the_pair_file(nights, simulated, tmp_path: Path):
    root, _, _ = nights
    version = json.loads((root / "second" / "summary.json").read_text())["release"]["version"]
    examples = read_examples(root / "rebuild")
    spec = configure(f"data.root={simulated}", "run_dir=x", "registry.root=x").data
    parts = [read_partition(root / "rebuild", examples, "2026-03-07", bucket) for bucket in range(examples.user_buckets)]
    rows = pa.concat_tables(parts, promote_options="default")
    own = {name: rows[f"feature_{name}"] for name in spec.features}
    pq.write_table(pa.table({"user": rows["user"], "item": rows["item"], "time": rows["request_time"], **own}), tmp_path / "rows.parquet")
    values = [
        f"input={tmp_path / 'rows.parquet'}", f"out={tmp_path / 'out.parquet'}", f"version={version}", "data=simulated",
        f"++data.root={simulated}", f"++rebuild.root={root / 'rebuild'}", "++rebuild.user_buckets=2", "++rebuild.workers=1",
        "++scan.workers=1", f"++registry.root={root / 'registry'}",
    ]  # fmt: skip
    with initialize_config_module("trainer.conf", version_base="1.3"):
        score(load(ScoreConfig, OmegaConf.to_container(compose("score", values), resolve=True)))
    written, pairs = pq.read_table(tmp_path / "out.parquet"), read_pairs(root / "second" / "embeddings")
    for name in ("score_click", "score_like", "dot"):
        got, expected = keyed(written, name), keyed(pairs, name)
        assert got.keys() == expected.keys()
        assert max(abs(got[key] - expected[key]) for key in got) < 1e-5


def test_pairs_without_a_repair_are_as_the_ranker_gives_them():
    rng = np.random.default_rng(0)
    predictions = pa.table(
        {"user": [1, 2], "item": [3, 4], "time": [5, 6], "challenger_click": rng.random(2), "challenger_like": rng.random(2),
         "production_click": rng.random(2)}
    )  # fmt: skip
    plain = delivered_pairs(predictions, np.float32([1, 2]), None)
    assert plain.column_names == ["user", "item", "time", "dot", "score_click", "score_like"]
    assert plain["score_click"].to_pylist() == predictions["challenger_click"].to_numpy().astype(np.float32).tolist()
    behind = delivered_pairs(predictions, np.float32([1, 2]), FIRST)
    assert behind["score_like"].equals(plain["score_like"]) and not behind["score_click"].equals(plain["score_click"])
