"""The training loop: how much of the machine's limit does useful work, and what that is in positions and targets a second.

    python scripts/bench/train.py                                                    # made-up sequences, sasrec and hstu, next item
    python scripts/bench/train.py --data DIR/sasrec_order.parquet --history 200      # MovieLens-1M as in experiment=ml1m
    python scripts/bench/train.py --run RUN_DIR                                      # the shards and the ranker of a finished run
    python scripts/bench/train.py --objective actions --history 50                   # labels and features as in the main job
    python scripts/bench/train.py --device gpu --dim 1024 --layers 8 --heads 4 --history 4096 --lengths full --batch-tokens 131072 \
        --softmax sampled --negatives 8192 --compile                                 # one H100: the shape that NVIDIA reports 34.5 % for

The loop is the product's own (`trainer.fit.run.fit`, `trainer.next_item.train.train`): loader, forward, loss, backward, clipping,
optimizer, average of the weights. Useful work is matrix products of real rows (`models.flops`), never of padding. The limit is
measured in the same process (best rate of an fp32 product on this many threads) or, on a GPU, its bf16 peak. Rates are those of the
median step after the warm-up, plus the waiting; by CPU time as well, because that is what a shared machine can be compared by. With
--profile some steps are watched (where their time goes, by kind), and the rates leave them out. Each case runs in a process of its
own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from trainer.checkpoint import build_ranker, read_bundle
from trainer.config import CostConfig, FitConfig, ModelConfig, NextItemConfig, OptimizerConfig, ScheduleConfig
from trainer.data import BatchPlan, Shard, ShardStore, plan_batches
from trainer.data.shards import ShardKey
from trainer.fit.cost import Spent
from trainer.fit.run import fit
from trainer.machine import CHOOSE_WORKERS, cores
from trainer.next_item.sequences import Sequences, read_sequences
from trainer.next_item.train import train
from trainer.schema.vocabulary import RESERVED_ROWS

WARM_UP = 3  # steps that are not timed: they allocate, and compile
PROFILED = 5  # steps that a profile watches
# What a kernel, or on the CPU an operation, does: the first that its name holds, or is where a part begins with an underscore.
KINDS = {
    "attention": ("flash", "fmha", "attention", "attn", "_backward_queries", "_backward_keys", "_forward"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "::mm", "::addmm", "::bmm", "splitk"),
    "softmax": ("_weigh",),
    "copies": ("memcpy", "memset", "::copy_"),
}
ZIPF = 1.1


class Steps(Callback):
    """Notes what every step took: wall time, CPU time of this process, page faults; and how long it had waited for its batch.

    Args:
        profile: Watches `PROFILED` steps after the warm-up.
    """

    def __init__(self, profile: torch.profiler.profile | None = None) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.faults: list[int] = []
        self.waited: list[float] = []
        self.begun = self.ended = (0.0, 0.0, 0)
        self.memory = 0  # bytes of the device at most, before anything is judged
        self.profile = profile
        self.watched = range(WARM_UP, WARM_UP if profile is None else WARM_UP + PROFILED)

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a step."""
        self.begun = self._now(task)
        self.waited.append(self.begun[0] - self.ended[0] if self.wall else 0.0)
        if self.profile is not None and len(self.wall) == self.watched.start:
            self.profile.start()
            self.begun = self._now(task)

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends a step."""
        self.ended = self._now(task)
        if task.device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated()
        for values, end, begin in zip((self.wall, self.cpu, self.faults), self.ended, self.begun, strict=True):
            values.append(end - begin)  # type: ignore[attr-defined]
        if self.profile is not None and len(self.wall) == self.watched.stop:
            self.profile.stop()
            self.ended = self._now(task)

    def _now(self, task: L.LightningModule) -> tuple[float, float, int]:
        if task.device.type == "cuda":
            torch.cuda.synchronize()  # a step is timed whole here; in the product nothing waits for the device
        return time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    """Runs the cases and prints them."""
    arguments = _arguments()
    spawn = multiprocessing.get_context("spawn")
    table = Table("ranker", "of the limit", "by CPU time", "waits", "positions/s", "targets/s", "step ms", "faults", "memory MiB", "limit")
    for name in arguments.architecture.split(","):
        with spawn.Pool(1) as pool:
            found = pool.apply(measure, (name, arguments))
        print(json.dumps({**{k: v for k, v in vars(arguments).items() if v}, "architecture": name, **found}), flush=True)
        table.add_row(
            name, f"{found['share']:.1%}", f"{found['cpu_share']:.1%}", f"{found['waits']:.1%}", f"{found['positions']:,.0f}",
            f"{found['targets']:,.0f}", f"{found['step']:.1f} ({found['fastest']:.1f} to {found['slowest']:.1f})",
            f"{found['faults']:,.0f}", f"{found['memory']:,.0f}", f"{found['limit'] / 1e9:,.0f} GFLOP/s",
        )  # fmt: skip
    Console(width=150).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sasrec,hstu")
    parser.add_argument("--objective", default="next_item", choices=("next_item", "actions"))
    parser.add_argument("--data", help="parquet file of sequences: user_id, item_id, seq_pos")
    parser.add_argument("--run", help="run_dir of a finished run: its shards, its ranker's shape")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 elsewhere")
    parser.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    parser.add_argument("--workers", type=int, default=CHOOSE_WORKERS, help=f"loader threads; {CHOOSE_WORKERS} chooses")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--history", type=int, default=200, help="L: longest history")
    parser.add_argument("--lengths", default="zipf", choices=("zipf", "uniform", "full"), help="of made-up histories")
    parser.add_argument("--items", type=int, default=3416)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--softmax", default="full", choices=("full", "sampled"))
    parser.add_argument("--negatives", type=int, default=0)
    parser.add_argument("--batch-targets", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=25, help="about so many")
    parser.add_argument("--profile", action="store_true", help=f"where the time of {PROFILED} further steps goes")
    return parser.parse_args()


def measure(architecture: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one ranker for some steps and says what they cost."""
    on_gpu = arguments.device == "gpu"
    config = FitConfig(
        device=arguments.device, precision=arguments.precision or ("bf16" if on_gpu else "fp32"), progress=False,
        threads=arguments.threads, workers=arguments.workers, batch_targets=arguments.batch_targets, batch_tokens=arguments.batch_tokens,
        compile=arguments.compile, checkpoint_steps=10**9, checkpoint_activations=arguments.checkpoint_activations, ema_decay=0.995,
    )  # fmt: skip
    steps = Steps(torch.profiler.profile() if arguments.profile else None)
    with tempfile.TemporaryDirectory() as folder, softmax_named():
        if arguments.run:
            spent = _of_run(Path(arguments.run), config, steps, Path(folder), arguments.steps)
        elif arguments.objective == "actions":
            spent = _actions(architecture, config, steps, Path(folder), arguments)
        else:
            spent = _next_item(architecture, config, steps, Path(folder), arguments)
    shares = {}
    if steps.profile is not None:
        if len(steps.wall) < steps.watched.stop:
            raise SystemExit(f"a profile needs {steps.watched.stop} steps, there were {len(steps.wall)}: raise --steps")
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        print(steps.profile.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=50))
        shares = {"profile": profiled(steps.profile, sum(steps.wall[place] for place in steps.watched), on_gpu)}
    memory = steps.memory if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**_figures(spent, steps, memory, config.threads or cores()), **shares}


