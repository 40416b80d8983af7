"""Writes vectors as the export stage does: rows a second against a plain write of the same bytes, and peak memory.

    python scripts/bench/export.py [rows ...] [--dim 64] [--layout list packed] [--folder DIR]

Each size runs in a process of its own, so that peak memory (maximum resident set) is its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

BLOCK = 4096  # a model scores so many users at a time


class Generated:
    """Vectors made block by block, as a model makes them."""

    def __init__(self, rows: int, dim: int) -> None:
        self.rows, self.dim = rows, dim

    def user_vectors(self) -> Iterator:
        from trainer.schema.embeddings import VectorBlock

        generator = np.random.default_rng(0)
        for start in range(0, self.rows, BLOCK):
            count = min(BLOCK, self.rows - start)
            yield VectorBlock(pa.array(np.arange(start, start + count)), generator.random((count, self.dim), np.float32))

    def item_vectors(self) -> Iterator:
        return iter(())


def seconds(task: object) -> float:
    start = time.perf_counter()
    task()  # type: ignore[operator]
    return time.perf_counter() - start


def plain_write(folder: Path, total: int) -> None:
    """Writes as many bytes as the export did, in one-megabyte blocks, and flushes them."""
    block = np.random.default_rng(0).bytes(1 << 20)
    with (folder / "plain").open("wb") as file:
        for start in range(0, total, len(block)):
            file.write(block[: total - start])
        file.flush()
        os.fsync(file.fileno())


def measure(rows: int, dim: int, wide: bool, layout: str, folder: Path) -> dict[str, float]:
    from trainer.config import ExportConfig
    from trainer.export import export

    source = Generated(rows, dim)
    generate = seconds(lambda: [None for _ in source.user_vectors()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = ExportConfig(entities=["user"], wide=wide, layout=layout)
    took = seconds(lambda: export(source, folder / "e", config, space_id="s", producer="p", parent=None, as_of="2022-05-01"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written = sum(path.stat().st_size for path in (folder / "e").rglob("*.parquet"))
    plain = min(seconds(lambda: plain_write(folder, written)) for _ in range(3))  # the limit: other work on the machine slows some of them
    return {
        "rows_per_s": rows / (took - generate), "MB_per_s": written / 1e6 / (took - generate),
        "plain_MB_per_s": written / 1e6 / plain, "peak_MB": peak / 1024, "before_MB": before / 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layout", nargs="*", choices=["list", "packed"], default=["list", "packed"])
    parser.add_argument("--folder", default=None)
    parser.add_argument("--wide", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.wide is not None:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(json.dumps(measure(arguments.rows[0], arguments.dim, bool(arguments.wide), arguments.layout[0], Path(folder))))
        return
    for wide, layout in itertools.product((0, 1), arguments.layout):
        for rows in arguments.rows:
            place = ["--folder", arguments.folder] if arguments.folder else []
            command = [sys.executable, __file__, str(rows), "--dim", str(arguments.dim), "--wide", str(wide), "--layout", layout, *place]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )  # progress before
            share = found["MB_per_s"] / found["plain_MB_per_s"]
            print(
                f"{rows:>9,} x {arguments.dim}  {layout:<6}  wide {'yes' if wide else 'no '}  {found['rows_per_s']:>9,.0f} rows/s"
                f"  {found['MB_per_s']:>5.0f} MB/s  (plain write {found['plain_MB_per_s']:.0f} MB/s, {share:.0%} of it)"
                f"  peak {found['peak_MB']:.0f} MB"
                f" (before {found['before_MB']:.0f} MB)",
                flush=True,
            )


if __name__ == "__main__":
    main()
