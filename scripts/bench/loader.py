"""The loader: positions a second delivered by `trainer.data`, what a training step takes, and what it costs to encode.

    python scripts/bench/loader.py                            # 0, 1 and 2 loader threads, d 64, 2 layers, this machine's threads
    python scripts/bench/loader.py --dim 256 --layers 4       # the shape that the table of an H100 is computed for

A made-up log of the width of a real one (8 categorical features, 20 numbers, 2 actions; up to `--history` tokens a unit, 2 targets).
Delivered: a loop that only takes batches. Taken: the loop of the main job (`trainer.fit.run.fit`), and the share of it that waits for
data. What an H100 would take is computed, not measured: its bf16 peak times an assumed utilisation, over the FLOPs of a position.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

import models
from models.ranker import ActionShape, RankerShape
from trainer.config import FitConfig, OptimizerConfig, ScheduleConfig
from trainer.data import BatchModule, BatchPlan, Encoder, ShardStore, plan_batches
from trainer.data.shards import ShardKey
from trainer.fit.run import fit
from trainer.machine import cores
from trainer.schema.inputs import Action, InputSpec, NumericInput
from trainer.schema.vocabulary import Vocabulary

DAY = 86_400_000
H100 = 989e12  # dense bf16 FLOP/s
UTILISATIONS = (0.05, 0.15, 0.345)  # the last is what NVIDIA reports for its HSTU
ITEMS, USERS, TAGS = 5_000, 2_000, 50
CATEGORICAL = tuple(f"tag_{number}" for number in range(8))
NUMERIC = tuple(f"count_{number}" for number in range(20))


def main() -> None:
    arguments = _arguments()
    encoder = made_up_encoder(arguments.history)
    with tempfile.TemporaryDirectory() as folder:
        store, keys, seconds = encoded(encoder, arguments, Path(folder) / "shards")
        shards = [store.read(key) for key in keys]
        tokens, targets = (sum(int(getattr(shard, name)[-1]) for shard in shards) for name in ("token_offsets_U1", "target_offsets_U1"))
        print(f"encode: {targets:,} rows and {tokens:,} positions in {seconds:.1f} s of CPU: {targets / seconds:,.0f} rows/s")
        plan = plan_batches(
            keys, store.lengths, batch_targets=10**9, batch_tokens=arguments.batch_tokens, passes=arguments.passes, seed=0,
        )  # fmt: skip
        table = Table("workers", "first batch", "delivered: positions/s", "targets/s", "taken by the step: positions/s", "waits for data")
        for workers in arguments.workers:
            first, rates = delivered(store, plan, workers)
            taken = train(encoder, store, plan, workers, arguments, Path(folder) / f"fit-{workers}")
            table.add_row(
                str(workers), f"{first:.2f} s", *(f"{rate:,.0f}" for rate in rates), f"{taken['rate']:,.0f}", f"{taken['waits']:.2%}"
            )
        Console(width=150).print(table)
    shown = ", ".join(f"{H100 * share / flops(arguments):,.0f} at {share:.1%}" for share in UTILISATIONS)
    print(f"an H100 would take, computed from {flops(arguments) / 1e6:.1f} MFLOP a position: {shown} of its peak")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--days", type=int, default=6, help="shards; the loader mixes batches of neighbouring ones")
    parser.add_argument("--rows", type=int, default=4_000, help="rows a day")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cores())
    return parser.parse_args()


def made_up_encoder(history: int) -> Encoder:
    def vocabulary(name: str, size: int) -> Vocabulary:
        days = pa.array(["2026-01-01"] * size)
        return Vocabulary(name, pa.array(np.arange(size)), np.ones(size, np.int64), days, days)

    names = ("click", "watch")
    inputs = InputSpec(
        actions=[Action(name=n, kind="duration" if n == "watch" else "binary", base_rate=0.3, weight=1.0, maturity_ms=0) for n in names],
        history_actions=list(names),
        numeric=[NumericInput(name=name, transform="log", mean=0.0, std=1.0) for name in NUMERIC],
        categorical=dict.fromkeys(CATEGORICAL, "tag"), item_features={"author": "tag"}, token_features={"surface": "tag"},
        max_history=history,
    )  # fmt: skip
    return Encoder(inputs, {"item": vocabulary("item", ITEMS), "tag": vocabulary("tag", TAGS)})


def encoded(encoder: Encoder, arguments: argparse.Namespace, folder: Path) -> tuple[ShardStore, list[ShardKey], float]:
    """Encodes made-up days; returns the shards and the CPU seconds of encoding alone."""
    store, keys, seconds = ShardStore(folder), [], 0.0
    for day in range(arguments.days):
        rng = np.random.default_rng(day)
        examples = rows(rng, arguments.rows, DAY)
        tail = rows(rng, USERS * arguments.history // 2, 0).drop_columns(["request_time", "known_at", "weight", "is_event"])
        begin = time.process_time()
        shard = encoder.encode(examples, tail, 10 * DAY)
        seconds += time.process_time() - begin
        keys.append(ShardKey(f"day-{day}", 0))
        store.write(keys[-1], shard)
    return store, keys, seconds


def rows(rng: np.random.Generator, count: int, begin: int) -> pa.Table:
    time_N = begin + rng.integers(0, DAY, count)
    tags = {f"feature_{name}": rng.integers(0, TAGS, count) for name in (*CATEGORICAL, "author", "surface")}
    numbers = {f"feature_{name}": rng.exponential(size=count).astype(np.float32) for name in NUMERIC}
    return pa.table({
        "user": rng.integers(0, USERS, count), "item": rng.integers(0, ITEMS, count), "event_time": time_N, "request_time": time_N,
        "known_at": time_N, "available": time_N + 1, "is_event": np.ones(count, bool), "weight": np.ones(count, np.float32),
        "label_click": (rng.random(count) < 0.3).astype(np.float32), "label_watch": rng.exponential(30, count).astype(np.float32),
        **tags, **numbers,
    })  # fmt: skip


def delivered(store: ShardStore, plan: BatchPlan, workers: int) -> tuple[float, tuple[float, float]]:
    """Takes every batch and does nothing with it; returns seconds to the first, then positions and targets a second."""
    begin, tokens, targets, first = time.perf_counter(), 0, 0, 0.0
    for batch in BatchModule(store, plan, workers).train_dataloader():
        if not first:
            first, begin = time.perf_counter() - begin, time.perf_counter()
            continue
        tokens, targets = tokens + batch.tokens, targets + batch.targets
    seconds = time.perf_counter() - begin
    return first, (tokens / seconds, targets / seconds)


class Waiting(Callback):
    """Adds up the time between the end of a step and the beginning of the next."""

    def __init__(self) -> None:
        self.tokens, self.waited = 0, 0.0
        self.begin = self.end = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends a wait; the first batch, before which processes start, is left out."""
        if self.begin:
            self.waited += time.perf_counter() - self.end

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Begins a wait."""
        self.end = time.perf_counter()
        if not self.begin:
            self.begin = self.end
        else:
            self.tokens += batch.tokens


def train(
    encoder: Encoder, store: ShardStore, plan: BatchPlan, workers: int, arguments: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Trains one pass; returns positions a second and the share of the time that waited for data."""
    torch.manual_seed(0)
    inputs, waiting = encoder.inputs, Waiting()
    shape = RankerShape(
        architecture="sasrec", actions=tuple(ActionShape(name=a.name, kind=a.kind, base_rate=a.base_rate) for a in inputs.actions),
        history_actions=tuple(inputs.history_actions), vocabularies={name: v.rows for name, v in encoder.vocabularies.items()},
        item_vocabulary="item", item_features=inputs.item_features, token_features=inputs.token_features, categorical=inputs.categorical,
        numeric=NUMERIC, dim=arguments.dim, layers=arguments.layers, heads=2, head_dim=arguments.dim // 2, ffn_dim=4 * arguments.dim,
    )  # fmt: skip
    fit(
        models.build(shape), store, plan, action_weights=dict.fromkeys(inputs.history_actions, 1.0), optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(), config=FitConfig(workers=workers, threads=arguments.threads, progress=False), seed=0, warm=False,
        folder=folder, callbacks=[waiting],
    )  # fmt: skip
    seconds = waiting.end - waiting.begin
    return {"rate": waiting.tokens / seconds, "waits": waiting.waited / seconds}


def flops(arguments: argparse.Namespace) -> float:
    """FLOPs of a position: projections, attention to half of the history, feed-forward, forward and backward."""
    dim = arguments.dim
    return 6.0 * arguments.layers * (4 * dim**2 + 8 * dim**2 + arguments.history * dim)


if __name__ == "__main__":
    main()