@contextlib.contextmanager
def softmax_named() -> Iterator[None]:
    """Gives the softmax a name in profiles: its products are nobody else's, but their kernels have the same names."""
    import trainer.next_item.train as next_item

    kept = {name: getattr(next_item, name) for name in ("full_softmax", "sampled_softmax")}
    for name, plain in kept.items():
        setattr(next_item, name, torch.profiler.record_function("softmax")(plain))
    try:
        yield
    finally:
        for name, plain in kept.items():
            setattr(next_item, name, plain)


def profiled(profile: torch.profiler.profile, wall: float, on_gpu: bool) -> dict[str, Any]:
    """Says where the time of the watched steps went.

    Args:
        profile: A stopped profile.
        wall: Seconds of the watched steps.
        on_gpu: Whether kernels count, or else the operations of all threads.

    Returns:
        ``shares``: part of `wall` by kind, in order; ``nothing`` is what no kernel took. ``top``: the dearest, with their parts.
    """
    seconds, names = defaultdict[str, float](float), defaultdict[str, float](float)
    for event in profile.events():
        parts = [(k.name, k.duration) for k in event.kernels] if on_gpu else [(event.name, event.self_cpu_time_total)]
        inside, parent = [event.name], event.cpu_parent
        while parent is not None:
            inside.append(parent.name)
            parent = parent.cpu_parent
        for name, micro in parts:
            seconds[_kind(name, inside)] += micro / 1e6
            names[name] += micro / 1e6
    if on_gpu:
        seconds["nothing"] = max(0.0, wall - sum(seconds.values()))
    shares, top = (
        {name[:80]: took / max(wall, 1e-9) for name, took in sorted(found.items(), key=lambda item: -item[1])} for found in (seconds, names)
    )
    return {"shares": shares, "top": list(top.items())[:12]}


