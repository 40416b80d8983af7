"""Writes vectors as the export stage does, against a plain write of the same tables and of the same number of bytes; and peak memory.

    python scripts/bench/export.py [--rows 1000000] [--dim 128] [--folder DIR]

Encoding is not counted: the vectors lie ready in memory. The three take turns in one process, in the same folder, and the median of
their times is told:

export   trainer.export.export: checks, hashes of ids, anchors, shards, each read back from the disk and compared, manifest, rename
plain    pyarrow alone: the same tables, row groups, files and settings (no codec, no dictionary, page checksums), each file flushed
raw      as many bytes in files of the same sizes, each flushed: no format at all

Both layouts of the serving vectors, without and with the wide view of the feature vectors. Peak memory (maximum resident set, less what
is taken before the export starts) is measured in processes of their own, which do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import ExportConfig
from trainer.export import export
from trainer.export.shards import FORMAT, row_group_rows, vector_batch, vector_schema, wide_batches, wide_schema
from trainer.schema.embeddings import EmbeddingManifest, VectorBlock

BLOCK = 4096  # a model scores so many users at a time
READY = 8  # blocks that lie in memory; they come again and again under new ids


@dataclass
class Ready:
    """Users whose vectors are ready, block by block."""

    rows: int
    dim: int
    vectors: list[np.ndarray]

    @classmethod
    def make(cls, rows: int, dim: int) -> Ready:
        generator = np.random.default_rng(0)
        return cls(rows, dim, [generator.random((BLOCK, dim), np.float32) for _ in range(READY)])

    def user_vectors(self) -> Iterator[VectorBlock]:
        for number, start in enumerate(range(0, self.rows, BLOCK)):
            count = min(BLOCK, self.rows - start)
            yield VectorBlock(pa.array(np.arange(start, start + count)), self.vectors[number % READY][:count])

    def item_vectors(self) -> Iterator[VectorBlock]:
        return iter(())


def exported(source: Ready, folder: Path, layout: str, wide: bool) -> EmbeddingManifest:
    """Runs the export stage."""
    config = ExportConfig(entities=["user"], wide=wide, layout=layout)
    return export(source, folder, config, space_id="s", producer="p", parent=None, as_of="2022-05-01")


def plain(source: Ready, folder: Path, layout: str, wide: bool) -> None:
    """Writes the same tables with pyarrow and nothing else; batches are built before the clock starts."""
    for name, batch in _batches(source, layout, wide).items():
        (folder / name).mkdir(parents=True)
        for number, rows in enumerate(_shards(source.rows)):
            path = folder / name / f"{number}.parquet"
            with pq.ParquetWriter(path, batch.schema, **FORMAT) as writer:
                for start in range(0, rows, batch.num_rows):
                    writer.write_batch(batch.slice(0, min(batch.num_rows, rows - start)))
            _flush(path)


def raw(sizes: list[int], folder: Path) -> None:
    """Writes as many bytes into files of the same sizes."""
    block = memoryview(np.random.default_rng(0).bytes(16 << 20))
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        path = folder / str(number)
        with path.open("wb", buffering=0) as file:
            for start in range(0, size, 1 << 20):
                at = start % len(block)
                file.write(block[at : at + min(1 << 20, size - start)])
        _flush(path)


_BUILT: dict[tuple[str, bool], dict[str, pa.RecordBatch]] = {}


def _batches(source: Ready, layout: str, wide: bool) -> dict[str, pa.RecordBatch]:
    """Returns one row group of every table."""
    if (layout, wide) not in _BUILT:
        rows = row_group_rows(source.dim, ExportConfig().shard_rows)
        vectors_MD = np.concatenate([source.vectors[number % READY] for number in range(-(-rows // BLOCK))])[:rows]
        ids = pa.array(np.arange(rows))
        made = {"user": vector_batch(vector_schema(ids.type, source.dim, layout == "packed"), ids, vectors_MD)}
        if wide:
            made["user_wide"] = next(wide_batches(wide_schema(ids.type, source.dim), iter([VectorBlock(ids, vectors_MD)]), rows))
        _BUILT[layout, wide] = made
    return _BUILT[layout, wide]


def _shards(rows: int) -> list[int]:
    step = ExportConfig().shard_rows
    return [min(step, rows - start) for start in range(0, rows, step)]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _seconds(task: Callable[[], object], folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # nobody pays for what another left behind
    begun = time.perf_counter()
    task()
    return time.perf_counter() - begun


def speed(rows: int, dim: int, layout: str, wide: bool, place: Path, turns: int) -> str:
    """Returns a line of the table."""
    source = Ready.make(rows, dim)
    _batches(source, layout, wide)
    folder = place / "e"
    shards = [shard for shards in exported(source, folder, layout, wide).shards.values() for shard in shards]
    found: dict[str, list[float]] = {"export": [], "plain": [], "raw": []}
    for _ in range(turns):
        found["export"].append(_seconds(lambda: exported(source, folder, layout, wide), folder))
        found["plain"].append(_seconds(lambda: plain(source, folder, layout, wide), folder))
        found["raw"].append(_seconds(lambda: raw([shard.bytes for shard in shards], folder), folder))
    took = {name: statistics.median(values) for name, values in found.items()}
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    cells = [f"{megabytes / took[name]:,.0f} ({min(values):.2f} to {max(values):.2f} s)" for name, values in found.items()]
    shares = [f"{took[name] / took['export']:.0%}" for name in ("plain", "raw")]
    return " | ".join([f"| {layout}", "yes" if wide else "no", f"{rows / took['export']:,.0f}", *cells, *shares]) + " |"


def memory(rows: int, dim: int, layout: str, wide: bool, place: Path) -> str:
    """Returns peak memory of one export in a process of its own, above what it had before, in MB."""
    source = Ready.make(rows, dim)
    before = _peak_kb()
    exported(source, place / "e", layout, wide)
    return f"{(_peak_kb() - before) / 1024:.0f}"


def _peak_kb() -> int:
    """Returns this process's own peak; `getrusage` would count the parent's, which a new process starts from."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    options = _arguments()
    if options.memory:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            print(json.dumps(memory(options.rows, options.dim, options.layout[0], bool(options.wide[0]), Path(place))))
        return
    print(f"{options.rows:,} vectors of width {options.dim}; MB/s by the median of {options.turns} turns (fastest and slowest)")
    print("| layout | wide | rows/s | export MB/s | plain MB/s | raw MB/s | of plain | of raw |\n|---|---|---|---|---|---|---|---|")
    cases = [(layout, bool(wide)) for wide in options.wide for layout in options.layout]
    for layout, wide in cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            print(speed(options.rows, options.dim, layout, wide, Path(place), options.turns), flush=True)
    sizes = (options.rows // 10, options.rows)
    print(f"| layout | wide | peak MB at {sizes[0]:,} rows | at {sizes[1]:,} |\n|---|---|---|---|")
    for layout, wide in cases:
        peaks = [_apart(size, layout, wide, options) for size in sizes]
        print(f"| {layout} | {'yes' if wide else 'no'} | {' | '.join(peaks)} |", flush=True)


def _apart(rows: int, layout: str, wide: bool, options: argparse.Namespace) -> str:
    place = ["--folder", options.folder] if options.folder else []
    command = [sys.executable, __file__, "--rows", str(rows), "--dim", str(options.dim), "--layout", layout, "--wide", str(int(wide))]
    done = subprocess.run([*command, *place, "--memory"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # lines of progress may come before


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layout", nargs="*", choices=["packed", "list"], default=["packed", "list"])
    parser.add_argument("--wide", nargs="*", type=int, choices=[0, 1], default=[0, 1])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; the system's temporary folder")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
