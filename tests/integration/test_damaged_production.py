"""`scripts/retrain.py` over a live bundle that was damaged, or lies: exit code 4, file and tensor named, the registry as it was."""

import json
import pickle
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, next_item_bundle
from tests.integration.conftest import SMALL
from trainer.release import Registry
from trainer.schema.bundle import MANIFEST, TRUNK
from trainer.schema.hashing import sha256_file

pytestmark = pytest.mark.integration
TENSOR = "blocks.0.up.weight"


class Trap:
    """Unpickling it leaves by a door that nobody else uses."""

    def __reduce__(self):
        return (sys.exit, (99,))


@pytest.fixture
def staged(tmp_path):
    """A small next-item bundle in a folder that can be sealed."""
    folder = tmp_path / "staged"
    folder.mkdir()
    next_item_bundle(folder / "bundle")
    return folder


def live(folder, staged):
    """Seals and promotes; returns the live bundle."""
    registry = Registry(folder / "registry")
    registry.seal("one", staged, as_of="2026-03-01", verdict="PROMOTE", parent=None, inputs_sha256="0")
    registry.promote("one", 0)
    return registry.production_path() / "bundle"


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def poison(file):
    tensors = load_file(file)
    tensors[TENSOR][0, 0] = float("nan")
    save_file(tensors, file)


def narrow(file):
    tensors = load_file(file)
    tensors[TENSOR] = tensors[TENSOR][:, :-1].contiguous()
    save_file(tensors, file)


def overwrite(change):
    return lambda file: file.write_bytes(change(file.read_bytes()))


DAMAGE = {  # name -> change of the trunk's file, whether it was sealed so, with a manifest that agrees, what the message says
    "truncated": (overwrite(lambda content: content[:-100]), False, TRUNK),
    "altered": (overwrite(flip), False, TRUNK),
    "foreign": (overwrite(lambda _: b"PAR1" * 100), True, TRUNK),
    "pickled": (overwrite(lambda _: pickle.dumps({TENSOR: Trap()})), True, TRUNK),
    "not finite": (poison, True, TENSOR),
    "another shape": (narrow, True, TENSOR),
}


def retrain(simulated, folder):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "retrain.py"), f"data.root={simulated}", f"registry.root={folder / 'registry'}",
         f"run_dir={folder / 'run'}", *SMALL],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def refused(simulated, folder, word):
    before = {path: path.read_bytes() for path in (folder / "registry").rglob("*") if path.is_file()}
    done = retrain(simulated, folder)
    assert done.returncode == 4 and "Traceback" not in done.stderr and done.stderr.count("rewarm: ") == 1, done.stderr[-3000:]
    assert word in done.stderr
    assert {path: path.read_bytes() for path in (folder / "registry").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_trunk_is_refused_by_name(simulated, tmp_path, staged, damage):
    change, sealed_so, word = DAMAGE[damage]
    if sealed_so:
        file = staged / "bundle" / TRUNK
        change(file)
        edit_manifest(staged / "bundle", lambda values: values["files"].update({TRUNK: sha256_file(file)}))
        live(tmp_path, staged)
    else:
        file = live(tmp_path, staged) / TRUNK
        file.chmod(0o644)
        change(file)
    refused(simulated, tmp_path, word)


def test_a_manifest_that_names_a_class_is_refused(simulated, tmp_path, staged):
    edit_manifest(staged / "bundle", lambda values: values["shape"].update(_target_="os.system"))
    live(tmp_path, staged)
    refused(simulated, tmp_path, "_target_")


def test_a_manifest_that_agrees_with_an_altered_file_is_not_the_sealed_one(simulated, tmp_path, staged):
    bundle = live(tmp_path, staged)
    edit_manifest(bundle, lambda values: values["shape"].update(layers=2))
    refused(simulated, tmp_path, MANIFEST)


def edit_manifest(bundle, change):
    file = bundle / MANIFEST
    file.chmod(0o644)
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