def _kind(name: str, inside: list[str]) -> str:
    if "softmax" in inside:
        return "softmax"
    if any(parent.startswith("Optimizer.step") for parent in inside):
        return "optimizer"
    name = name.lower()
    fits = (kind for kind, parts in KINDS.items() if any(name == part if part.startswith("_") else part in name for part in parts))
    return next(fits, "passes over memory")


def _figures(spent: Spent, steps: Steps, memory: float, threads: int) -> dict[str, Any]:
    warm = steps.watched.stop if len(steps.wall) > steps.watched.stop else 0
    timed, cpu, faults, waited = (values[warm:] for values in (steps.wall, steps.cpu, steps.faults, steps.waited))
    waits = sum(waited) / (sum(timed) + sum(waited))
    seconds = statistics.median(timed) / (1 - waits)
    limit = spent.peak_flops or float("nan")
    flops = spent.flops / spent.steps
    return {
        "share": flops / seconds / limit, "cpu_share": flops / (statistics.median(cpu) / threads) / limit, "waits": waits,
        "positions": spent.positions / spent.steps / seconds, "targets": spent.targets / spent.steps / seconds,
        "step": 1e3 * statistics.median(timed), "fastest": 1e3 * min(timed), "slowest": 1e3 * max(timed),
        "faults": statistics.median(faults), "memory": memory / 2**20, "limit": limit, "steps": spent.steps,
    }  # fmt: skip


