"""Two nights with hashed users and authors: rows that never grow, and one hash from training to the scores that are served."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.integration.conftest import configure
from trainer.checkpoint import read_bundle
from trainer.config import ScoreConfig, load
from trainer.errors import CheckpointError, ConfigError
from trainer.fit.train import freeze
from trainer.pipeline import retrain, train
from trainer.release import Registry
from trainer.schema.examples import FEATURE, read_manifest, read_partition, vocabulary_path
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashed import HashedVocabulary, crowding
from trainer.schema.predictions import CHALLENGER
from trainer.schema.vocabulary import Vocabulary
from trainer.stages.scoring import score
from trainer.stages.shipping import ABSORBED

pytestmark = pytest.mark.integration
HASHED = ("model.user_id=true", "model.hashed.user=48", "model.hashed.author=8", "model.hash_seed=11")


def arguments(simulated, folder, run, *overrides):
    return (
        f"data.root={simulated}", f"registry.root={folder}/registry", f"rebuild.root={folder}/examples", f"run_dir={folder}/{run}",
        *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def nights(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hashed")
    absorbed = ("gate.first=promote", "release.absorb=true")
    first = retrain(configure(*arguments(simulated, folder, "first", "as_of=2026-03-06", *absorbed, *HASHED)))
    second = retrain(configure(*arguments(simulated, folder, "second", "as_of=2026-03-07", "release.auto=false", *HASHED)))
    return folder, first, second


def test_no_night_adds_a_row_and_every_row_moves_as_it_is(nights):
    folder, first, _ = nights
    before, after = (
        read_bundle(path) for path in (Registry(folder / "registry").production_path() / "bundle", folder / "second/challenger")
    )
    wanted = {"user": HashFunction(rows=48, seed=11), "author": HashFunction(rows=8, seed=11)}
    absorbed = read_bundle(folder / "first" / ABSORBED).manifest
    assert first.verdict == "PROMOTE" and absorbed.absorbed, "a copy has learned the holdout too"
    assert before.manifest.hashes == after.manifest.hashes == absorbed.hashes == wanted
    for name, hashing in wanted.items():
        assert before.shape.vocabularies[name] == after.shape.vocabularies[name] == hashing.rows + 2
        new = HashedVocabulary.of(hashing, Vocabulary.read(vocabulary_path(folder / "examples", name)))
        assert np.array_equal(after.vocabularies[name].count_V, before.vocabularies[name].count_V + new.count_V), "traffic adds up"
    assert after.item_ids.rows > before.item_ids.rows, "items are listed, and there are new ones"
    transfer = json.loads((folder / "second" / "transfer.json").read_text())
    assert transfer["exact"] and transfer["parity"]["max_difference"] <= transfer["parity"]["bound"]
    assert transfer["vocabularies"]["author"] == {
        "kept": 8, "new": 0, "dropped": 0, "traffic_kept": 1.0, "hash": {"function": "text-fnv1a64-splitmix64", "rows": 8, "seed": 11},
    }  # fmt: skip
    fates = {fate["target"]: fate["fate"] for fate in transfer["fates"] if "author" in str(fate["target"]) or "user" in str(fate["target"])}
    assert len(fates) >= 2 and set(fates.values()) == {"copied"}


def test_the_summary_tells_how_crowded_the_buckets_are(nights):
    folder, *_ = nights
    told = json.loads((folder / "second" / "summary.json").read_text())["data"]["hashed"]
    users = Vocabulary.read(vocabulary_path(folder / "examples", "user"))
    assert set(told) == {"user", "author"} and told["user"] == crowding(HashFunction(rows=48, seed=11), users)
    assert told["user"]["ids"] > told["user"]["used"] and 0 < told["user"]["shared"] <= 1
    assert "author (hashed, 8 rows)" in (folder / "second" / "report.html").read_text()


def test_production_continued_may_have_hashed_what_the_log_has_lost(nights, simulated):
    folder, *_ = nights
    config = configure(*arguments(simulated, folder, "x", *HASHED))
    examples, days = read_manifest(folder / "examples"), SimpleNamespace(train=["2026-03-06"])
    gone = replace(config.model, hashed={**config.model.hashed, "gone": 4})
    _, vocabularies = freeze(config, folder / "examples", examples, days, None, gone)
    assert {name for name, found in vocabularies.items() if isinstance(found, HashedVocabulary)} == {"user", "author"}
    with pytest.raises(ConfigError, match="no such vocabulary"):
        freeze(replace(config, model=gone), folder / "examples", examples, days, None, gone)


def test_scoring_takes_the_hash_of_the_bundle(nights, simulated, tmp_path):
    folder, *_ = nights
    manifest = read_manifest(folder / "examples")
    table = pa.concat_tables(
        [read_partition(folder / "examples", manifest, "2026-03-07", bucket) for bucket in range(2)], promote_options="default"
    )
    spec = configure(*arguments(simulated, folder, "x")).data
    own = {name: table[FEATURE + name] for name in spec.features}
    pq.write_table(
        pa.table({"user": table["user"], "item": table["item"], "time": table["request_time"], **own}), tmp_path / "rows.parquet"
    )
    values = [f"input={tmp_path / 'rows.parquet'}", f"out={tmp_path / 'scores.parquet'}", f"++data.root={simulated}"]
    values += [f"++rebuild.root={tmp_path / 'rebuild'}", "++rebuild.user_buckets=2", "++rebuild.workers=1", "++scan.workers=1"]
    with initialize_config_module("trainer.conf", version_base="1.3"):
        config = load(
            ScoreConfig, OmegaConf.to_container(compose("score", [*values, f"+bundle={folder / 'second/challenger'}"]), resolve=True)
        )
    score(config)
    written, judged = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(folder / "second" / "predictions.parquet")
    keys = ("user", "item", "time")

    def by_key(table, name):
        return dict(zip(zip(*(table[key].to_pylist() for key in keys), strict=True), table[name].to_pylist(), strict=True))

    scored, expected = by_key(written, "score_click"), by_key(judged, CHALLENGER + "click")
    assert len(scored) > 100 and np.allclose([scored[key] for key in expected], list(expected.values()), atol=1e-6)


def test_another_hash_on_the_next_night_is_refused_before_training(nights, simulated):
    folder, *_ = nights
    base = arguments(simulated, folder, "other", "as_of=2026-03-07", "release.auto=false", "model.user_id=true", "model.hashed.user=48")
    with pytest.raises(CheckpointError, match="cannot be carried over") as error:
        train(configure(*base, "model.hashed.author=8", "model.hash_seed=12"))
    assert "hashed otherwise" in error.value.got
    with pytest.raises(ConfigError, match="no such vocabulary") as error:
        train(configure(*base, "model.hashed.auhtor=8", "model.hash_seed=11"))
    assert error.value.where == "model.hashed" and "author" in error.value.remedy
