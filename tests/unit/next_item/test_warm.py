"""An imported model goes on in the next-item job: other order, more items, more layers, and the same scores before the first step."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import rectools_oracle as oracle
from tests.unit.next_item.test_run import configured
from trainer.checkpoint import build_ranker, read_bundle
from trainer.config import ImportConfig, RegistryConfig
from trainer.errors import CheckpointError
from trainer.importing import rectools
from trainer.importing import run as import_checkpoint
from trainer.importing.probe import histories
from trainer.next_item import run
from trainer.next_item.sequences import read_sequences
from trainer.next_item.warm import begin, vocabulary_of, with_catalogue
from trainer.release import Registry

ITEMS, DIM, WINDOW, HEADS = 12, 8, 5, 2
IDS = [f"i{(5 * n) % ITEMS:02d}" for n in range(ITEMS)]


@pytest.fixture
def registry(tmp_path):
    """A registry whose production is an imported model."""
    tensors, folder = oracle.state(ITEMS, DIM, window=WINDOW), tmp_path / "exported"
    folder.mkdir()
    asked = [[n % ITEMS for n in range(start, start + 1 + start % WINDOW)] for start in range(10)]
    torch.save(tensors, folder / rectools.WEIGHTS)
    (folder / rectools.ITEMS).write_text(json.dumps(IDS))
    options = {
        "n_blocks": 2, "n_heads": HEADS, "n_factors": DIM, "session_max_len": WINDOW, "dropout_rate": 0.0, "use_pos_emb": True,
        "use_scale_factor": False, "use_key_padding_mask": False, "use_causal_attn": True, "layers": "SASRecTransformerLayers",
        "similarity": "dot", "item_net": ["IdEmbeddingsItemNet"],
    }  # fmt: skip
    (folder / rectools.OPTIONS).write_text(json.dumps(options))
    probe = {"history": [[IDS[item] for item in h] for h in asked], "scores": oracle.scores(tensors, asked, HEADS).tolist()}
    (folder / rectools.PROBE).write_text(json.dumps(probe))
    config = RegistryConfig(root=str(tmp_path / "registry"))
    model = import_checkpoint(
        ImportConfig(format="rectools", checkpoint=str(folder), as_of="2026-01-31", promote=True, registry=config)
    ).model
    return tmp_path / "registry", {f"model.{key}": value for key, value in vars(model).items() if value is not None}


def log(folder):
    """Walks over all items but two, and over three that production does not know; ids come in another order."""
    known = sorted(IDS, reverse=True)[:-2]
    walks = [[known[(user + step) % len(known)] for step in range(4)] + [f"new {user % 3}"] for user in range(20)]
    rows = [(user, item, step) for user, walk in enumerate(walks) for step, item in enumerate(walk)]
    user, item, position = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "seq_pos": position}), folder / "sasrec_order.parquet")


def production(registry):
    return read_bundle(Registry(registry).production_path() / "bundle")


def scores(bundle, ids):
    """Scores by id, after a history of ids."""
    ranker, vocabulary = build_ranker(bundle), bundle.vocabularies["item"]
    rows = torch.from_numpy(vocabulary.lookup(pa.array(ids)))
    user = ranker.user_vectors(histories([3, 1], rows[[0, 4, 2, 7]].numpy()))
    return user @ ranker.item_vectors(rows, rows.new_zeros(len(rows), 0)).T


def test_the_catalogue_keeps_what_the_new_log_does_not_show(tmp_path, registry):
    log(tmp_path)
    sequences = read_sequences(tmp_path, configured("x", "y").next_item)
    grown = with_catalogue(sequences, production(registry[0]))
    assert grown.item_ids.to_pylist() == [*IDS, "new 0", "new 1", "new 2"]
    before = [sequences.item_ids[int(item)].as_py() for item in sequences.item_E]
    assert [grown.item_ids[int(item)].as_py() for item in grown.item_E] == before
    assert vocabulary_of(grown).count_V.sum() == sum(sequences.training_end_U - sequences.offsets_U1[:-1])


def test_an_imported_model_grows_and_trains_on(tmp_path, registry):
    log(tmp_path)
    root, model = registry
    grown = {**model, "model.layers": 4, "model.ffn_dim": 16, "model.positions": 9, "model.max_history": 9}
    still = {"optimizer.lr": 1e-12, "optimizer.embedding_lr": 1e-12, "optimizer.weight_decay": 0.0, "fit.passes": 1}
    common = {"warm_start.source": "production", "registry.root": root, "next_item.validate_every": 1}
    run(configured(tmp_path, tmp_path / "still", **grown, **still, **common))
    bundle = read_bundle(tmp_path / "still" / "next_item" / "bundle")
    old, new = scores(production(root), IDS), scores(bundle, IDS)
    torch.testing.assert_close(new, old, rtol=0, atol=1e-5 * float(old.detach().abs().max()))
    report = json.loads((bundle.path / "transfer.json").read_text())
    assert report["exact"] and report["parity"]["rows"] == 20
    assert bundle.manifest.parent == production(root).sha256 and bundle.shape.layers == 4
    run(configured(tmp_path, tmp_path / "moved", **grown, **{"fit.passes": 2}, **common))
    moved = read_bundle(tmp_path / "moved" / "next_item" / "bundle")
    same = [name for name, value in moved.tensors().items() if torch.equal(value, bundle.tensors()[name]) and value.numel()]
    assert not [name for name in same if name.startswith("blocks.")], "after two passes every parameter of the blocks has moved"


def test_a_ranker_with_actions_is_no_start_for_the_next_item_job(tmp_path):
    scorer = SimpleNamespace(shape=SimpleNamespace(actions=("click",), outputs=("click",)), path=tmp_path)
    with pytest.raises(CheckpointError, match="no next-item ranker"):
        begin(None, None, None, scorer, 9, 0)
