"""Speed of one training step on CPU: tokens/s, targets/s, and the share of the matrix-product ceiling measured in the same run.

    python scripts/bench/train_step.py                                   # the default shape, both rankers, 2 threads
    python scripts/bench/train_step.py --architecture hstu --profile     # where the time goes

Sequence lengths are drawn up to `--history` (as real ones are), so padding costs what it would cost. A step is forward, loss and
backward; the optimizer is not in it. The ceiling is the best rate of a 1024-cube fp32 product before and after the steps;
useful work counts the products of real rows and real (row, visible row) pairs only, three times for forward and backward.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch

import models
from models.batch import Batch
from models.losses import ranker_loss
from models.ranker import ActionShape, RankerShape

ITEMS, AUTHORS, USERS = 10_000, 3_000, 5_000


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ceiling = _ceiling()
    for architecture in arguments.architecture.split(","):
        shape = _shape(architecture, arguments)
        batch = _batch(shape, arguments)
        model = models.build(shape).train()
        seconds, faults = _time(model, batch, shape, arguments.steps)
        ceiling = max(ceiling, _ceiling())
        _report(architecture, batch, shape, seconds, faults, ceiling)
        if arguments.profile:
            _profile(model, batch, shape)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sasrec,hstu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--targets", type=int, default=2, help="targets a sequence")
    parser.add_argument("--history", type=int, default=50, help="L: longest history")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def _shape(architecture: str, arguments: argparse.Namespace) -> RankerShape:
    return RankerShape(
        architecture=architecture,
        actions=(ActionShape(name="click", kind="binary", base_rate=0.3), ActionShape(name="watch", kind="duration", base_rate=2.0)),
        history_actions=("click", "watch"),
        vocabularies={"item": ITEMS, "author": AUTHORS, "user": USERS, "surface": 16},
        item_vocabulary="item",
        item_features={"author": "author"},
        token_features={"surface": "surface"},
        categorical={"user": "user", "surface": "surface", **{f"category_{i}": "surface" for i in range(6)}},
        numeric=tuple(f"count_{i}" for i in range(20)),
        dim=arguments.dim, layers=arguments.layers, heads=2, head_dim=arguments.dim // 2, ffn_dim=4 * arguments.dim,
        dropout=arguments.dropout,
    )


def _batch(shape: RankerShape, arguments: argparse.Namespace) -> Batch:
    sequences = arguments.sequences
    length_S = torch.randint(arguments.history // 4, arguments.history + 1, (sequences,))
    tokens, targets = int(length_S.sum()), sequences * arguments.targets
    sequence_N = torch.arange(sequences).repeat_interleave(arguments.targets)
    rows = shape.vocabularies

    def draw(count: int, names: list[str]) -> torch.Tensor:
        return torch.stack([torch.randint(1, rows[name], (count,)) for name in names], 1)

    return Batch(
        offsets_S1=torch.cat([torch.zeros(1, dtype=torch.int64), length_S.cumsum(0)]),
        token_item_T=torch.randint(1, ITEMS, (tokens,)),
        token_item_features_TI=draw(tokens, ["author"]),
        token_features_TK=draw(tokens, ["surface"]),
        token_action_TH=torch.rand(tokens, 2),
        token_action_known_TH=torch.rand(tokens, 2) < 0.9,
        token_time_T=(torch.rand(tokens) * 1e9).long(),
        target_sequence_N=sequence_N,
        target_position_N=(torch.rand(targets) * (length_S[sequence_N] + 1)).long(),
        target_time_N=torch.full((targets,), 2_000_000_000),
        target_item_N=torch.randint(1, ITEMS, (targets,)),
        target_item_features_NI=draw(targets, ["author"]),
        target_token_features_NK=draw(targets, ["surface"]),
        categorical_NC=draw(targets, list(shape.categorical.values())),
        numeric_NF=torch.randn(targets, len(shape.numeric)),
        present_NF=torch.rand(targets, len(shape.numeric)) < 0.9,
        label_NA=torch.rand(targets, 2).round(),
        known_NA=torch.ones(targets, 2, dtype=torch.bool),
        weight_N=torch.ones(targets),
        row_N=torch.arange(targets),
    )


def _step(model: torch.nn.Module, batch: Batch, shape: RankerShape) -> None:
    model.zero_grad(set_to_none=True)
    ranker_loss(model(batch), batch, shape).total.backward()


def _time(model: torch.nn.Module, batch: Batch, shape: RankerShape, steps: int) -> tuple[list[float], float]:
    for _ in range(3):
        _step(model, batch, shape)
    seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        start = time.perf_counter()
        _step(model, batch, shape)
        seconds.append(time.perf_counter() - start)
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def _ceiling() -> float:
    """Best rate of a 1024-cube product, FLOP/s."""
    a, b = torch.randn(2, 1024, 1024)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _useful_flops(batch: Batch, shape: RankerShape) -> float:
    """Multiply-adds of real rows and visible pairs, times two, times three for forward and backward."""
    length_S = batch.offsets_S1.diff() + 1
    dim, inner = shape.dim, shape.heads * shape.head_dim
    rows, pairs = batch.tokens + batch.sequences, int((length_S * (length_S + 1) // 2).sum())
    wanted, finish = batch.targets, dim * inner + 2 * dim * shape.ffn_dim  # rows of the last block's end; products of a block's end
    if shape.architecture == "hstu":
        rows, pairs = rows + batch.targets, pairs + int((batch.target_position_N + 2).sum())  # a target sees BOS and itself besides
        wanted, finish = 2 * batch.targets, 2 * dim * inner
    trunk = shape.layers * (3 * rows * dim * inner + 2 * pairs * inner) + finish * ((shape.layers - 1) * rows + wanted)
    width = shape.context_dim
    context = 3 * shape.dim * width + len(shape.numeric) * width + 2 * shape.context_layers * width**2 + shape.dim**2
    return 6 * (trunk + batch.targets * context)


def _report(architecture: str, batch: Batch, shape: RankerShape, seconds: list[float], faults: float, ceiling: float) -> None:
    median, low, high = statistics.median(seconds), min(seconds), max(seconds)
    share = _useful_flops(batch, shape) / median / ceiling
    print(
        f"{architecture:7s} {batch.tokens / median:8,.0f} tokens/s  {batch.targets / median:7,.0f} targets/s  "
        f"{share:5.1%} of {ceiling / 1e9:.0f} GFLOP/s  step {median * 1e3:.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f}), "
        f"{batch.tokens} tokens, {batch.targets} targets, {faults:.0f} page faults a step, {torch.get_num_threads()} threads"
    )


def _profile(model: torch.nn.Module, batch: Batch, shape: RankerShape) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(5):
            _step(model, batch, shape)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50))


if __name__ == "__main__":
    main()
