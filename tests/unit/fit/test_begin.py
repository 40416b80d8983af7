"""Where training begins: production carried over, renamed, cut to what both read, measured and reported."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import small, warm
from trainer.checkpoint import write_bundle
from trainer.config.training import WarmStartConfig
from trainer.data import Encoder
from trainer.data.inputs import item_table
from trainer.errors import CheckpointError, ConfigError
from trainer.fit.begin import begin, merged, renamed_inputs, renamed_vocabularies, rules_of, transfer_report
from trainer.schema.bundle import BundleManifest
from trainer.schema.inputs import InputSpec
from trainer.schema.plain import as_plain
from trainer.schema.vocabulary import Vocabulary

train = sys.modules["trainer.fit.train"]  # the package has a function of that name


def bundle_of(path, ranker, encoder):
    examples, _ = small.tables()
    items = item_table(encoder.vocabularies["item"], encoder.inputs.item_features, [examples], None)
    manifest = BundleManifest(
        code_version="test",
        shape=as_plain(ranker.shape),
        inputs=encoder.inputs,
        features={},
        labels={},
        value={},
        config={},
        axes={},
        trained={},
    )
    state = ranker.state_dict()
    return write_bundle(
        path, manifest, trunk=state, serving=state, optimizer=warm.random_moments(ranker), vocabularies=encoder.vocabularies, items=items
    ), items


def start(path, old, source, new, target, tables=None, **settings):
    production, items = bundle_of(path, source, old)
    config = SimpleNamespace(warm_start=WarmStartConfig(**settings), seed=3)
    probes = [(*(tables or small.tables()), warm.LATE)]
    return begin(config, target, new, production, probes, items), production


def renamed(table, names):
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def test_a_grown_challenger_starts_from_production_and_says_so(tmp_path):
    old = small.encoder(max_history=4)
    new = Encoder(small.inputs(max_history=8), warm.reordered(old, add=[900]).vocabularies)
    source = warm.build(old)
    begun, production = start(tmp_path, old, source, new, warm.fresh(new, dim=24, layers=3, like=source))
    report = begun.report
    assert report["exact"] and report["source"] == production.sha256 and len(report["sha256"]) == 64
    assert report["parity"]["max_difference"] <= report["parity"]["bound"], "histories are cut to what both read"
    assert report["vocabularies"]["item"] == {"kept": 40, "new": 1, "dropped": 0, "traffic_kept": 1.0}
    assert report["coverage"] == dict.fromkeys(("tables", "trunk", "heads", "context"), 1.0)
    assert report["new_items"]["count"] == 0, "900 is in the vocabulary, not among the items listed"
    assert set(begun.moments) == {name for name, _ in begun.ranker.named_parameters()}
    assert begun.ranker.training
    assert begun.fresh["blocks.2.query.weight"].all() and not begun.fresh["blocks.1.query.weight"][:, :16].any()


def test_renamed_features_and_actions_keep_their_columns_and_outputs(tmp_path):
    rename = {"rate": "rate_7d", "click": "click@feed", "tab": "surface"}
    old = small.encoder()
    known = {"rate_7d", "age", "click@feed", "like", "surface", "author"}
    inputs = renamed_inputs(old.inputs, known, rename)
    assert [entry.name for entry in inputs.numeric] == ["rate_7d", "age"] and inputs.categorical == {"surface": "tab"}
    vocabularies = renamed_vocabularies(old.vocabularies, {"item", "author", "surface"}, rename)
    assert set(vocabularies) == {"item", "author", "surface"}
    inputs = dataclasses.replace(inputs, categorical={"surface": "surface"}, token_features={"surface": "surface"})
    new = Encoder(inputs, vocabularies)
    columns = {"feature_rate": "feature_rate_7d", "label_click": "label_click@feed", "feature_tab": "feature_surface"}
    tables = tuple(renamed(table, columns) for table in small.tables())
    begun, _ = start(tmp_path, old, warm.build(old), new, warm.fresh(new), tables, rename=rename)
    assert begun.report["exact"] and begun.report["parity"]["max_difference"] == 0
    assert set(begun.report["parity"]["outputs"]) == {"click@feed", "like"}


def test_a_feature_that_the_log_has_lost_is_read_as_missing_and_reported(tmp_path):
    old, new = small.encoder(), small.encoder(numeric=("rate",))
    examples, tail = small.tables()
    gone = (examples.drop_columns(["feature_age"]), tail)
    begun, _ = start(tmp_path / "gone", old, warm.build(old), new, warm.fresh(new), gone)
    assert begun.report["removed"]["age"]["mean_change"] is None and not begun.report["exact"]
    begun, _ = start(tmp_path / "there", old, warm.build(old), new, warm.fresh(new))
    assert begun.report["removed"]["age"]["mean_change"] > 0


def test_an_approximate_start_is_measured(tmp_path):
    old = small.encoder()
    source = warm.build(old)
    target = warm.fresh(old, layers=1, like=source)
    with pytest.raises(CheckpointError, match="refused"):
        start(tmp_path / "no", old, source, old, target)
    begun, _ = start(tmp_path / "yes", old, source, old, target, approximate=True)
    assert not begun.report["exact"] and begun.report["parity"]["max_difference"] > 1e-3
    assert any("has only 1 blocks" in reason for reason in begun.report["inexact"])


def test_a_dry_run_shows_a_refused_plan_before_it_stops(tmp_path, capsys):
    old = small.encoder()
    source = warm.build(old)
    with pytest.raises(CheckpointError, match="refused"):
        start(tmp_path, old, source, old, warm.fresh(old, layers=1, like=source), dry_run=True)
    assert "blocks.1.up.weight" in capsys.readouterr().out


def test_moments_start_afresh_where_asked(tmp_path):
    old = small.encoder()
    begun, _ = start(tmp_path, old, warm.build(old), old, warm.fresh(old), optimizer="reset")
    assert begun.moments == {}


def test_what_is_served_may_be_averaged_with_the_beginning(tmp_path):
    old = small.encoder()
    begun, production = start(tmp_path, old, warm.build(old), old, warm.fresh(old), merge_alpha=0.25, approximate=True)
    began = {name: tensor.clone() for name, tensor in begun.ranker.state_dict().items()}
    ended = {name: tensor + 1 for name, tensor in began.items()}
    served = merged(begun, ended, WarmStartConfig(merge_alpha=0.25, approximate=True), production)
    assert all(torch.allclose(served[name], began[name] + 0.25) for name in began)
    with pytest.raises(ConfigError, match="asked for twice"):
        WarmStartConfig(merge_alpha=0.25)


def test_neighbours_come_from_the_bundles_items(tmp_path):
    old, new = small.encoder(items=range(100, 130)), small.encoder(items=range(100, 143))
    examples, _ = small.tables()
    source = warm.build(old)
    production, _ = bundle_of(tmp_path, source, old)
    items = item_table(new.vocabularies["item"], new.inputs.item_features, [examples], production.items())
    config = SimpleNamespace(warm_start=WarmStartConfig(new_ids="neighbours"), seed=0)
    begun = begin(config, warm.fresh(new), new, production, [(*small.tables(), warm.LATE)], items)
    table = begun.ranker.state_dict()["embedding.item.weight"]
    authors = items["feature_author"].to_pylist()[30:]
    known = [author is not None for author in authors]
    assert any(known)
    same = [torch.equal(row, table[1]) for row in table[32:]]
    assert [not equal for equal in same] == known
    assert begun.report["new_items"]["count"] == 13
    assert pa.types.is_integer(items["feature_author"].type)


def test_a_renamed_vocabulary_with_the_same_ids_is_reported_as_kept():
    old = small.encoder()
    vocabularies = {**old.vocabularies, "surface": old.vocabularies["tab"]}
    del vocabularies["tab"]
    inputs = dataclasses.replace(old.inputs, categorical={"surface": "surface"}, token_features={"surface": "surface"})
    new = Encoder(inputs, vocabularies)
    the_plan, sides = warm.transfer(old, warm.build(old), new, warm.fresh(new), rename={"tab": "surface"})
    report = transfer_report(the_plan, None, *sides)
    assert report["vocabularies"]["surface"] == {"kept": 3, "new": 0, "dropped": 0, "traffic_kept": 1.0}


def test_every_setting_of_a_transfer_reaches_its_rules():
    settings = {
        "new_ids": "mean", "new_ids_by": {"author": "zero"}, "new_id_noise": 0.5, "rename": {"a": "b"}, "insert": "stack",
        "insert_at": {"blocks": [0]}, "approximate": True, "shrink": 0.4, "perturb": 0.1, "coverage": {"trunk": 0.5},
    }  # fmt: skip
    rules = as_plain(rules_of(WarmStartConfig(**settings)))
    assert rules == {**{name: value for name, value in settings.items() if name != "new_id_noise"}, "noise": 0.5}


@pytest.mark.parametrize(("days", "left"), [(0, [1, 2, 3, 4]), (10, [2, 3, 4]), (3, [3, 4]), (1, [4])])
def test_ids_that_nobody_saw_for_so_many_days_are_retired(tmp_path, monkeypatch, days, left):
    def seen(ids, last):
        keys = pa.array(ids)
        return Vocabulary("item", keys, np.ones(len(ids), np.int64), pa.array(["2025-01-01"] * len(ids)), pa.array(last))

    inputs = InputSpec(actions=[], history_actions=[], numeric=[], categorical={}, item_features={}, token_features={}, max_history=8)
    seen([4], ["2026-01-31"]).write(tmp_path / "vocabularies" / "item.parquet")
    production = SimpleNamespace(
        manifest=SimpleNamespace(inputs=inputs), vocabularies={"item": seen([1, 2, 3], ["2026-01-01", "2026-01-25", "2026-01-28"])}
    )
    monkeypatch.setattr(train, "shard_keys", lambda *_: [0])
    monkeypatch.setattr(train, "partition", lambda *_: (pa.table({"item": [4]}), None))
    monkeypatch.setattr(train, "freeze_inputs", lambda *_, **__: inputs)
    monkeypatch.setattr(train, "value_weights", lambda _: {})
    config = SimpleNamespace(warm_start=WarmStartConfig(retire_after_days=days), data=SimpleNamespace(actions={}))
    manifest = SimpleNamespace(numeric={}, categorical={})
    plan_of_days = SimpleNamespace(train=["2026-01-30", "2026-01-31"])
    _, vocabularies = train.freeze(config, tmp_path, manifest, plan_of_days, production, small.model_config())
    assert vocabularies["item"].keys.to_pylist() == left
