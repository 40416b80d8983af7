"""Reads tensors from files of other code, and nothing but tensors: no object is unpickled, no class imported, no name trusted."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint.header import check_header
from trainer.errors import CheckpointError, nearest

# Keys of hyper-parameters by which Hydra, Lightning's CLI and its loader choose what to construct (Lightning issue 21822).
CLASS_KEYS = ("_target_", "_instantiator", "_class_path", "class_path", "_partial_")
_PRECISIONS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_ARCHIVE = b"PK\x03\x04"
_SAFE = "save only its tensors: safetensors.torch.save_file(model.state_dict(), FILE)"


def read_state(file: Path, root: str | None = None, ignored: Callable[[str], bool] = lambda name: False) -> dict[str, Tensor]:
    """Reads a state dict: safetensors, or a torch file.

    Args:
        file: The file.
        root: Key under which a torch file keeps the state dict; None if it is the state dict.
        ignored: Tells which entries are left behind whatever they are: counters, masks.

    Returns:
        Tensor -> float32 value on the CPU; half and double precision are cast. Ignored entries are there by name only.

    Raises:
        CheckpointError: If the file is cut, altered, foreign, or holds anything but finite floating-point tensors. The file is
            named, and the tensor where one is at fault.
    """
    if not file.is_file():
        raise CheckpointError("no checkpoint here", where=file, expected="a file")
    if _starts_with(file, _ARCHIVE):
        content = _read_torch(file)
    elif file.suffix == ".safetensors":
        content = _read_safetensors(file)
        if root is not None:
            raise CheckpointError("a safetensors file has no root", where=file, got=root, remedy="drop `root` from the names")
    else:
        raise CheckpointError(
            "neither a safetensors nor a torch file: it was cut or altered, or is of another format",
            where=file,
            expected="FILE.safetensors, or what torch.save writes since torch 1.6",
            remedy=_SAFE,
        )
    _refuse_classes(content, file)
    if root is not None:
        if not isinstance(content, dict) or root not in content:
            raise CheckpointError("the checkpoint has no such key", where=file, got=root, remedy=nearest(root, _keys(content)))
        content = content[root]
    return _tensors(content, file, ignored)


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    check_header(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("cannot read tensors", where=file, got=str(error)) from error


def _read_torch(file: Path) -> Any:
    _check_archive(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        raise CheckpointError(
            "the checkpoint holds a pickled object; objects are never loaded",
            where=file, got=found.group(1) if found else str(error).splitlines()[0], expected="tensors and plain values", remedy=_SAFE,
        ) from error  # fmt: skip
    except Exception as error:  # torch raises whatever an altered archive provokes: RuntimeError, KeyError, EOFError, ...
        raise CheckpointError("cannot read the checkpoint: it was cut or altered", where=file, got=str(error).splitlines()[0]) from error


def _check_archive(file: Path) -> None:
    """An archive's members are stored as they are: nothing inflates, nothing leaves the folder, and their checksums hold."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or ".." in Path(member.filename).parts or member.filename.startswith("/"):
                    raise CheckpointError("not an archive that torch wrote", where=f"{file}: {member.filename}", remedy=_SAFE)
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError("the checkpoint was altered: a checksum does not hold", where=f"{file}: {damaged}")
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
        raise CheckpointError("cannot read the checkpoint: it was cut or altered", where=file, got=str(error)) from error


def _refuse_classes(content: Any, file: Path) -> None:
    for path, key, value in _walk(content, ()):
        if key in CLASS_KEYS:
            raise CheckpointError(
                "the checkpoint names a class to construct; a file never chooses code",
                where=f"{file}: {'.'.join((*path, key))}", got=str(value)[:200], remedy=_SAFE,
            )  # fmt: skip


def _walk(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield path, str(key), value
            yield from _walk(value, (*path, str(key)))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _walk(value, (*path, str(number)))


def _tensors(content: Any, file: Path, ignored: Callable[[str], bool]) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError("the checkpoint holds no tensors by name", where=file, got=type(content).__name__, remedy=_SAFE)
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            "the state dict lies deeper in the checkpoint", where=file, got=f"keys {', '.join(_keys(content))}",
            remedy="say under which key: `root: KEY` in the names, or format=lightning",
        )  # fmt: skip
    return {str(name): torch.empty(0) if ignored(str(name)) else _checked(value, f"{file}: {name}") for name, value in content.items()}


def _checked(value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError("this is no tensor", where=where, got=type(value).__name__, remedy=_SAFE)
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _PRECISIONS:
        raise CheckpointError(
            "not weights that training can go on from: quantised, sparse or integer", where=where, got=f"{value.dtype} {value.layout}",
            remedy="import the training checkpoint, not an export for serving; name counters under `ignore`",
        )  # fmt: skip
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            "a tensor claims more elements than the file holds", where=where, got=tuple(value.shape),
            expected=f"at most {value.untyped_storage().nbytes()} bytes", remedy="save what it expands to: tensor.contiguous()",
        )  # fmt: skip
    value = value.detach().to(torch.float32).contiguous()
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise CheckpointError(
            "a tensor holds values that are not finite as float32", where=where, got=f"{bad} of {value.numel()}",
            remedy="never start from these weights; take an earlier checkpoint",
        )  # fmt: skip
    return value


def _keys(content: Any) -> list[str]:
    return sorted(map(str, content)) if isinstance(content, dict) else []
