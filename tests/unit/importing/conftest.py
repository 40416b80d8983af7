"""A checkpoint of other code in every format, with the scores of an oracle that shares nothing with `models`."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests import rectools_oracle as oracle
from trainer.config import ImportConfig, RegistryConfig
from trainer.importing import rectools

ITEMS, DIM, WINDOW, HEADS = 30, 8, 6, 2
IDS = [f"item {(7 * n) % ITEMS}" for n in range(ITEMS)]
OPTIONS = {
    "n_blocks": 2, "n_heads": HEADS, "n_factors": DIM, "session_max_len": WINDOW, "dropout_rate": 0.0, "use_pos_emb": True,
    "use_scale_factor": False, "use_key_padding_mask": False, "use_causal_attn": True, "layers": "SASRecTransformerLayers",
    "similarity": "dot", "item_net": ["IdEmbeddingsItemNet"],
}  # fmt: skip


def histories(count=24):
    draw = random.Random(0)
    return [[draw.randrange(ITEMS) for _ in range(number % (WINDOW + 3))] for number in range(1, count + 1)]


def probe(tensors, **options):
    asked = histories()
    return {
        "history": [[IDS[item] for item in history] for history in asked],
        "scores": oracle.scores(tensors, asked, HEADS, **options).tolist(),
    }


@pytest.fixture
def tensors():
    return oracle.state(ITEMS, DIM, window=WINDOW)


@pytest.fixture
def exported(tmp_path, tensors):
    """A folder as scripts/export_rectools.py writes it."""
    folder = tmp_path / "exported"
    folder.mkdir()
    torch.save(tensors, folder / rectools.WEIGHTS)
    (folder / rectools.ITEMS).write_text(json.dumps(IDS))
    (folder / rectools.OPTIONS).write_text(json.dumps(OPTIONS))
    (folder / rectools.PROBE).write_text(json.dumps(probe(tensors)))
    return folder


@pytest.fixture
def plain(tmp_path, tensors):
    """The same as a plain state dict with its own names file: `ImportConfig` of it."""
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "items.txt").write_text("\n".join(IDS))
    pq.write_table(pa.table(probe(tensors)), folder / "probe.parquet", write_page_checksum=True)
    names = rectools.names(OPTIONS)
    model = {key: value for key, value in vars(names.model).items() if value is not None}
    (folder / "names.yaml").write_text(yaml.safe_dump({"model": model, "rows": {"first": 1}, "tensors": names.tensors}))
    return folder


@pytest.fixture
def configured(tmp_path):
    """Returns the configuration of an import into `tmp_path/registry`."""

    def make(form, checkpoint, plain=None, **changes):
        beside = {} if plain is None else {
            "vocabulary": str(plain / "items.txt"), "names": str(plain / "names.yaml"), "probe": str(plain / "probe.parquet")
        }  # fmt: skip
        registry = RegistryConfig(root=str(tmp_path / "registry"))
        values = {"format": form, "checkpoint": str(checkpoint), "as_of": "2026-01-31", "registry": registry}
        return ImportConfig(**{**values, **beside, **changes})

    return make
