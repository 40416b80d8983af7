"""A bundle that was damaged, or lies, is refused by file and tensor; a registry that serves it stays as it was."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, next_item_bundle
from trainer.checkpoint import build_ranker, read_bundle, write_bundle
from trainer.checkpoint.bundle import read_tensors
from trainer.errors import CheckpointError
from trainer.release import Registry
from trainer.schema.bundle import MANIFEST, SERVING, TRUNK
from trainer.schema.hashing import sha256_file


@pytest.fixture
def bundle(tmp_path):
    return next_item_bundle(tmp_path / "bundle")


def edit(bundle, name, change, rehash=True):
    """Changes a file; with `rehash` its liar also corrects the manifest."""
    file = bundle.path / name
    change(file)
    if rehash:
        manifest = json.loads((bundle.path / MANIFEST).read_text())
        manifest["files"][name] = sha256_file(file)
        (bundle.path / MANIFEST).write_text(json.dumps(manifest))


def edit_manifest(bundle, change):
    values = json.loads((bundle.path / MANIFEST).read_text())
    change(values)
    (bundle.path / MANIFEST).write_text(json.dumps(values))


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def rewrite(change):
    def apply(file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


def test_every_altered_file_is_refused_by_name(bundle):
    names = json.loads((bundle.path / MANIFEST).read_text())["files"]
    assert len(names) == 5
    for name in names:
        content = (bundle.path / name).read_bytes()
        edit(bundle, name, flip, rehash=False)
        with pytest.raises(CheckpointError, match=f"altered(?s:.*){name}"):
            read_bundle(bundle.path)
        (bundle.path / name).write_bytes(content)
    read_bundle(bundle.path)


@pytest.mark.parametrize("name", ["trunk.safetensors.index.json", "vocab/more.parquet", "days/2026-01-01.safetensors"])
def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(bundle, name):
    """An index beside the verified weights would be read in their place."""
    (bundle.path / name).parent.mkdir(exist_ok=True)
    (bundle.path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="does not list") as error:
        read_bundle(bundle.path)
    assert str(error.value.where).endswith(name)


def test_nothing_of_an_earlier_attempt_becomes_part_of_a_bundle(bundle):
    (bundle.path / "transfer.json").write_text("{}")
    (bundle.path / "vocab" / "former.parquet").write_bytes((bundle.path / "vocab" / "item.parquet").read_bytes())
    state = load_file(bundle.path / TRUNK)
    again = write_bundle(
        bundle.path, bundle.manifest, trunk=state, serving=state, optimizer={}, vocabularies=bundle.vocabularies,
        items=pa.table({"item": range(5)}),
    )  # fmt: skip
    assert again.sha256 == bundle.sha256 and set(again.vocabularies) == {"item"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"norm.gain": torch.full((8,), float("nan"))}), "not finite(?s:.*)norm.gain"),
        (lambda t: t.update({"norm.gain": torch.ones(9)}), "another shape(?s:.*)norm.gain"),
        (lambda t: t.pop("norm.gain") is None, "missing in the file(?s:.*)norm.gain"),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown to the ranker(?s:.*)extra"),
    ],
)
def test_tensors_that_do_not_fit_the_manifest_are_refused_by_name(bundle, change, words):
    edit(bundle, SERVING, rewrite(change))
    with pytest.raises(CheckpointError, match=words):
        build_ranker(read_bundle(bundle.path))


def test_a_header_that_lies_is_refused_by_tensor(bundle):
    file = bundle.path / TRUNK
    content = file.read_bytes()
    at = content.index(b'"norm.gain"')
    file.write_bytes(content[:at] + content[at:].replace(b'"shape":[8]', b'"shape":[9]', 1))
    with pytest.raises(CheckpointError, match=r"norm\.gain"):
        read_tensors(file)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "vocab/../../outside"])
def test_names_that_leave_the_bundle_are_refused(bundle, name):
    (bundle.path.parent / "outside").write_bytes(b"x")
    edit_manifest(bundle, lambda values: values["files"].update({name: "0" * 64}))
    with pytest.raises(CheckpointError, match="missing"):
        read_bundle(bundle.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(shape={**v["shape"], "architecture": "os.system"}),
        lambda v: v.update(shape={**v["shape"], "dim": 10**9}),
        lambda v: v.update(shape={**v["shape"], "_target_": "os.system"}),
        lambda v: v.update(shape={**v["shape"], "layers": -1}),
        lambda v: v.update(_target_="os.system"),
        lambda v: v.update(version=99),
        lambda v: v.pop("inputs") is None,
    ],
)
def test_manifests_that_ask_for_something_else_are_refused(bundle, change):
    edit_manifest(bundle, change)
    with pytest.raises(CheckpointError):
        build_ranker(read_bundle(bundle.path))


@pytest.mark.parametrize("name", [TRUNK, "vocab/item.parquet"])
def test_a_run_from_a_damaged_production_stops(tmp_path, bundle, name):
    """Through the command line: exit code 4, one message that names the file, and the registry untouched."""
    registry = Registry(tmp_path / "registry")
    staged = tmp_path / "staged"
    staged.mkdir()
    bundle.path.rename(staged / "bundle")
    registry.seal("one", staged, as_of="2026-01-01", verdict="PROMOTE", parent=None, inputs_sha256="0")
    registry.promote("one", 0)
    pq.write_table(pa.table({"user_id": [0, 0, 0], "item_id": [1, 2, 3], "seq_pos": [0, 1, 2]}), tmp_path / "sasrec_order.parquet")
    file = registry.production_path() / "bundle" / name
    file.chmod(0o644)
    flip(file)
    before = {path: path.read_bytes() for path in (tmp_path / "registry").rglob("*") if path.is_file()}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", "experiment=ml1m", "warm_start=production", f"data.root={tmp_path}",
         f"registry.root={tmp_path / 'registry'}", f"run_dir={tmp_path / 'run'}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 4 and name in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "registry").rglob("*") if path.is_file()} == before
