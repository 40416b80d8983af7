"""Remaps a table and Adam's moments by id, shard by shard: time against a plain copy of the same bytes, and extra memory.

    python scripts/bench/transfer.py [--rows 1000000] [--dim 128] [--shard-mb 256] [--order permuted|kept] [--folder DIR]

The challenger's ids are production's in another order, one in a hundred dropped and as many new. Production's files are
written first, by another process. The copy reads and writes the same files in blocks and flushes them, as the remap does.
Extra memory is the peak of the resident set over what the process held with both vocabularies loaded; the peak of loading them
is forgotten first (``/proc/self/clear_refs``), or what they left free would hide as much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from trainer.checkpoint.shards import Layout, ShardReader, ShardWriter
from trainer.schema.files import sync
from trainer.schema.vocabulary import RESERVED_ROWS, Vocabulary
from trainer.warm_start import Side, plan
from trainer.warm_start.stream import stream_moments, stream_weights

TABLE = "embedding.item.weight"
STATES = ("exp_avg", "exp_avg_sq")
COPY_BLOCK = 1 << 24


def side(keys: np.ndarray, dim: int) -> Side:
    """Describes a ranker that is one table."""
    days = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(keys), np.int8)), pa.array(["2026-01-01"])).cast(pa.string())
    vocabulary = Vocabulary("item", pa.array(keys), np.ones(len(keys), np.int64), days, days)
    return Side(
        shapes={TABLE: (len(keys) + RESERVED_ROWS, dim)}, axes={TABLE: ("vocab:item", "dim")}, dtypes={TABLE: "float32"},
        keys={"numeric": (), "output": (), "history_action": ()}, vocabularies={"item": vocabulary}, architecture="sasrec", heads=1,
        dim=dim, norm_eps=1e-6,
    )  # fmt: skip


def sides(rows: int, dim: int, order: str) -> tuple[Side, Side]:
    """Production and challenger: one id in a hundred dropped, as many new ones; the others kept in place or permuted."""
    old = np.arange(rows)
    new = np.concatenate([old[old % 100 != 7], rows + np.arange(rows // 100)])
    return side(old, dim), side(np.random.default_rng(1).permutation(new) if order == "permuted" else new, dim)


def names() -> list[str]:
    return [TABLE, *(f"{TABLE}/{state}" for state in STATES)]


def generate(folder: Path, rows: int, dim: int, shard_bytes: int) -> None:
    """Writes production: the table and its moments."""
    generator, shape = torch.Generator().manual_seed(0), (rows + RESERVED_ROWS, dim)
    writer = ShardWriter(folder / "old.safetensors", dict.fromkeys(names(), Layout(shape, torch.float32)), shard_bytes)
    for name in names():
        starts = range(0, shape[0], 1 << 16)
        writer.write(name, (torch.rand(min(1 << 16, shape[0] - start), dim, generator=generator) for start in starts))
    writer.close()
    for file in folder.iterdir():
        sync(file)


def copy(folder: Path) -> float:
    """Copies production's files in blocks and flushes them; returns seconds."""
    target = folder / "copy"
    target.mkdir()
    begin = time.perf_counter()
    for file in sorted(folder.glob("old-*.safetensors")):
        with file.open("rb") as reader, (target / file.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, COPY_BLOCK)
        sync(target / file.name)
    seconds = time.perf_counter() - begin
    shutil.rmtree(target)
    return seconds


