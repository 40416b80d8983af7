"""A bundle records by which hash its ids find their rows, and only that one is ever used with its weights."""

import json

import numpy as np
import pyarrow as pa
import pytest

from tests import small, warm
from tests.unit.checkpoint.test_refusals import edit_manifest
from trainer.checkpoint import build_ranker, read_bundle, write_bundle
from trainer.data import Encoder
from trainer.errors import CheckpointError
from trainer.schema.bundle import MANIFEST, BundleManifest
from trainer.schema.hash_function import TEXT_FNV1A_SPLITMIX64, HashFunction
from trainer.schema.hashed import HashedVocabulary
from trainer.schema.plain import as_plain

HASH = HashFunction(rows=3, seed=5)


@pytest.fixture
def bundle(tmp_path):
    encoder = small.encoder()
    encoder = Encoder(encoder.inputs, {**encoder.vocabularies, "author": HashedVocabulary.of(HASH, encoder.vocabularies["author"])})
    ranker = warm.build(encoder)
    manifest = BundleManifest(
        code_version="test", shape=as_plain(ranker.shape), inputs=encoder.inputs, features={}, labels={}, value={}, config={}, axes={},
        trained={},
    )  # fmt: skip
    state, items = ranker.state_dict(), pa.table({"item": encoder.vocabularies["item"].keys})
    return write_bundle(
        tmp_path, manifest, trunk=state, serving=state, optimizer={}, vocabularies=encoder.vocabularies, items=items
    ), encoder, ranker  # fmt: skip


def test_the_hash_is_recorded_and_honoured(bundle):
    written, encoder, ranker = bundle
    recorded = json.loads((written.path / MANIFEST).read_text())["hashes"]
    assert recorded == {"author": {"function": TEXT_FNV1A_SPLITMIX64, "rows": 3, "seed": 5}}
    read = read_bundle(written.path)
    again = Encoder(read.manifest.inputs, read.vocabularies)
    tables = small.tables()
    for name, array in encoder.encode(*tables, warm.LATE).arrays().items():
        assert np.array_equal(array, again.encode(*tables, warm.LATE).arrays()[name]), name
    unknown = pa.array([10**9, None])
    assert again.vocabularies["author"].lookup(unknown).tolist() == [2 + int(HASH.buckets(unknown)[0]), 1]
    assert (warm.outputs(again, build_ranker(read)) == warm.outputs(encoder, ranker)).all()
    assert read.item_ids is read.vocabularies["item"]


def test_another_seed_would_be_noticed(bundle):
    """That the test above can fail: the same weights under another seed are another model."""
    written, encoder, ranker = bundle
    edit_manifest(written, lambda values: values["hashes"]["author"].update(seed=6))
    read = read_bundle(written.path)
    assert read.sha256 != written.sha256, "and another bundle"
    assert (warm.outputs(Encoder(read.manifest.inputs, read.vocabularies), ranker) != warm.outputs(encoder, ranker)).any()


@pytest.mark.parametrize(
    ("change", "told", "where"),
    [
        (lambda values: values["hashes"]["author"].update(function="murmur3"), "does not know", "hashes.author"),
        (lambda values: values["hashes"]["author"].update(rows=4), "does not have the rows", "vocabulary author"),
        (lambda values: values["hashes"]["author"].update(rows=None), "impossible rows", "hashes.author"),
        (lambda values: values["hashes"].update(other=values["hashes"]["author"]), "that is not there", MANIFEST),
        (lambda values: values["hashes"].update(tab=values["hashes"]["author"]), "lists ids", "tab.parquet"),
        (lambda values: values["hashes"].clear(), "cannot read a vocabulary", "author.parquet"),
        (lambda values: values["hashes"]["author"].update(salt=1), "manifest", MANIFEST),
    ],
)
def test_a_hash_that_cannot_be_honoured_is_refused(bundle, change, told, where):
    edit_manifest(bundle[0], change)
    with pytest.raises(CheckpointError, match=told) as error:
        read_bundle(bundle[0].path)
    assert where in str(error.value.where)


def test_a_bundle_from_before_hashes_lists_all_its_ids(bundle):
    written, encoder, _ = bundle
    lists = {name: small.encoder().vocabularies[name] for name in encoder.vocabularies}
    older = write_bundle(written.path, written.manifest, trunk={}, serving={}, optimizer={}, vocabularies=lists, items=written.items())
    assert older.manifest.hashes == {}, "what is written is what the vocabularies are"
    edit_manifest(older, lambda values: values.pop("hashes"))
    assert read_bundle(older.path).vocabularies["author"].keys.to_pylist() == [0, 1, 2, 3, 4]
