"""Imports give the scores of the checkpoint's own code, or write nothing."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests import rectools_oracle as oracle
from tests.unit.importing.conftest import DIM, HEADS, IDS, ITEMS, OPTIONS, WINDOW, histories, probe
from trainer.checkpoint import build_ranker, read_bundle
from trainer.errors import CheckpointError, ConfigError, RegistryError
from trainer.importing import rectools, run
from trainer.importing.ids import read_ids
from trainer.importing.probe import histories as as_batch
from trainer.importing.run import overrides
from trainer.release import Registry


def live(tmp_path):
    return read_bundle(Registry(tmp_path / "registry").production_path() / "bundle")


def scores(bundle, asked):
    """Scores by id of what the registry now serves."""
    ranker, vocabulary = build_ranker(bundle), bundle.vocabularies["item"]
    rows = vocabulary.lookup(pa.array([IDS[item] for history in asked for item in history], pa.string()))
    with torch.no_grad():
        user = ranker.user_vectors(as_batch(np.array([len(history) for history in asked]), rows))
        every = torch.from_numpy(vocabulary.lookup(pa.array(IDS)))
        return user @ ranker.item_vectors(every, every.new_zeros(ITEMS, 0)).T


def test_a_rectools_model_gives_the_same_scores(tmp_path, exported, tensors, configured):
    imported = run(configured("rectools", exported, promote=True))
    assert imported.live and imported.proof.rows == 24 and imported.proof.values == 24 * ITEMS
    assert imported.proof.max_difference <= 1e-5 * imported.proof.max_score
    asked = [[3], [], [1, 2, 3, 4, 5, 6], list(range(20)), [9, 9, 9]]
    wanted = oracle.scores(tensors, asked, HEADS)
    torch.testing.assert_close(scores(live(tmp_path), asked), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_seen_as_often_as_the_checkpoints_own_code_sees_it(exported, tensors, configured, masked):
    (exported / rectools.OPTIONS).write_text(json.dumps({**OPTIONS, "use_key_padding_mask": masked}))
    (exported / rectools.PROBE).write_text(json.dumps(probe(tensors, masked=masked)))
    run(configured("rectools", exported))
    (exported / rectools.PROBE).write_text(json.dumps(probe(tensors, masked=not masked)))
    with pytest.raises(CheckpointError, match="another function"):
        run(configured("rectools", exported))


def test_a_plain_state_dict_and_its_names(tmp_path, plain, configured):
    imported = run(configured("state_dict", plain / "model.safetensors", plain, promote=True))
    assert live(tmp_path).vocabularies["item"].keys.to_pylist() == IDS
    assert overrides(imported.model)["normed_layers"] == 2


def test_a_torch_file_under_a_key_in_half_precision(tmp_path, plain, tensors, configured):
    half = {name: value.half() for name, value in tensors.items()}
    torch.save({"model": half, "epoch": 3}, tmp_path / "model.pt")
    pq.write_table(pa.table(probe({name: value.float() for name, value in half.items()})), plain / "probe.parquet")
    names = yaml.safe_load((plain / "names.yaml").read_text())
    (plain / "names.yaml").write_text(yaml.safe_dump({**names, "root": "model"}))
    run(configured("state_dict", tmp_path / "model.pt", plain, promote=True))
    assert live(tmp_path).tensors()["embedding.position"].dtype == torch.float32
    (plain / "names.yaml").write_text(yaml.safe_dump(names))
    with pytest.raises(CheckpointError, match="deeper in the checkpoint"):
        run(configured("state_dict", tmp_path / "model.pt", plain))


def test_a_lightning_checkpoint_gives_its_tensors(tmp_path, plain, tensors, configured):
    torch.save({"state_dict": tensors, "hyper_parameters": {"lr": 1e-3}, "epoch": 1, "loops": {}}, tmp_path / "last.ckpt")
    assert run(configured("lightning", tmp_path / "last.ckpt", plain)).proof.rows == 24


def test_ids_of_every_kind_of_file(tmp_path, plain, configured):
    run(configured("state_dict", plain / "model.safetensors", plain))
    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    pq.write_table(pa.table({"id": IDS, "count": range(ITEMS)}), tmp_path / "ids.parquet")
    for name in ("ids.json", "ids.parquet"):
        run(configured("state_dict", plain / "model.safetensors", plain, vocabulary=str(tmp_path / name)))


def test_an_imported_bundle_counts_the_traffic_it_is_told(tmp_path, plain, configured):
    pq.write_table(pa.table({"id": IDS, "count": range(ITEMS)}), tmp_path / "ids.parquet")
    run(configured("state_dict", plain / "model.safetensors", plain, vocabulary=str(tmp_path / "ids.parquet"), promote=True))
    assert live(tmp_path).vocabularies["item"].count_V.tolist() == list(range(ITEMS))


# -- what must not be imported ---------------------------------------------------------------------------------------------


def nothing_written(tmp_path):
    return not (tmp_path / "registry").exists()


def test_ids_in_another_order_are_another_function(tmp_path, plain, configured):
    """The mistake that RecTools' fit_partial makes: every item owns another item's row."""
    (plain / "items.txt").write_text("\n".join(reversed(IDS)))
    with pytest.raises(CheckpointError, match="another function than the checkpoint: nothing was written"):
        run(configured("state_dict", plain / "model.safetensors", plain))
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("name", [oracle.POSITIONS, oracle.BLOCK + "1.multi_head_attn.in_proj_bias", oracle.LAST + "bias"])
def test_one_changed_weight_is_found_by_the_proof(tmp_path, exported, tensors, configured, name):
    changed = {**tensors, name: tensors[name].flip(0)}
    torch.save(changed, exported / rectools.WEIGHTS)
    with pytest.raises(CheckpointError, match="another function"):
        run(configured("rectools", exported))
    assert nothing_written(tmp_path)


def test_the_padding_row_elsewhere_is_another_function(plain, configured):
    names = yaml.safe_load((plain / "names.yaml").read_text())
    (plain / "names.yaml").write_text(yaml.safe_dump({**names, "rows": {"first": 0, "after": 1}}))
    with pytest.raises(CheckpointError, match="another function"):
        run(configured("state_dict", plain / "model.safetensors", plain))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n["tensors"].pop("norm.bias"), "where a tensor comes from(?s:.*)norm.bias"),
        (lambda n: n["tensors"].update({"norm.bia": "= zero"}), "never used(?s:.*)norm.bia"),
        (lambda n: n["tensors"].update({"norm.bias": "nowhere"}), "no such tensor(?s:.*)nowhere"),
        (lambda n: n["tensors"].update({"norm.bias": "= random"}), "unknown constant"),
        (lambda n: n["tensors"].update({"norm.bias": "= zero"}), "goes nowhere(?s:.*)last_layernorm.bias"),
        (lambda n: n["tensors"].update({"norm.bias": oracle.TABLE}), "another shape(?s:.*)norm.bias"),
        (lambda n: n["tensors"].update({"norm.bias": oracle.LAST + "bias[0/3]"}), "no such part"),
        (lambda n: n["tensors"].update({"norm.bias": "a b"}), "cannot be read"),
        (lambda n: n.update(ignore=["nothing.*"]), "never used(?s:.*)nothing"),
        (lambda n: n.update(rows={"first": 2}), "table and the vocabulary"),
        (lambda n: n["model"].update(norm="rms", final_norm_eps=None), "goes nowhere|never used"),
    ],
)
def test_names_that_leave_something_open_are_refused(tmp_path, plain, configured, change, words):
    names = yaml.safe_load((plain / "names.yaml").read_text())
    change(names)
    (plain / "names.yaml").write_text(yaml.safe_dump(names))
    with pytest.raises(CheckpointError, match=words):
        run(configured("state_dict", plain / "model.safetensors", plain))
    assert nothing_written(tmp_path)


def test_rows_of_a_checkpoint_are_listed_by_id(tmp_path, plain, configured):
    names = yaml.safe_load((plain / "names.yaml").read_text())
    names["model"]["hashed"] = {"tab": 8}
    (plain / "names.yaml").write_text(yaml.safe_dump(names))
    with pytest.raises(ConfigError, match="listed by id"):
        run(configured("state_dict", plain / "model.safetensors", plain))
    assert nothing_written(tmp_path)


def test_what_is_ignored_may_be_a_counter_or_no_tensor_at_all(tmp_path, plain, tensors, configured):
    counters = {"norm.num_batches_tracked": torch.tensor(7), "mask": torch.ones(3, dtype=torch.bool), "net._extra_state": {"a": 1}}
    torch.save({**tensors, **counters}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="under `ignore`"):
        run(configured("state_dict", tmp_path / "model.pt", plain))
    names = yaml.safe_load((plain / "names.yaml").read_text())
    (plain / "names.yaml").write_text(yaml.safe_dump({**names, "ignore": ["*.num_batches_tracked", "mask", "*._extra_state"]}))
    assert run(configured("state_dict", tmp_path / "model.pt", plain)).proof.rows == 24
    torch.save({"state_dict": {**tensors, **counters}}, tmp_path / "model.ckpt")
    assert run(configured("lightning", tmp_path / "model.ckpt", plain)).proof.rows == 24


def test_a_root_is_refused_where_the_format_has_its_own(tmp_path, plain, tensors, configured):
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    names = yaml.safe_load((plain / "names.yaml").read_text())
    (plain / "names.yaml").write_text(yaml.safe_dump({**names, "root": "model"}))
    with pytest.raises(ConfigError, match="names: root"):
        run(configured("lightning", tmp_path / "model.ckpt", plain))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(IDS, pa.large_string()), pa.array(IDS, pa.string_view()), pa.array(IDS).dictionary_encode(),
        pa.array(range(ITEMS), pa.uint32()), pa.array(range(ITEMS), pa.int16()).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)  # fmt: skip
def test_ids_may_be_of_any_integer_or_text_type(tmp_path, ids):
    pq.write_table(pa.table({"id": ids, "count": pa.array(range(ITEMS), pa.int32())}), tmp_path / "items.parquet")
    vocabulary = read_ids(tmp_path / "items.parquet", "item", "2026-01-31")
    assert vocabulary.keys.to_pylist() == ids.to_pylist() and vocabulary.keys.type in (pa.int64(), pa.string())
    assert vocabulary.count_V.tolist() == list(range(ITEMS))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": pa.array([1, 2**64 - 1], pa.uint64())}, "64 bits"),
        ({"id": pa.array([1.0, 2.0])}, "integers or text, not double"),
        ({"id": pa.array(["a", None])}, "no id(?s:.*)row 1"),
        ({"id": pa.array(["a", "b"]), "count": pa.array([3, None])}, "negative or unknown(?s:.*)b"),
        ({"id": pa.array(["a", "b"]), "count": pa.array([-1, 3])}, "negative or unknown(?s:.*)a"),
        ({"item": pa.array(["a", "b"])}, "column id"),
    ],
    ids=["too large", "floats", "null", "unknown count", "negative count", "another column"],
)
def test_ids_that_are_none_are_refused_by_row(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    with pytest.raises(CheckpointError, match=words) as error:
        read_ids(tmp_path / "items.parquet", "item", "2026-01-31")
    assert "items.parquet" in str(error.value.where)


@pytest.mark.parametrize("text", ["[1, 1180591620717411303424]", '["a", 3]', "{}", "[true]", "[1.5]", "["], ids=str)
def test_json_ids_of_no_one_type_are_refused(tmp_path, text):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot read a vocabulary"):
        read_ids(tmp_path / "items.json", "item", "2026-01-31")


def test_text_of_another_system_is_read_as_it_is_meant(tmp_path):
    (tmp_path / "items.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert read_ids(tmp_path / "items.txt", "item", "2026-01-31").keys.to_pylist() == ["one", "two"]


@pytest.mark.parametrize("text", ["model: {name: sasrec, dimm: 8}\ntensors: {}", "- a", "model: {name: gru}\ntensors: {}", "a: [", "\x00"])
def test_names_that_cannot_be_understood_are_refused(plain, configured, text):
    (plain / "names.yaml").write_text(text)
    with pytest.raises(ConfigError):
        run(configured("state_dict", plain / "model.safetensors", plain))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (IDS[:-1], "do not belong together"),
        ([*IDS[:-1], IDS[0]], f"two rows(?s:.*)items.txt, rows 0 and {ITEMS - 1}(?s:.*){IDS[0]}"),
        ([], "is empty"),
        ([IDS[0], "", *IDS[2:]], "no id(?s:.*)row 1"),
        ([*IDS[:-1], "other"], "does not know"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(plain, configured, ids, words):
    (plain / "items.txt").write_text("\n".join(ids))
    with pytest.raises(CheckpointError, match=words):
        run(configured("state_dict", plain / "model.safetensors", plain))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {name: values[:3] for name, values in p.items()}, "too few"),
        (lambda p: {**p, "scores": [[0.0] * ITEMS] * len(p["scores"])}, "all zero"),
        (lambda p: {**p, "scores": [[float("nan")] * ITEMS] * len(p["scores"])}, "not finite"),
        (lambda p: {**p, "scores": [row[:-1] for row in p["scores"]]}, "one score an item"),
        (lambda p: {"history": p["history"]}, "cannot read a probe"),
    ],
)
def test_a_probe_that_proves_nothing_is_refused(exported, tensors, configured, change, words):
    (exported / rectools.PROBE).write_text(json.dumps(change(probe(tensors))))
    with pytest.raises(CheckpointError, match=words):
        run(configured("rectools", exported))


@pytest.mark.parametrize(
    "change",
    [{"layers": "PreLNTransformerLayers"}, {"similarity": "cosine"}, {"use_causal_attn": False}, {"n_heads": "2"}, {"item_net": []}],
)
def test_rectools_models_of_other_kinds_are_refused_by_name(exported, configured, change):
    (exported / rectools.OPTIONS).write_text(json.dumps({**OPTIONS, **change}))
    with pytest.raises(CheckpointError, match=r"options\.json"):
        run(configured("rectools", exported))


def test_a_scaled_embedding_is_folded_into_the_table(exported, tensors, configured):
    (exported / rectools.OPTIONS).write_text(json.dumps({**OPTIONS, "use_scale_factor": True}))
    scaled = {**tensors, oracle.TABLE: tensors[oracle.TABLE] * DIM**0.5}
    wanted = oracle.scores(scaled, histories(), HEADS) / DIM**0.5
    (exported / rectools.PROBE).write_text(json.dumps({**probe(tensors), "scores": wanted.tolist()}))
    run(configured("rectools", exported))


def test_an_import_does_not_replace_a_live_model(tmp_path, exported, plain, configured):
    first = run(configured("rectools", exported, promote=True))
    with pytest.raises(RegistryError, match="live already"):
        run(configured("state_dict", plain / "model.safetensors", plain, promote=True))
    assert Registry(tmp_path / "registry").aliases().production == first.version
    run(configured("state_dict", plain / "model.safetensors", plain))
    assert Registry(tmp_path / "registry").aliases().production == first.version


def test_files_that_a_format_needs_or_has_no_use_for(configured, plain):
    with pytest.raises(ConfigError, match="needs a vocabulary"):
        configured("state_dict", "x")
    with pytest.raises(ConfigError, match="holds this already"):
        configured("rectools", "x", plain)
    with pytest.raises(ConfigError, match="unknown choice"):
        configured("onnx", "x")


def test_the_window_is_what_the_model_read(exported, configured):
    assert run(configured("rectools", exported)).model.max_history == WINDOW