def _next_item(architecture: str, config: FitConfig, steps: Steps, folder: Path, arguments: argparse.Namespace) -> Spent:
    spec = NextItemConfig(path="", softmax=arguments.softmax, negatives=arguments.negatives)
    events = arguments.steps * min(arguments.batch_targets, arguments.batch_tokens)
    if arguments.data:
        file = Path(arguments.data)
        sequences = _shortened(read_sequences(file.parent, NextItemConfig(path=file.name)), events)
    else:
        sequences = _made_up(arguments, events)
    model = ModelConfig(
        name=architecture, dim=arguments.dim, layers=arguments.layers, heads=arguments.heads, head_dim=arguments.dim // arguments.heads,
        ffn_dim=4 * arguments.dim, dropout=arguments.dropout, max_history=arguments.history,
    )  # fmt: skip
    passes = -(-events // len(sequences.item_E))  # a small log is read again until there are steps enough
    settings: Any = SimpleNamespace(
        model=model, optimizer=OptimizerConfig(), schedule=ScheduleConfig(), fit=replace(config, passes=passes), seed=0, next_item=spec,
        cost=CostConfig(),
    )  # fmt: skip
    return train(settings, sequences, 10, passes, folder, observers=[steps]).spent


def _shortened(sequences: Sequences, events: int) -> Sequences:
    """The first users that have so many events together."""
    users = int(np.searchsorted(sequences.offsets_U1, events)) + 1
    offsets_U1 = sequences.offsets_U1[: users + 1]
    return Sequences(sequences.user_ids[: len(offsets_U1) - 1], sequences.item_ids, offsets_U1, sequences.item_E[: offsets_U1[-1]])


def _made_up(arguments: argparse.Namespace, events: int) -> Sequences:
    """Sequences of Zipf-distributed items; lengths as asked for."""
    rng = np.random.default_rng(0)
    length_U = _lengths(rng, arguments, 2 + 2 * events // min(16, arguments.history))
    users = int(np.searchsorted(np.cumsum(length_U), events)) + 1
    length_U = length_U[:users] + 2  # two are held out
    offsets_U1 = np.concatenate([[0], np.cumsum(length_U)])
    item_E = rng.permutation(arguments.items)[_popular(rng, arguments.items, int(offsets_U1[-1]))]
    return Sequences(pa.array(np.arange(users)), pa.array(np.arange(arguments.items)), offsets_U1, item_E)


def _lengths(rng: np.random.Generator, arguments: argparse.Namespace, count: int) -> np.ndarray:
    longest = arguments.history
    if arguments.lengths == "full":
        return np.full(count, longest)
    if arguments.lengths == "uniform":
        return rng.integers(max(longest // 8, 1), longest + 1, count)
    return np.minimum(longest, max(longest // 32, 1) * rng.zipf(1.3, count))


def _popular(rng: np.random.Generator, items: int, count: int) -> np.ndarray:
    share = 1 / np.arange(1, items + 1) ** ZIPF
    return np.searchsorted(np.cumsum(share / share.sum()), rng.random(count)).clip(max=items - 1)


def _actions(architecture: str, config: FitConfig, steps: Steps, folder: Path, arguments: argparse.Namespace) -> Spent:
    """A made-up shard with the features of a small feed: 8 categorical, 20 numbers, 2 targets a unit, 2 actions."""
    shape = RankerShape(
        architecture=architecture,
        actions=(ActionShape(name="click", kind="binary", base_rate=0.3), ActionShape(name="watch", kind="duration", base_rate=2.0)),
        history_actions=("click", "watch"), item_vocabulary="item",
        vocabularies={"item": arguments.items + RESERVED_ROWS, "author": 3_002, "user": 5_002, "tab": 18},
        item_features={"author": "author"}, token_features={"tab": "tab"},
        categorical={"user": "user", **{f"tab_{number}": "tab" for number in range(7)}}, numeric=tuple(f"count_{n}" for n in range(20)),
        dim=arguments.dim, layers=arguments.layers, heads=arguments.heads, head_dim=arguments.dim // arguments.heads,
        ffn_dim=4 * arguments.dim, dropout=arguments.dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    store, key = ShardStore(folder / "shards"), ShardKey("2024-01-01", 0)
    store.write(key, _shard(shape, arguments))
    return _fit(models.build(shape), store, [key], config, steps, folder, arguments.steps)


def _shard(shape: RankerShape, arguments: argparse.Namespace) -> Shard:
    rng = np.random.default_rng(0)
    length_U = _lengths(rng, arguments, arguments.steps * arguments.batch_targets // 2)
    units, tokens, targets = len(length_U), int(length_U.sum()), 2 * len(length_U)
    target_unit_N = np.repeat(np.arange(units), 2)

    def rows(count: int, names: list[str]) -> np.ndarray:
        return np.stack([RESERVED_ROWS + _popular(rng, shape.vocabularies[name] - RESERVED_ROWS, count) for name in names], 1)

    item_T, item_N = rows(tokens, ["item"])[:, 0], rows(targets, ["item"])[:, 0]
    return Shard(
        token_offsets_U1=np.concatenate([[0], np.cumsum(length_U)]), target_offsets_U1=np.arange(units + 1) * 2,
        token_item_T=item_T, token_item_features_TI=rows(tokens, ["author"]), token_features_TK=rows(tokens, ["tab"]),
        token_action_TH=rng.random((tokens, 2), np.float32), token_action_known_TH=rng.random((tokens, 2)) < 0.9,
        token_time_T=rng.integers(0, 10**9, tokens), target_position_N=rng.integers(0, length_U[target_unit_N] + 1),
        target_time_N=np.full(targets, 2 * 10**9), target_item_N=item_N, target_item_features_NI=rows(targets, ["author"]),
        target_token_features_NK=rows(targets, ["tab"]), categorical_NC=rows(targets, list(shape.categorical.values())),
        numeric_NF=rng.standard_normal((targets, 20), np.float32), present_NF=rng.random((targets, 20)) < 0.9,
        label_NA=rng.random((targets, 2)).round().astype(np.float32), known_NA=np.ones((targets, 2), bool),
        weight_N=np.ones(targets, np.float32), row_N=np.arange(targets),
    )  # fmt: skip


def _of_run(run: Path, config: FitConfig, steps: Steps, folder: Path, wanted: int) -> Spent:
    """The ranker of a finished run on its own shards."""
    ranker = build_ranker(read_bundle(run / "challenger"))
    files = sorted((run / "challenger-shards").glob("day=*.npz"))
    keys = [ShardKey(file.stem[4:14], int(file.stem.rsplit("=", 1)[1])) for file in files]
    return _fit(ranker, ShardStore(run / "challenger-shards"), keys, config, steps, folder, wanted)


def _fit(
    ranker: models.Ranker, store: ShardStore, keys: list[ShardKey], config: FitConfig, steps: Steps, folder: Path, wanted: int
) -> Spent:
    plan = plan_batches(keys, store.lengths, batch_targets=config.batch_targets, batch_tokens=config.batch_tokens, passes=1, seed=0)
    plan = BatchPlan(plan.batches[:wanted])
    weights = {action.name: 1.0 for action in ranker.shape.actions}
    result = fit(
        ranker.train(), store, plan, action_weights=weights, optimizer=OptimizerConfig(), schedule=ScheduleConfig(), config=config, seed=0,
        warm=False, folder=folder / "fit", callbacks=[steps],
    )  # fmt: skip
    return result.spent


if __name__ == "__main__":
    main()
