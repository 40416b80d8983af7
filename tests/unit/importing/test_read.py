"""Files that must never be read: each is refused by file, and by tensor where one is at fault."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from trainer.checkpoint.header import check_header
from trainer.errors import CheckpointError
from trainer.importing.read import CLASS_KEYS, read_state

GOOD = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
FORMATS = {"safetensors": lambda tensors, file: save_file(tensors, file), "pt": torch.save}


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def read_lightning(file):
    return read_state(file, "state_dict")


def refused(file, words, read=read_state):
    with pytest.raises(CheckpointError, match=words) as caught:
        read(file)
    assert str(file) in str(caught.value)


def write_header(file, header, data=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.fixture(params=FORMATS)
def good(request, tmp_path):
    file = tmp_path / f"model.{request.param}"
    FORMATS[request.param](GOOD, file)
    return file


def test_a_sound_file_is_read(good):
    assert all(torch.equal(value, GOOD[name]) for name, value in read_state(good).items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, kind):
    save_file({"a": torch.tensor([0.5, 3.0], dtype=kind)}, tmp_path / "m.safetensors")
    assert torch.equal(read_state(tmp_path / "m.safetensors")["a"], torch.tensor([0.5, 3.0]))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(good, share):
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * share)])
    refused(good, "cut|does not fit its data")


def test_every_altered_byte_of_a_torch_file_is_noticed_or_harmless(tmp_path):
    """Checksums of the archive: no altered byte may give other weights."""
    file = tmp_path / "model.pt"
    torch.save(GOOD, file)
    content = file.read_bytes()
    caught = 0
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            read = read_state(file)
        except CheckpointError:
            caught += 1
        else:
            assert all(torch.equal(value, GOOD[name]) for name, value in read.items()), place
    assert caught > 20


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"\x80\x02}q\x00.", b"<html>", bytes(200), b"\xff" * 200])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "ckpt", "bin"])
def test_foreign_files_are_refused(tmp_path, content, suffix):
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(content)
    refused(file, "cut|cannot (be )?read|neither|no tensors")


def test_a_legacy_pickle_is_refused_unread(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps({"a": Trap(tmp_path / "sprung")}))
    refused(file, "neither a safetensors nor a torch file")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["state", "hyper_parameters", "nested"])
@pytest.mark.parametrize("read", [read_state, read_lightning])
def test_pickled_objects_are_refused_by_name_and_never_run(tmp_path, where, read):
    trap = Trap(tmp_path / "sprung")
    content = {
        "state": {"state_dict": {**GOOD, "trap": trap}},
        "hyper_parameters": {"state_dict": GOOD, "hyper_parameters": trap},
        "nested": {"state_dict": GOOD, "loops": [{"x": (trap,)}]},
    }[where]
    torch.save(content, tmp_path / "model.ckpt")
    refused(tmp_path / "model.ckpt", "pickled object", read)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("key", CLASS_KEYS)
@pytest.mark.parametrize("place", [lambda v: v, lambda v: {"model": {"layers": [v]}}])
def test_checkpoints_that_name_classes_are_refused_before_anything_is_imported(tmp_path, key, place):
    """Lightning issue 21822: `_instantiator` in the hyper-parameters chose what to call, in spite of weights_only."""
    content = {"state_dict": GOOD, "hyper_parameters": place({key: "colorsys.hls_to_rgb"})}
    torch.save(content, tmp_path / "model.ckpt")
    sys.modules.pop("colorsys", None)
    refused(tmp_path / "model.ckpt", key, read_lightning)
    assert "colorsys" not in sys.modules


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_tensor(tmp_path, value):
    for write, name in ((save_file, "m.safetensors"), (torch.save, "m.pt")):
        write({**GOOD, "b": torch.tensor([1.0, value])}, tmp_path / name)
        refused(tmp_path / name, "m.(?:safetensors|pt): b(?s:.*)1 of 2")


@pytest.mark.parametrize(
    "value", [torch.ones(2, dtype=torch.int8), torch.eye(2).to_sparse(), 3.0, "text", [torch.ones(1)], torch.empty(2, device="meta")]
)
def test_what_is_no_weight_is_refused_by_name(tmp_path, value):
    torch.save({**GOOD, "odd": value}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "odd|pickled object")


@pytest.mark.parametrize("content", [[], {}, torch.ones(2), {"epoch": 3}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "no tensors by name|deeper")


def test_an_archive_that_inflates_or_climbs_is_refused(tmp_path):
    torch.save(GOOD, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        members = {member.filename: good.read(member) for member in good.infolist()}
    for name, how in (("squeezed.pt", zipfile.ZIP_DEFLATED), ("climbing.pt", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(tmp_path / name, "w", how) as bad:
            for member, content in members.items():
                bad.writestr(member, content)
            if name == "climbing.pt":
                bad.writestr("good/../../../outside", b"x")
        refused(tmp_path / name, "not an archive that torch wrote")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        ({"a": ENTRY}, bytes(8), 2**62, "impossible header"),
        ({"a": ENTRY}, bytes(8), 10_000, "impossible header"),
        (b"{not json", b"", None, "header that cannot be read"),
        (b"[1, 2]", b"", None, "header that cannot be read"),
        ({"": ENTRY}, bytes(8), None, "header that cannot be read"),
        ({"a": {**ENTRY, "dtype": "F31"}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {**ENTRY, "shape": [-2]}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {**ENTRY, "shape": [2.0]}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {**ENTRY, "shape": [3]}}, bytes(8), None, "m.safetensors: a(?s:.*)does not fit|does not fit(?s:.*)m.safetensors: a"),
        ({"a": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {**ENTRY, "data_offsets": [0, 16], "shape": [4]}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), None, "m.safetensors: a"),
        ({"a": {"dtype": "F32"}}, bytes(8), None, "m.safetensors: a"),
        ({"a": 3}, bytes(8), None, "m.safetensors: a"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), None, "overlap(?s:.*): b"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, bytes(20), None, "gap(?s:.*): b"),
        ({"a": ENTRY}, bytes(9), None, "more bytes than tensors"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path, header, data, length, words):
    file = tmp_path / "m.safetensors"
    write_header(file, header, data, length)
    refused(file, words, check_header)
    refused(file, words)


def test_a_sound_header_gives_shapes(tmp_path):
    save_file({**GOOD, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}, tmp_path / "m.safetensors", {"note": "x"})
    assert check_header(tmp_path / "m.safetensors") == {"a.weight": (2, 3), "b": (4,), "empty": (0, 3), "scalar": ()}


# -- through the command line: one message, exit code 4, and the registry as it was -------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "import_checkpoint.py", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def poison(file):
    state = torch.load(file)
    next(iter(state.values()))[0] = float("nan")
    torch.save(state, file)


def trap(file):
    torch.save({"x": Trap(file.parent / "sprung")}, file)


@pytest.mark.parametrize(("damage", "words"), [(truncate, "cut"), (poison, "not finite"), (trap, "pickled object")])
def test_the_command_refuses_and_leaves_production_alone(tmp_path, exported, damage, words):
    arguments = [f"checkpoint={exported}", "format=rectools", "as_of=2026-01-31", f"registry.root={tmp_path / 'registry'}"]
    assert command(*arguments, "promote=true").returncode == 0
    before = {file: file.read_bytes() for file in (tmp_path / "registry").rglob("*") if file.is_file()}
    damage(exported / "weights.pt")
    done = command(*arguments)
    assert done.returncode == 4 and words in done.stderr and "weights.pt" in done.stderr and "Traceback" not in done.stderr
    assert {file: file.read_bytes() for file in (tmp_path / "registry").rglob("*") if file.is_file()} == before
    assert not (exported / "sprung").exists()


def test_the_command_says_what_it_proved(tmp_path, exported):
    done = command(f"checkpoint={exported}", "format=rectools", "as_of=2026-01-31", f"registry.root={tmp_path / 'registry'}")
    assert done.returncode == 0, done.stderr
    assert "24 probes, 720 scores" in done.stdout and "sealed, not live" in done.stdout and "model.normed_layers=2" in done.stdout


def test_unknown_keys_are_refused(tmp_path):
    assert command("format=rectools", "checkpiont=x", "as_of=2026-01-31").returncode == 2


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused_unexpanded(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "claims more elements(?s:.*): a")


@pytest.mark.parametrize(
    "value", [torch.ones(2, dtype=torch.complex64), torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2, dtype=torch.int8)]
)
def test_numbers_that_training_cannot_go_on_from_are_refused_by_tensor(tmp_path, value):
    torch.save({"a": value}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "quantised, sparse or integer(?s:.*): a")


def test_a_double_that_is_infinite_as_float32_is_refused(tmp_path):
    torch.save({"a": torch.tensor([1.0, 1e300], dtype=torch.float64)}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "not finite as float32(?s:.*): a")
