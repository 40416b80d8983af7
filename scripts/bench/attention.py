"""The attentions: each fast path against attention padded to the longest sequence and against its dense twin, forward and backward.

    python scripts/bench/attention.py                                      # CPU: groups of nearly equal length, fp32
    python scripts/bench/attention.py --device gpu --heads 4 --width 128   # CUDA, bf16: the kernels, the groups, padded

Lengths are uniform, by Zipf's law, or all the longest. Ratios come first: how many times as long padded attention takes as the fast
path (softmax: torch's SDPA; SiLU: the same products on padded tensors), and the dense twin (one mask over the whole batch; left out
where its mask would not fit). The share is that of the machine's matrix-product limit, counting visible pairs only. A repetition
runs the paths in turn; medians over repetitions of CPU seconds on a CPU, of wall time on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.arrange import run_layout, varlen_layout
from models.attention import (
    BIAS_ROWS,
    CausalLayout,
    PairLayout,
    Seen,
    causal_layout,
    dense_causal_attention,
    dense_pointwise_attention,
    pair_layout,
)
from models.packing import Packing, pack
from trainer.fit.cost import peak_flops

MOST_PAIRS = 64 * 2**20  # of a dense twin's mask, all heads together
TARGETS = 2  # a sequence, at its end

Attend = Callable[..., Tensor]


def main() -> None:
    """Times every path on every distribution of lengths."""
    options = _options()
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    limit = peak_flops(device) or float("nan")
    table = Table("attention", "lengths", "path", "padded / path", "dense / path", "of the limit", "ms", "real rows / padded")
    for kind, lengths in itertools.product(("causal", "pointwise"), options.lengths.split(",")):
        packing, seen = _batch(_drawn(lengths, options), device)
        paths = _causal_paths(packing, options) if kind == "causal" else _pointwise_paths(packing, seen, options)
        inputs = _inputs(packing, kind, options, device)
        seconds = _time(paths, inputs, options.repetitions, device)
        flops = 3 * 4 * _pairs(packing, seen, kind) * options.heads * options.width
        padding = len(packing.sequence_R) / (len(packing.length_S) * int(packing.length_S.max()))
        for name in (name for name in seconds if name not in ("padded", "dense")):
            ratio = {other: seconds[other] / seconds[name] if other in seconds else None for other in ("padded", "dense")}
            found = {"share": flops / seconds[name] / limit, "ms": 1e3 * seconds[name], "real": padding}
            print(json.dumps({"attention": kind, "lengths": lengths, "path": name, **ratio, **found}), flush=True)
            ratios = ["-" if value is None else f"{value:.2f}" for value in ratio.values()]
            table.add_row(kind, lengths, name, *ratios, f"{found['share']:.1%}", f"{found['ms']:.2f}", f"{padding:.0%}")
    Console(width=140).print(table)
    size = f"{options.sequences} sequences up to {options.longest}, {options.heads} heads of {options.width}"
    print(f"{size}, limit {limit / 1e9:,.0f} GFLOP/s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--lengths", default="uniform,zipf,full")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--longest", type=int, default=200)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args()


def _drawn(lengths: str, options: argparse.Namespace) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    longest, count = options.longest, options.sequences
    if lengths == "full":
        return [longest] * count
    uniform = torch.rand(count, generator=generator)
    if lengths == "uniform":
        return (1 + uniform * (longest - 1)).long().tolist()
    shortest = max(longest // 32, 1)
    return (shortest * (1 - uniform) ** -1.5).long().clamp(max=longest).tolist()  # a Pareto tail


def _batch(lengths: list[int], device: torch.device) -> tuple[Packing, Seen]:
    """Rows of a batch with a clock, as `models.hstu` sees them."""
    length_S = torch.tensor(lengths)
    sequence_N = torch.arange(len(lengths)).repeat_interleave(TARGETS)
    offsets_S1 = torch.cat([torch.zeros(1, dtype=torch.int64), length_S.cumsum(0)])
    batch: Any = SimpleNamespace(
        offsets_S1=offsets_S1, sequences=len(lengths), tokens=int(length_S.sum()), target_sequence_N=sequence_N,
        target_position_N=length_S[sequence_N], lengths=None,
    )  # fmt: skip
    packing = pack(batch)
    position_Q = torch.cat([packing.position_R, length_S[sequence_N] + 1])
    seen = Seen(
        torch.cat([packing.sequence_R, sequence_N]), position_Q, 60_000 * position_Q,
        torch.cat([packing.position_R + 1, length_S[sequence_N] + 1]),
    )  # fmt: skip
    return _moved(packing, device), _moved(seen, device)


def _moved(part: Any, device: torch.device) -> Any:
    return replace(part, **{name: value.to(device) for name, value in vars(part).items() if isinstance(value, Tensor)})


def _pairs(packing: Packing, seen: Seen, kind: str) -> int:
    rows = len(packing.sequence_R)
    own = int((seen.visible_Q[rows:] + 1).sum()) if kind == "pointwise" else 0
    return int((packing.position_R + 1).sum()) + own


def _one_group(length_S: Tensor) -> Tensor:
    """All sequences alike long, as code that pads to the longest sees them."""
    return torch.full_like(length_S, int(length_S.max()))


def _causal_paths(packing: Packing, options: argparse.Namespace) -> dict[str, Attend]:
    grouped, padded = causal_layout(packing), _padded(causal_layout, packing)
    paths: dict[str, Attend] = {"groups": grouped.attend, "padded": padded.attend}
    if packing.length_S.device.type == "cuda":
        paths["varlen"] = varlen_layout(packing, torch.bfloat16).attend
    if options.heads * len(packing.sequence_R) ** 2 <= MOST_PAIRS:
        paths["dense"] = lambda q, k, v: dense_causal_attention(q, k, v, packing)
    return paths


def _pointwise_paths(packing: Packing, seen: Seen, options: argparse.Namespace) -> dict[str, Attend]:
    grouped, padded = pair_layout(packing, seen), _padded(lambda packing: pair_layout(packing, seen), packing)
    paths: dict[str, Attend] = {"groups": grouped.attend, "padded": padded.attend}
    if packing.length_S.device.type == "cuda":
        paths["triton"] = run_layout(packing, seen).attend
    if options.heads * len(seen.time_Q) ** 2 <= MOST_PAIRS:
        paths["dense"] = lambda q, k, v, bias: dense_pointwise_attention(q, k, v, bias, packing, seen)
    return paths


def _padded(build: Callable[[Packing], Any], packing: Packing) -> CausalLayout | PairLayout:
    """The groups' own code with all sequences in one group."""
    import models.attention as attention

    kept = attention._rounded
    attention._rounded = lambda length_S, octaves=4: _one_group(length_S)  # type: ignore[assignment]
    try:
        return build(packing)
    finally:
        attention._rounded = kept


def _inputs(packing: Packing, kind: str, options: argparse.Namespace, device: torch.device) -> list[Tensor]:
    torch.manual_seed(0)
    rows = len(packing.sequence_R) + (len(packing.state_N) if kind == "pointwise" else 0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(rows, options.heads, options.width, device=device, dtype=dtype) for _ in range(3))
    inputs = [q * options.width**-0.5, k, v]
    if kind == "pointwise":
        inputs.append(torch.randn(BIAS_ROWS, options.heads, device=device))
    return [x.requires_grad_() for x in inputs]


def _time(paths: dict[str, Attend], inputs: list[Tensor], repetitions: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a forward and backward pass of each path."""
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for repetition in range(repetitions + 1):  # the first one warms up
        for name, attend in paths.items():
            begin = _now(device)
            out = attend(*inputs)
            torch.autograd.grad(out, inputs, torch.ones_like(out))
            if repetition:
                taken[name].append(_now(device) - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
