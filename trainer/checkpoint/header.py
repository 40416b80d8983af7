"""Checks what a safetensors file says of itself before anything is allocated for it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError

MAX_HEADER = 100 * 1024 * 1024  # the format's own limit
_LENGTH = 8
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
          "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


def check_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Checks lengths, types, shapes and offsets of a safetensors file against its size.

    Returns:
        Tensor -> shape.

    Raises:
        CheckpointError: If the file is cut, or its header lies; the tensor is named where one is at fault.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = _header(stream.read(_LENGTH), stream.read, size, file)
    except OSError as error:
        raise CheckpointError("cannot read tensors", where=file, got=str(error)) from error
    header.pop("__metadata__", None)
    space, spans = size - header.pop("", _LENGTH), {}
    for name, entry in header.items():
        spans[name] = _span(entry, f"{file}: {name}", space)
    _check_tiling(spans, space, file)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _header(prefix: bytes, read: Any, size: int, file: Path) -> dict[str, Any]:
    """Returns the header, and under the empty name where the data begin."""
    if len(prefix) < _LENGTH:
        raise CheckpointError("a file of tensors was cut", where=file, got=f"{size} bytes")
    length = struct.unpack("<Q", prefix)[0]
    if length > min(size - _LENGTH, MAX_HEADER):
        raise CheckpointError(
            "a file of tensors has an impossible header: it was cut, altered, or is of another format",
            where=file, got=f"a header of {length} bytes", expected=f"at most {min(size - _LENGTH, MAX_HEADER)}",
        )  # fmt: skip
    try:
        header = json.loads(read(length))
        if not isinstance(header, dict) or "" in header:
            raise ValueError("it is no mapping of tensor names")
    except ValueError as error:
        raise CheckpointError("a file of tensors has a header that cannot be read", where=file, got=str(error)) from error
    return {**header, "": _LENGTH + length}


def _span(entry: Any, where: str, space: int) -> tuple[int, int]:
    try:
        width, shape, (begin, end) = _BYTES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        whole = all(isinstance(value, int) and value >= 0 for value in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("a tensor's entry in the header cannot be read", where=where, got=str(entry)[:200]) from error
    if not whole or not begin <= end <= space or end - begin != width * math.prod(shape):
        raise CheckpointError(
            "a tensor's entry in the header does not fit its data",
            where=where,
            got=f"{entry['dtype']} {shape} at bytes {begin} to {end}",
            expected=f"{width} bytes an element, within the {space} bytes of data",
        )
    return begin, end


def _check_tiling(spans: dict[str, tuple[int, int]], space: int, file: Path) -> None:
    """Tensors cover the data without overlap or gap: nothing hides between them."""
    at = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != at:
            raise CheckpointError("tensors overlap or leave a gap", where=f"{file}: {name}", got=f"starts at {begin}", expected=at)
        at = end
    if at != space:
        raise CheckpointError("a file of tensors holds more bytes than tensors", where=file, got=space, expected=at)
