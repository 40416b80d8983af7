"""The serving artefact of a release: the ranker as a graph that other runtimes load, beside a manifest that says how to feed it.

    serving/manifest.json     `ServingManifest`, written last
    serving/model.pt2         `torch.export` program
    serving/model.onnx        the same as ONNX

A graph scores padded requests (`models.dense`). Its scores are the ranker's own: a release's `repair.json` comes behind them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import CheckpointError
from trainer.schema.files import write_text
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashing import sha256_file
from trainer.schema.plain import as_plain, from_plain

SERVING_VERSION = 1

FOLDER = "serving"
MANIFEST = "manifest.json"
TORCH_EXPORT = "torch_export"
ONNX = "onnx"
FORMATS = (TORCH_EXPORT, ONNX)
FILES = {TORCH_EXPORT: "model.pt2", ONNX: "model.onnx"}


@dataclass(frozen=True, kw_only=True)
class ServingInput:
    """One input of the graph.

    Attributes:
        name: Its name.
        dtype: ``int64``, ``float32`` or ``bool``.
        varying: Its leading dimensions: ``request``, ``token``, ``candidate``.
        columns: What the entries of its last dimension are, in order; empty where there is no such dimension. Of a list (``tags[0]``,
            ``tags[1]``, ...) they are rows of its first distinct values, as many as there are places, then 0; of a missing or empty one
            1, then 0. The order of the values does not matter.
    """

    name: str
    dtype: str
    varying: list[str]
    columns: list[str]


@dataclass(frozen=True, kw_only=True)
class ServingManifest:
    """What an artefact is.

    Attributes:
        version: Version of this schema.
        producer: Hash of the bundle whose served weights it holds; vocabularies and the scale of numbers are that bundle's.
        inputs: Inputs, in order.
        outputs: ``scores`` [request, candidate, action] and ``dot`` [request, candidate].
        actions: Actions, in the order of the scores.
        max_tokens: History tokens of a request at most: the newest, as training read them.
        files: Format -> sha256 of its file.
        bytes: Format -> size of its file.
        opset: ONNX operator set.
        hashes: Vocabulary -> the hash by which its ids find their rows (`HashFunction` says how); the others list their ids.
    """

    version: int = SERVING_VERSION
    producer: str
    inputs: list[ServingInput]
    outputs: list[str]
    actions: list[str]
    max_tokens: int
    files: dict[str, str]
    bytes: dict[str, int]
    opset: int
    hashes: dict[str, HashFunction] = field(default_factory=dict)


def write_serving_manifest(folder: Path, manifest: ServingManifest) -> None:
    """Writes the manifest, last of all files."""
    write_text(folder / MANIFEST, json.dumps(as_plain(manifest), indent=1) + "\n")


def read_serving_manifest(folder: Path) -> ServingManifest:
    """Reads the manifest of an artefact and verifies its files.

    Raises:
        CheckpointError: If it is absent or damaged, or a file is missing or was altered.
    """
    try:
        manifest = from_plain(ServingManifest, json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError("no serving artefact here", where=folder, got=str(error).splitlines()[0], remedy="write it again") from error
    if manifest.version != SERVING_VERSION:
        raise CheckpointError("a serving artefact of another version", where=folder, got=manifest.version, expected=SERVING_VERSION)
    for name, expected in manifest.files.items():
        path = folder / FILES.get(name, name)
        if not path.is_file() or sha256_file(path) != expected:
            raise CheckpointError(
                "a file of a serving artefact is missing or was altered", where=path, remedy="write it again, or roll back"
            )
    return manifest
