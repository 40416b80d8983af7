"""Writes a ranker as `torch.export` program and as ONNX graph, and loads what was written to run it."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dense import DenseRanker, dense_inputs
from models.ranker import Ranker, RankerShape
from trainer.errors import ConfigError, ExportError
from trainer.schema.hash_function import HashFunction
from trainer.schema.hashing import sha256_file
from trainer.schema.serving import (
    FILES,
    MANIFEST,
    ONNX,
    TORCH_EXPORT,
    ServingInput,
    ServingManifest,
    read_serving_manifest,
    write_serving_manifest,
)
from trainer.serving.requests import random_requests

OPSET = 23  # attention is an operator from here on; under 20 it is taken apart, and an empty history was off by 2.2 (measured)
OUTPUTS = ("scores", "dot")
_LIMIT = 1 << 20  # of requests, tokens, candidates; the graph holds for any number


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact.

    Attributes:
        format: ``torch_export`` or ``onnx``.
        run: Maps the inputs to scores [B, N, A] and dot [B, N].
    """

    format: str
    run: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


def check_installed(formats: Sequence[str]) -> None:
    """Checks that what a format needs is there.

    Raises:
        ConfigError: If a package of the extra ``onnx`` is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if ONNX in formats and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "ONNX cannot be written here", where="serving.format", got=f"{missing[0]} is not installed",
            remedy="pip install 'rewarm[onnx]', or serving.format=[torch_export]",
        )  # fmt: skip


def write_artefact(
    ranker: Ranker,
    folder: Path,
    formats: Sequence[str],
    *,
    producer: str,
    max_history: int,
    hashes: Mapping[str, HashFunction] | None = None,
) -> ServingManifest:
    """Writes the artefact of a ranker; the manifest comes last.

    Args:
        ranker: In evaluation mode, on CPU.
        folder: New folder, or one that is written again.
        formats: Of `trainer.schema.serving.FORMATS`.
        producer: Hash of its bundle.
        max_history: L, tokens before the day.
        hashes: Vocabulary -> the hash that its bundle records; who feeds the graph finds rows by it.

    Raises:
        ConfigError: If ONNX is asked for and not installed.
        ExportError: If the ranker cannot be traced or converted.
    """
    check_installed(formats)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, *FILES.values()):
        (folder / name).unlink(missing_ok=True)
    shape = ranker.shape
    program = _program(ranker)
    if TORCH_EXPORT in formats:
        torch.export.save(program, folder / FILES[TORCH_EXPORT])
    if ONNX in formats:
        _write_onnx(program, folder / FILES[ONNX])
    paths = {name: folder / FILES[name] for name in formats}
    manifest = ServingManifest(
        producer=producer,
        inputs=[ServingInput(name=n, dtype=str(t).removeprefix("torch."), varying=list(v), columns=_columns(shape, n)) for n, (t, v, _) in
                dense_inputs(shape).items()],
        outputs=list(OUTPUTS),
        actions=[action.name for action in shape.actions],
        max_tokens=min(max_history, shape.positions) if shape.positions else max_history,
        files={name: sha256_file(path) for name, path in paths.items()},
        bytes={name: path.stat().st_size for name, path in paths.items()},
        opset=OPSET,
        hashes=dict(hashes or {}),
    )  # fmt: skip
    write_serving_manifest(folder, manifest)
    return manifest


def load_artefact(folder: Path, name: str) -> Artefact:
    """Loads one format of an artefact, verified.

    Raises:
        CheckpointError: If a file is missing or was altered.
        ConfigError: If the format is not there.
    """
    manifest = read_serving_manifest(folder)
    if name not in manifest.files:
        raise ConfigError("the artefact has no such format", where=folder, got=name, expected=", ".join(manifest.files))
    path = folder / FILES[name]
    return Artefact(name, _torch_runner(path) if name == TORCH_EXPORT else _onnx_runner(path))


def can_run(name: str) -> bool:
    """Tells whether a format can be run here: ONNX needs onnxruntime."""
    return name == TORCH_EXPORT or importlib.util.find_spec("onnxruntime") is not None


def _program(ranker: Ranker) -> torch.export.ExportedProgram:
    """Traces the dense twin; requests, tokens and candidates stay free, down to one."""
    shape = ranker.shape
    free = {name: torch.export.Dim(name, min=1, max=_LIMIT) for name in ("request", "token", "candidate")}
    varying = {name: {place: free[word] for place, word in enumerate(words)} for name, (_, words, _) in dense_inputs(shape).items()}
    example = random_requests(shape, [0, 3, 7], tokens=7, candidates=4, seed=0)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(DenseRanker(ranker).eval(), (example,), dynamic_shapes=(varying,))
    except Exception as error:  # the tracer raises whatever it meets
        raise ExportError("the ranker cannot be traced for serving", got=f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        with _quiet():
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, external_data=False)
    except Exception as error:  # the converter raises whatever it meets
        words = str(error).splitlines()[0] if str(error) else ""
        raise ExportError("the ranker cannot be converted to ONNX", where=path, got=f"{type(error).__name__}: {words}") from error
    if converted is None:
        raise ExportError("the ranker cannot be converted to ONNX", where=path, got="no graph")
    graph = converted.model.graph
    for value in graph.inputs:
        value.name = str(value.name).removeprefix("inputs_")
    for value, name in zip(graph.outputs, OUTPUTS, strict=True):
        value.name = name
    converted.save(path)


def _torch_runner(path: Path) -> Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    module = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return module(inputs)

    return run


def _onnx_runner(path: Path) -> Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # a line for every constant that it folds away helps nobody
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores, dot = session.run(list(OUTPUTS), {name: inputs[name].numpy() for name in names})
        return torch.from_numpy(scores), torch.from_numpy(dot)

    return run


def _columns(shape: RankerShape, name: str) -> list[str]:
    columns: dict[str, Any] = {
        "token_item_features": shape.item_features, "item_features": shape.item_features, "token_features": shape.token_features,
        "event_features": shape.token_features, "token_action": shape.history_actions, "token_action_known": shape.history_actions,
        "categorical": shape.categorical, "numeric": shape.numeric, "present": shape.numeric,
    }  # fmt: skip
    return list(columns.get(name, ()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tracer's progress and the converter's advice off the console; what matters is raised."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
