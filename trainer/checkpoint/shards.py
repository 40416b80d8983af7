"""Tensors too large for one file, or for memory: safetensors shards with an index, read and written by rows.

    trunk.safetensors.index.json     {"version": 1, "tensors": {name: {"dtype", "shape", "parts": [[file, rows], ...]}}}
    trunk-00000.safetensors          each part under its tensor's name; any safetensors reader opens it

A tensor is cut between rows (entries of its first dimension), so that a table of any size moves through a buffer of one shard.
"""

from __future__ import annotations

import json
import mmap
import operator
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint.header import check_header
from trainer.errors import CheckpointError
from trainer.schema.files import write_text

INDEX_VERSION = 1
_TAKEN_ROWS = 1 << 9  # rows between two releases of pages: the system maps up to 64 KB around each
SHARD_BYTES = 1 << 31
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def index_path(path: Path) -> Path:
    """Returns where the index of a sharded file lies."""
    return path.with_name(path.name + ".index.json")


@dataclass(frozen=True)
class Layout:
    """A tensor as declared: its shape and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Part:
    """Rows of a tensor in one file."""

    file: str
    rows: int


class ShardWriter:
    """Writes declared tensors, shard after shard; the index comes last, so that a folder without it holds nothing.

    Args:
        path: Name of the whole, such as ``bundle/trunk.safetensors``.
        tensors: Tensor -> shape and type; they are written in the order of their names.
        shard_bytes: Size at which a shard is full; a single row may exceed it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Layout], shard_bytes: int = SHARD_BYTES) -> None:
        self.path = path
        self.tensors = dict(sorted(tensors.items()))
        self.parts = _planned(path.stem, self.tensors, shard_bytes)
        self._waiting = [(name, part) for name, parts in self.parts.items() for part in parts]
        self._stream: BinaryIO | None = None
        index_path(path).unlink(missing_ok=True)

    def block_rows(self, name: str) -> int:
        """Returns rows of a good block of a tensor: a quarter of a shard, so that its buffers and the ids beside it stay below one."""
        return -(-max((part.rows for part in self.parts[name]), default=1) // 4)

    def write(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Writes a tensor from blocks of rows, of any size.

        Raises:
            CheckpointError: If it is not this tensor's turn, or the blocks are not its rows.
        """
        room = 0
        for block in blocks:
            rows = block.detach().contiguous().view(-1 if block.ndim == 0 else len(block), *self.tensors[name].shape[1:])
            start = 0
            while start < len(rows):
                room = room or self._begin(name)
                stop = min(start + room, len(rows))
                assert self._stream is not None
                self._stream.write(rows[start:stop].view(torch.uint8).numpy().data)
                room, start = room - (stop - start), stop
            del block, rows  # the next block is built while these would still live
        if room or (self._waiting and self._waiting[0][0] == name):
            raise CheckpointError("a tensor has fewer rows than declared", where=f"{self.path}: {name}", expected=self.tensors[name].rows)

    def close(self) -> None:
        """Writes the index.

        Raises:
            CheckpointError: If a declared tensor was not written.
        """
        if self._stream is not None:
            self._stream.close()
        if self._waiting:
            raise CheckpointError("a declared tensor was not written", where=f"{self.path}: {self._waiting[0][0]}")
        tensors = {
            name: {
                "dtype": _CODES[layout.dtype],
                "shape": list(layout.shape),
                "parts": [[part.file, part.rows] for part in self.parts[name]],
            }
            for name, layout in self.tensors.items()
        }
        write_text(index_path(self.path), json.dumps({"version": INDEX_VERSION, "tensors": tensors}))

    def _begin(self, name: str) -> int:
        """Moves to the next part; returns its rows."""
        if not self._waiting or self._waiting[0][0] != name:
            raise CheckpointError(
                "a tensor is written out of turn, or has more rows than declared",
                where=f"{self.path}: {name}",
                expected=self.tensors[name].rows,
            )
        _, part = self._waiting.pop(0)
        file = self.path.with_name(part.file)
        if self._stream is None or self._stream.name != str(file):
            if self._stream is not None:
                self._stream.close()
            self._stream = file.open("wb")
            self._stream.write(self._header(part.file))
        return part.rows

    def _header(self, file: str) -> bytes:
        header, offset = {}, 0
        for name, parts in self.parts.items():
            for part in parts:
                if part.file == file:
                    layout = self.tensors[name]
                    end = offset + part.rows * layout.row_bytes
                    shape = [part.rows, *layout.shape[1:]] if layout.shape else []
                    header[name] = {"dtype": _CODES[layout.dtype], "shape": shape, "data_offsets": [offset, end]}
                    offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def _planned(stem: str, tensors: Mapping[str, Layout], shard_bytes: int) -> dict[str, list[Part]]:
    """Cuts tensors between rows so that no shard exceeds its size."""
    parts: dict[str, list[Part]] = {name: [] for name in tensors}
    number, used = 0, 0
    for name, layout in tensors.items():
        left = layout.rows
        while left:
            fits = max((shard_bytes - used) // max(layout.row_bytes, 1), 0 if used else 1)
            rows = min(left, fits)
            if rows:
                parts[name].append(Part(f"{stem}-{number:05d}.safetensors", rows))
                used, left = used + rows * layout.row_bytes, left - rows
            if left:
                number, used = number + 1, 0
    return parts


class ShardReader(Mapping[str, Tensor]):
    """Reads tensors, or rows of them, from shards or one safetensors file, without holding more than it returns.

    Args:
        path: A safetensors file, or the name of a sharded one.

    Raises:
        CheckpointError: If the index or a shard lies about what is in it; file and tensor are named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Layout] = {}
        self._views: dict[str, tuple[np.ndarray, list[np.ndarray], list[str]]] = {}  # first row, bytes [rows, row bytes], file of each part
        self._maps: dict[str, mmap.mmap] = {}
        for name, (layout, parts) in _declared(path).items():
            self.tensors[name] = layout
            views = [self._view(part, name, layout) for part in parts]
            self._views[name] = (np.cumsum([0, *(part.rows for part in parts)]), views, [part.file for part in parts])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        """Returns a whole tensor."""
        layout = self.tensors[name]
        return self.take(name, np.arange(layout.rows)).reshape(layout.shape)

    def take(self, name: str, index: np.ndarray) -> Tensor:
        """Returns rows of a tensor by int64 index, ascending where speed matters.

        Raises:
            CheckpointError: If a value is not finite; file and tensor are named.
        """
        layout, (first, views, files) = self.tensors[name], self._views[name]
        if len(index) and not 0 <= index.min() <= index.max() < layout.rows:
            raise CheckpointError(
                "a tensor has fewer rows than its ids", where=f"{self.path}: {name}", got=layout.rows, expected=index.max() + 1
            )
        out = torch.empty((len(index), *layout.shape[1:]), dtype=layout.dtype)
        raw = (
            out.view(torch.uint8).numpy().reshape(len(index), layout.row_bytes) if len(index) else np.empty((0, layout.row_bytes), np.uint8)
        )
        part_of = np.searchsorted(first, index, side="right") - 1
        for number, view in enumerate(views):
            chosen = np.flatnonzero(part_of == number)
            for start in range(0, len(chosen), _TAKEN_ROWS):
                rows = chosen[start : start + _TAKEN_ROWS]
                raw[rows] = view[index[rows] - first[number]]
                self._maps[files[number]].madvise(mmap.MADV_DONTNEED)  # the pages stay in the system's cache, not in ours
        if out.is_floating_point() and not _finite(out):
            raise CheckpointError(
                "a tensor holds values that are not finite",
                where=f"{self.path}: {name}",
                remedy="never start from these weights; take the previous release",
            )
        return out

    def close(self) -> None:
        """Releases the files."""
        self._views.clear()
        self._maps.clear()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _view(self, part: Part, name: str, layout: Layout) -> np.ndarray:
        file = self.path.with_name(part.file)
        shapes = check_header(file)
        wanted = (part.rows, *layout.shape[1:]) if layout.shape else ()
        if shapes.get(name) != wanted:
            raise CheckpointError(
                "a shard does not hold what the index says", where=f"{file}: {name}", got=shapes.get(name), expected=wanted
            )
        if part.file not in self._maps:
            with file.open("rb") as stream:
                self._maps[part.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = self._maps[part.file]
        length = struct.unpack("<Q", mapped[:8])[0]
        begin, end = json.loads(mapped[8 : 8 + length])[name]["data_offsets"]
        data = np.frombuffer(mapped, np.uint8, end - begin, 8 + length + begin)
        return data.reshape(part.rows, layout.row_bytes)


def _finite(values: Tensor) -> bool:
    """Whether all values are finite; a sum says so in one pass, and only where it does not is every value looked at."""
    return bool(torch.isfinite(values.sum(dtype=torch.float64))) or bool(torch.isfinite(values).all())


def _declared(path: Path) -> dict[str, tuple[Layout, list[Part]]]:
    """Reads an index, or the header of a single file, as tensor -> (layout, parts)."""
    if not index_path(path).exists():
        check_header(path)
        with path.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        header.pop("__metadata__", None)
        entries = {name: {**entry, "parts": [[path.name, entry["shape"][0] if entry["shape"] else 1]]} for name, entry in header.items()}
    else:
        entries = _index(index_path(path))
    return {name: _entry(entry, f"{path}: {name}") for name, entry in entries.items()}


def _index(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
        if values["version"] != INDEX_VERSION:
            raise ValueError(f"version {values['version']}, expected {INDEX_VERSION}")
        return dict(values["tensors"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError("cannot read an index of shards", where=file, got=str(error)) from error


def _entry(entry: Any, where: str) -> tuple[Layout, list[Part]]:
    try:
        layout = Layout(tuple(map(operator.index, entry["shape"])), _DTYPES[entry["dtype"]])
        parts = [Part(str(file), operator.index(rows)) for file, rows in entry["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("a tensor's entry in the index cannot be read", where=where, got=str(entry)[:200]) from error
    for part in parts:
        if Path(part.file).name != part.file or part.file in ("", ".", ".."):
            raise CheckpointError("a shard lies outside its folder", where=where, got=part.file, expected="a plain file name")
    if sum(part.rows for part in parts) != layout.rows:
        raise CheckpointError(
            "the parts of a tensor are not its rows", where=where, got=sum(part.rows for part in parts), expected=layout.rows
        )
    return layout, parts


def write_sharded(path: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes tensors that are in memory as shards."""
    writer = ShardWriter(path, {name: Layout(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}, shard_bytes)
    for name in writer.tensors:
        writer.write(name, [tensors[name].cpu()])
    writer.close()


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a file or of its shards, as declared.

    Raises:
        CheckpointError: If the index or the header lies about it.
    """
    return {name: layout.shape for name, (layout, _) in _declared(path).items()}


def read_sharded(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a sharded file.

    Raises:
        CheckpointError: If the index or a shard lies, or a value is not finite.
    """
    with ShardReader(path) as reader:
        return dict(reader)