def memory(entry: str) -> int:
    """Returns the resident set (``VmRSS``) or its peak (``VmHWM``) of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0]) * 1024


def remap(folder: Path, rows: int, dim: int, shard_bytes: int, order: str) -> dict[str, float]:
    """Remaps table and moments; returns seconds and extra memory (bytes)."""
    source, target = sides(rows, dim, order)
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    begin = time.perf_counter()
    transfer = plan(source, target)
    writer = ShardWriter(folder / "new.safetensors", dict.fromkeys(names(), Layout(target.shapes[TABLE], torch.float32)), shard_bytes)  # type: ignore[arg-type]
    with ShardReader(folder / "old.safetensors") as reader:
        stream_weights(
            transfer, source, target, reader, lambda _, block: torch.empty(block.stop - block.start, dim), writer.write, writer.block_rows
        )
        states = {f"{TABLE}/{state}": torch.float32 for state in STATES}
        stream_moments(transfer, source, target, reader, states, writer.write, writer.block_rows)
    writer.close()
    for file in folder.glob("new-*.safetensors"):
        sync(file)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "extra_bytes": memory("VmHWM") - before}


def check(folder: Path, rows: int, dim: int, order: str) -> int:
    """Compares a thousand ids on both sides, in table and moments; returns rows that differ."""
    source, target = sides(rows, dim, order)
    ids = pa.array(np.random.default_rng(2).integers(0, rows, 1000))
    old, new = (part.vocabularies["item"].lookup(ids) for part in (source, target))
    kept = new >= RESERVED_ROWS
    wrong = 0
    with ShardReader(folder / "old.safetensors") as before, ShardReader(folder / "new.safetensors") as after:
        for name in names():
            wrong += int((before.take(name, old[kept]) != after.take(name, new[kept])).any(1).sum())
    return wrong


def main() -> None:
    """Prints one line a measure, and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--shard-mb", type=int, default=256)
    parser.add_argument("--order", choices=("permuted", "kept"), default="permuted")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=("generate", "remap"), help=argparse.SUPPRESS)
    values = parser.parse_args()
    shard_bytes = values.shard_mb << 20
    if values.step == "generate":
        generate(values.folder, values.rows, values.dim, shard_bytes)
        return
    if values.step == "remap":
        print(json.dumps(remap(values.folder, values.rows, values.dim, shard_bytes, values.order)))
        return
    with tempfile.TemporaryDirectory(dir=values.folder) as temporary:
        folder = Path(temporary)
        command = [sys.executable, __file__, "--rows", str(values.rows), "--dim", str(values.dim), "--shard-mb", str(values.shard_mb)]
        command += ["--order", values.order, "--folder", temporary]
        subprocess.run([*command, "--step", "generate"], check=True)
        copied = [copy(folder)]
        measured = json.loads(subprocess.run([*command, "--step", "remap"], check=True, capture_output=True, text=True).stdout)
        copied.append(copy(folder))
        wrong = check(folder, values.rows, values.dim, values.order)
        largest = max(file.stat().st_size for file in folder.glob("new-*.safetensors"))
        total = sum(file.stat().st_size for file in folder.glob("old-*.safetensors"))
    report = {
        "rows": values.rows, "dim": values.dim, "order": values.order, "gigabytes": total / 1e9, "largest_shard_mb": largest / 2**20,
        "copy_seconds": sum(copied) / 2, "remap_seconds": measured["seconds"], "time_ratio": measured["seconds"] / (sum(copied) / 2),
        "extra_memory_mb": measured["extra_bytes"] / 2**20, "memory_ratio": measured["extra_bytes"] / largest, "wrong_rows": wrong,
        "cpus": os.cpu_count(),
    }  # fmt: skip
    print(f"{values.rows:,} x {values.dim} float32 with Adam's moments, {total / 1e9:.2f} GB, ids {values.order}")
    print(f"plain copy    {report['copy_seconds']:8.2f} s  (before and after: {copied[0]:.2f}, {copied[1]:.2f})")
    print(f"remap by id   {report['remap_seconds']:8.2f} s  {report['time_ratio']:.2f} x the copy")
    shard = f"the largest shard ({report['largest_shard_mb']:.0f} MB)"
    print(f"extra memory  {report['extra_memory_mb']:8.0f} MB {report['memory_ratio']:.2f} x {shard}")
    print(f"wrong rows    {wrong:8d}    of 3,000 looked up by id")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
