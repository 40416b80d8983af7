"""Pair scalars follow the release: repaired where it is, and as they were where it is not."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import ExportConfig
from trainer.errors import ExportError
from trainer.export import export, read_manifest, read_pairs, replace_pairs
from trainer.schema.embeddings import VectorBlock
from trainer.schema.repair import Curve, Repair

REPAIR = Repair(curves={"click": Curve(method="platt", scale="logit", x=[0.0], y=[-0.7], slope=[0.9], below=0.9, above=0.9)})


class Vectors:
    dim = 4

    def user_vectors(self):
        yield VectorBlock(pa.array(np.arange(6)), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))

    item_vectors = user_vectors


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    columns = {"user": rng.integers(0, 6, 50), "item": rng.integers(0, 6, 50), "time": np.arange(50), "dot": rng.normal(size=50)}
    return pa.table({**columns, "score_click": rng.random(50).astype(np.float32), "score_like": rng.random(50).astype(np.float32)})


@pytest.fixture
def folder(tmp_path, pairs):
    export(Vectors(), tmp_path / "embeddings", ExportConfig(), space_id="s", producer="p", parent=None, as_of="2026-03-05", pairs=pairs)
    return tmp_path / "embeddings"


def _vectors(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet") if "pair" not in path.parts}


def test_repaired_scores_replace_the_raw_ones_and_nothing_else(folder, pairs):
    before = _vectors(folder)
    manifest = replace_pairs(folder, pairs, REPAIR, 1000)
    assert manifest.repair == REPAIR.sha256 == read_manifest(folder).repair
    after = read_pairs(folder)  # verifies the hash of the new file
    np.testing.assert_allclose(after["score_click"], REPAIR.curves["click"](pairs["score_click"].to_numpy()), rtol=1e-6)
    assert after["score_like"].equals(pairs["score_like"]) and after["item"].equals(pairs["item"])
    assert _vectors(folder) == before


def test_it_may_be_done_again_and_taken_back(folder, pairs):
    raw = read_pairs(folder)
    replace_pairs(folder, pairs, REPAIR, 1000)
    once = read_pairs(folder)
    replace_pairs(folder, pairs, REPAIR, 1000)
    assert read_pairs(folder).equals(once)
    assert replace_pairs(folder, pairs, None, 1000).repair is None
    assert read_pairs(folder).equals(raw)


def test_an_export_without_pairs_is_left_alone(tmp_path, pairs):
    folder = tmp_path / "embeddings"
    manifest = export(Vectors(), folder, ExportConfig(), space_id="s", producer="p", parent=None, as_of="2026-03-05")
    assert replace_pairs(folder, pairs, REPAIR, 1000) == manifest


def test_a_score_that_is_not_finite_leaves_the_export_as_it_was(folder, pairs):
    raw = read_pairs(folder)
    bad = pairs.set_column(4, "score_click", pa.array(np.full(50, np.nan, np.float32)))
    with pytest.raises(ExportError, match="not finite"):
        replace_pairs(folder, bad, REPAIR, 1000)
    assert read_pairs(folder).equals(raw)
